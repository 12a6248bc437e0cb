package hbone

import (
	"errors"
	"fmt"
	"time"
)

// start is an Open without a goroutine that waits.
type start struct {
	p        *Pool
	s        *Stream
	done     func(*Stream, error)
	timeout  *time.Timer // asks late, or ends it
	late     func() error
	end      time.Time
	seasoned bool // its tunnel had been idle before
}

// again marks the error of a CONNECT that may be tried once more.
type again struct{ error }

func (a again) Unwrap() error { return a.error }

// Again says whether after an error of Start's Open may do better: the peer did
// nothing with the CONNECT, or its tunnel had been dead for a while.
func Again(err error) bool {
	var a again
	return errors.As(err, &a)
}

// Start is Open for who must not wait. It returns false, and has done nothing, when
// there is no tunnel for key that is not busy and has a place. Else the CONNECT goes
// out with the next flush of then, which must follow soon if it is not nil, and done
// is called once with what Open would return, but that there was one try only;
// see Again. done must not block.
// cancel gives up, unless there was an answer; done gets its error then.
func (p *Pool) Start(key Key, req Request, done func(*Stream, error)) (cancel func(error), then interface{ Flush() }, ok bool) {
	m, seasoned := p.place(key)
	if m == nil {
		return nil, nil, false
	}
	o := &start{p: p, done: done, seasoned: seasoned}
	t := m.t
	t.mu.Lock()
	s, err := t.openLocked(req)
	if err != nil {
		t.mu.Unlock()
		p.release(m)
		p.opened()
		return nil, nil, false
	}
	o.s, s.opening.answer = s, o.answered
	first := t.cfg.ResponseTimeout
	o.end = time.Now().Add(first)
	if o.late = req.Late; o.late != nil {
		first = min(first, req.Patience)
	}
	o.timeout = time.AfterFunc(first, o.expire)
	then = t.later()
	p.release(m)
	return o.giveUp, then, true
}

// place takes a place on a tunnel for key, as acquire does, if there is one at once.
func (p *Pool) place(key Key) (m *member, seasoned bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.keys[key]
	if p.refuse || e == nil {
		return nil, false
	}
	m, busy := e.pick(0)
	if m == nil || busy {
		return nil, false
	}
	m.pending++
	p.opening++
	return m, m.seasoned
}

// opened is the end of an opening.
func (p *Pool) opened() {
	p.mu.Lock()
	p.opening--
	p.checkQuietLocked()
	p.mu.Unlock()
}

func (o *start) answered(err error) {
	o.timeout.Stop()
	o.p.opened()
	switch {
	case err == nil:
		o.done(o.s, nil)
	case retriable(err, o.seasoned):
		o.done(nil, again{err})
	default:
		o.done(nil, err)
	}
}

func (o *start) giveUp(err error) {
	if answer := o.s.takeBack(); answer != nil {
		answer(err)
	}
}

// askAgain is how often a request that is late is asked about.
const askAgain = time.Second

func (o *start) expire() {
	left := time.Until(o.end)
	if left <= 0 || o.late == nil {
		o.giveUp(timeoutError(o.s.t.cfg.ResponseTimeout))
		return
	}
	if err := o.late(); err != nil {
		o.giveUp(err)
		return
	}
	o.s.t.mu.Lock()
	defer o.s.t.mu.Unlock()
	if o.s.opening != nil && o.s.opening.answer != nil { // else nobody waits
		o.timeout.Reset(min(left, askAgain))
	}
}

func timeoutError(limit time.Duration) error {
	return fmt.Errorf("hbone: no answer to CONNECT: %w after %s", ErrTimeout, limit)
}
