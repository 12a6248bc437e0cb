package client

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Limits of what is asked for by name. An application can make up as many addresses
// as it likes.
const (
	maxAsks    = 64 << 10 // names that are remembered
	maxWaiting = 4 << 10  // of which so many may be without an answer
)

// answerHolds is how long an answer is not asked for again when the store has nothing
// under the name, or what came under it was refused. Our own control plane says when something comes to have it; Istio's
// does not.
const answerHolds = 2 * time.Second

// asks are the names that somebody wanted to know about. Its methods may be called
// from any goroutine.
type asks struct {
	mu      sync.Mutex
	names   map[string]*list.Element // of *ask
	recent  list.List                // the longest unused last
	waiting int                      // without an answer
	wake    chan struct{}            // tells the session that there is something to send

	// What the session has to send, in this order.
	leave, enter []string
	connected    bool // there is a session that takes answers
}

// ask is one name. The state is that of the newest question:
//
//	waiting (done is open) → present or absent (done is closed) → waiting again
type ask struct {
	name   string
	done   chan struct{}
	absent bool
	err    error // the answer could not be used
	at     time.Time
	sent   bool // on this stream
}

func newAsks() *asks {
	return &asks{names: make(map[string]*list.Element), wake: make(chan struct{}, 1)}
}

var (
	errTooManyAsks = errors.New("too many addresses wait for the control plane's answer")
	errNoAnswer    = errors.New("the control plane has not said in time what this is")
	errRefused     = errors.New("what the control plane says it is cannot be used (see the log of xds)")
)

// Ask returns when the store has what the names stand for, if there is anything: a
// workload's UID, a service's "namespace/hostname", or "network/ip", of either. Where a
// name is known to stand for nothing it returns at once. It is for a client that
// follows on demand; one that follows everything has nothing to ask for.
//
// At one time a name is asked for once, however many want to know.
func (c *Client) Ask(ctx context.Context, names ...string) error {
	if !c.cfg.OnDemand {
		return nil
	}
	pending := make([]*ask, 0, len(names))
	for _, name := range names {
		a, err := c.asks.ask(name, time.Now())
		if err != nil {
			return fmt.Errorf("xds: %s: %w", clip(name, maxReason), err)
		}
		if a != nil {
			pending = append(pending, a)
		}
	}
	for _, a := range pending {
		select {
		case <-a.done:
		case <-ctx.Done():
			return fmt.Errorf("xds: %s: %w", clip(a.name, maxReason), errNoAnswer)
		}
		if a.err != nil {
			return fmt.Errorf("xds: %s: %w", clip(a.name, maxReason), a.err)
		}
	}
	return nil
}

// Refresh is Ask for what is known already but of no use any more, as a service whose
// endpoints have all gone. Without an answer what is known stays, which is no error;
// without a stream nobody waits for one.
func (c *Client) Refresh(ctx context.Context, names ...string) {
	if len(names) == 0 || !c.asks.streaming() {
		return
	}
	for _, name := range names {
		_, _ = c.asks.ask(name, time.Now()) // all at once
	}
	for _, name := range names {
		_ = c.Ask(ctx, name) // one that cannot be used is no reason to go without the others
	}
}

func (q *asks) streaming() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.connected
}

// ask returns what to wait for, nil if nothing.
func (q *asks) ask(name string, now time.Time) (*ask, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.askLocked(name, now)
}

func (q *asks) askLocked(name string, now time.Time) (*ask, error) {
	e := q.names[name]
	if e != nil {
		q.recent.MoveToFront(e)
		old := e.Value.(*ask)
		switch {
		case !old.answered(), old.err != nil && now.Sub(old.at) < answerHolds:
			return old, nil
		case old.err == nil && now.Sub(old.at) < answerHolds, old.absent && !q.connected:
			return nil, nil
		}
	}
	if q.waiting >= maxWaiting || e == nil && !q.roomLocked() {
		return nil, errTooManyAsks
	}
	a := &ask{name: name, done: make(chan struct{})}
	if e == nil {
		q.names[name] = q.recent.PushFront(a)
	} else {
		// A control plane that takes the name for known would not answer.
		if e.Value.(*ask).sent {
			q.leave = append(q.leave, name)
		}
		e.Value = a
	}
	q.waiting++
	q.enter = append(q.enter, name)
	q.notify()
	return a, nil
}

// renewAfter is how old what is known of a service in use may get. Our own control plane
// tells of endpoints that come to a service; to who follows on demand Istio's tells only
// of those that change or go.
const renewAfter = 10 * time.Second

// Renew asks for a name again, without waiting, if that was last done some time ago. It
// is for services, by "namespace/hostname", that connections are made to.
func (c *Client) Renew(name string) {
	if c.cfg.OnDemand {
		c.asks.renew(name, time.Now())
	}
}

func (q *asks) renew(name string, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	e := q.names[name]
	if e != nil && (!e.Value.(*ask).answered() || now.Sub(e.Value.(*ask).at) < renewAfter) || !q.connected {
		return
	}
	_, _ = q.askLocked(name, now) // there will be another connection
}

func (a *ask) answered() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

// roomLocked makes room for one more name, by the one that was not wanted for longest.
func (q *asks) roomLocked() bool {
	if len(q.names) < maxAsks {
		return true
	}
	for e := q.recent.Back(); e != nil; e = e.Prev() {
		a := e.Value.(*ask)
		if !a.answered() {
			continue
		}
		q.recent.Remove(e)
		delete(q.names, a.name)
		if a.sent {
			q.leave = append(q.leave, a.name)
		}
		return true
	}
	return false
}

func (q *asks) notify() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// restart is for a new stream: it returns the names to begin with, those without an
// answer. The others come back with what the client says it has, or when they are
// wanted again.
func (q *asks) restart() []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	var names []string
	for e := q.recent.Front(); e != nil; e = e.Next() {
		a := e.Value.(*ask)
		if a.sent = !a.answered(); a.sent {
			names = append(names, a.name)
		}
	}
	q.leave, q.enter, q.connected = nil, nil, true
	return names
}

// repeat asks for names of restart that the stream's first response has not answered. A
// control plane that is told of a version in the same message takes it for what is wanted:
// Istio's is silent about what is asked for anew and held, in the same version.
func (q *asks) repeat(names []string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, name := range names {
		if e := q.names[name]; e != nil && !e.Value.(*ask).answered() {
			q.leave, q.enter = append(q.leave, name), append(q.enter, name)
		}
	}
	if len(q.enter) > 0 {
		q.notify()
	}
}

// stopped notes that there is no stream: what is known to be absent stays so until
// there is one again, or nobody could leave the mesh while its control plane is away.
func (q *asks) stopped() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.connected = false
}

// due takes what is to be sent.
func (q *asks) due() (leave, enter []string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	leave, enter = q.leave, q.enter
	q.leave, q.enter = nil, nil
	for _, name := range enter {
		if e := q.names[name]; e != nil {
			e.Value.(*ask).sent = true
		}
	}
	return leave, enter
}

// answer wakes who waits for a name.
func (q *asks) answer(name string, absent bool, err error, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	e := q.names[name]
	if e == nil {
		return
	}
	a := e.Value.(*ask)
	if a.answered() { // it has come, or gone, since
		fresh := *a // who waited may still look at the old one
		fresh.absent, fresh.err, fresh.at = absent, err, now
		e.Value = &fresh
		return
	}
	a.absent, a.err, a.at = absent, err, now
	q.waiting--
	close(a.done)
}
