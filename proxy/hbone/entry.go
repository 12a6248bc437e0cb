package hbone

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"
)

// entry is what the pool knows of one key. All of it is guarded by the pool's mu.
type entry struct {
	key     Key
	members []*member
	limit   int      // streams at a time on a tunnel, as the peer said last; 0: it has not
	dial    *dialing // the one to wait for, or nil
	dials   int      // goroutines dialing; more than one only when one was given up
}

// member is a tunnel in the pool. What the tunnel says of itself is copied here
// whenever it changes, so that choosing one needs no tunnel's lock.
type member struct {
	t        *tunnel
	e        *entry
	seq      uint64      // age: later tunnels have higher ones
	streams  int         // open now
	pending  int         // places given out to Opens that have not opened yet
	limit    int         // streams at a time
	gone     bool        // takes no more streams
	seasoned bool        // has lost its last stream at least once
	used     bool        // has carried a stream
	err      error       // why it ended
	idle     *time.Timer // runs while it has no streams
	rest     uint64      // when it became idle, by the pool's count
	expiry   *time.Timer // runs until it retires; nil if it does not
}

// dialing is one attempt to make a tunnel, and who waits for it.
type dialing struct {
	start   time.Time
	done    chan struct{}
	m       *member // the outcome, set before done is closed
	err     error   // or this
	era     uint64  // the pool's, when it began
	late    bool    // Retire was called since
	waiters int
	cancel  context.CancelCauseFunc
}

var errNoStreams = errors.New("the peer ends every new tunnel at once, or takes no streams on it")

// acquire takes a place on a tunnel for key that is younger than after, dialing
// one if need be. seasoned: the tunnel had been idle before.
func (p *Pool) acquire(ctx context.Context, key Key, after uint64) (m *member, seasoned bool, err error) {
	spare := true // a tunnel that is not busy may be dialed
	for {
		p.mu.Lock()
		if p.ctx.Err() != nil {
			p.mu.Unlock()
			return nil, false, ErrClosed
		}
		e := p.keys[key]
		if e == nil {
			e = &entry{key: key}
			p.keys[key] = e
		}
		m, busy := e.pick(after)
		wanted := busy && spare && e.open() < maxBusy
		if m != nil && !wanted {
			m.pending++
			seasoned := m.seasoned
			p.mu.Unlock()
			return m, seasoned, nil
		}
		if e.dial == nil {
			p.startDialLocked(e)
		}
		d := e.dial
		spare = false
		if wanted {
			p.mu.Unlock()
			d.waitAWhile(ctx) // whatever comes of it: a busy tunnel is better than none
			continue
		}
		d.waiters++
		p.mu.Unlock()
		if err := p.wait(ctx, e, d); err != nil {
			return nil, false, err
		}
	}
}

// waitAWhile waits for a dial until it is late, which it may be already. Who does is
// no waiter: the dial goes on for those that come after.
func (d *dialing) waitAWhile(ctx context.Context) {
	late := time.NewTimer(spareWait - time.Since(d.start))
	defer late.Stop()
	select {
	case <-d.done:
	case <-late.C:
	case <-ctx.Done():
	}
}

// open counts the tunnels that take streams; retired ones may have theirs for hours.
func (e *entry) open() (n int) {
	for _, m := range e.members {
		if !m.gone {
			n++
		}
	}
	return n
}

// pick chooses among the tunnels with a place left: the oldest that is not busy, so
// that what begins together shares one and the others are there for what comes
// later; of busy ones that with the fewest streams.
func (e *entry) pick(after uint64) (best *member, busy bool) {
	for _, m := range e.members { // the oldest first
		if m.gone || m.seq <= after || m.streams+m.pending >= m.limit {
			continue
		}
		if !m.t.isBusy() {
			return m, false
		}
		if best == nil || m.streams+m.pending < best.streams+best.pending {
			best = m
		}
	}
	return best, best != nil
}

// wait waits for a dial. Its error goes to all who wait now, once; whoever
// comes later dials anew. When the last waiter leaves the dial is given up.
func (p *Pool) wait(ctx context.Context, e *entry, d *dialing) error {
	select {
	case <-d.done:
		if d.err != nil {
			return d.err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if d.m.gone && !d.m.used && !d.late {
			return &TunnelError{Err: cmp.Or(d.m.err, errNoStreams)}
		}
		return nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if d.waiters--; d.waiters == 0 && e.dial == d {
		e.dial = nil
		d.cancel(context.Cause(ctx))
	}
	return context.Cause(ctx)
}

// startDialLocked starts a dial for e.
func (p *Pool) startDialLocked(e *entry) {
	ctx, cancel := context.WithCancelCause(p.ctx)
	d := &dialing{start: time.Now(), era: p.era, done: make(chan struct{}), cancel: cancel}
	e.dial = d
	e.dials++
	p.wg.Go(func() {
		t, err := p.connect(ctx, e.key)
		cancel(nil)
		if m := p.settle(e, d, t, err); m != nil {
			p.expire(m)
			t.begin()
			p.begun(m)
			_ = t.run() // its streams got the error
			p.remove(m)
		}
	})
}

// connect makes a tunnel.
func (p *Pool) connect(ctx context.Context, key Key) (*tunnel, error) {
	if g := p.cfg.Gate; g != nil {
		peer := peerKey{addr: key.Dst.Addr().Unmap(), client: true}
		if err := g.enter(ctx, peer, g.patience); err != nil {
			return nil, &TLSError{Peer: key.Dst.String(), Err: err}
		}
		defer g.leave(peer)
	}
	conn, tc, err := p.dial(ctx, key)
	if err != nil {
		return nil, &ConnectError{Dst: key.Dst, Err: err}
	}
	return newTunnel(ctx, conn, tc, p.cfg, true)
}

// settle ends a dial: the tunnel joins its entry, or the error goes to who waits.
func (p *Pool) settle(e *entry, d *dialing, t *tunnel, err error) *member {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer close(d.done)
	if e.dial == d {
		e.dial = nil
	}
	e.dials--
	if err == nil && p.ctx.Err() != nil {
		t.free()
		err = ErrClosed
	}
	if err != nil {
		d.err = err
		p.dropIfEmptyLocked(e)
		return nil
	}
	p.seq++
	m := &member{t: t, e: e, seq: p.seq, limit: cmp.Or(e.limit, p.cfg.PoolStreams)}
	m.idle = time.AfterFunc(p.cfg.IdleRelease, func() { p.releaseIdle(m) })
	t.onChange = func() { p.changed(m) }
	e.members = append(e.members, m)
	d.m = m
	d.late = d.era != p.era
	m.gone = d.late
	p.tunnels++
	p.trimLocked()
	return m
}

// begun has a tunnel close that Retire has overtaken.
func (p *Pool) begun(m *member) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m.gone {
		p.idleLocked(m)
	}
}

// maxTunnels is how many tunnels a pool keeps, as ztunnel's: an application that calls
// everybody once must not leave a descriptor and two sessions' memory for each.
const maxTunnels = 500

// trimLocked lets the tunnel go that has been idle for longest when there are too many.
// Those with streams stay: each has a connection that its pod's share counts.
func (p *Pool) trimLocked() {
	if p.tunnels <= p.most {
		return
	}
	var oldest *member
	for _, e := range p.keys {
		for _, m := range e.members {
			if m.used && !m.gone && m.streams == 0 && m.pending == 0 && (oldest == nil || m.rest < oldest.rest) {
				oldest = m
			}
		}
	}
	if oldest != nil {
		oldest.gone = true
		p.idleLocked(oldest)
	}
}

// expire has a tunnel retire when its time is over: it is given no more streams,
// and closed after its last one.
func (p *Pool) expire(m *member) {
	if p.cfg.Until == nil {
		return
	}
	end := p.cfg.Until(m.e.key, m.t.state())
	if end.IsZero() {
		return
	}
	m.expiry = time.AfterFunc(time.Until(end), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		m.gone = true
		p.idleLocked(m)
	})
}

// release gives back the place taken by acquire: by now the stream counts
// itself, or there is none.
func (p *Pool) release(m *member) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m.pending--
	p.idleLocked(m)
}

// idleLocked restarts the idle time of a tunnel without streams. One that takes
// no more has nothing to wait for.
func (p *Pool) idleLocked(m *member) {
	switch {
	case m.streams > 0 || m.pending > 0:
	case m.gone:
		m.idle.Reset(0)
	default:
		p.rests++
		m.rest = p.rests
		m.idle.Reset(p.cfg.IdleRelease)
	}
}

// changed copies a tunnel's state; t.mu is held.
func (p *Pool) changed(m *member) {
	t := m.t
	streams, limit := t.h2.Streams(), min(t.h2.Capacity(), p.cfg.PoolStreams)
	gone := t.err != nil || t.deaf || t.closing || t.h2.GoingAway()
	p.mu.Lock()
	defer p.mu.Unlock()
	// What is opened before a tunnel's SETTINGS come, and is too much, is refused: a peer
	// is taken to allow what it last did.
	if t.h2.Greeted() {
		m.e.limit = limit
	} else {
		limit = m.limit
	}
	if streams == m.streams && limit == m.limit && gone == m.gone {
		return
	}
	ended := streams == 0 && m.streams > 0
	m.used = m.used || streams > 0
	m.seasoned = m.seasoned || ended
	// A tunnel on which the peer allows no stream at all is of no use, and kept it
	// would let a peer hold as many as we dial.
	gone = gone || limit == 0 && streams == 0
	became := gone && !m.gone
	m.gone = m.gone || gone
	m.streams, m.limit, m.err = streams, limit, t.err
	switch {
	case streams > 0:
		m.idle.Stop()
	case ended || became:
		p.idleLocked(m)
		p.checkQuietLocked()
	}
}

// releaseIdle closes a tunnel whose idle time is over, unless a stream is about
// to be opened on it.
func (p *Pool) releaseIdle(m *member) {
	p.mu.Lock()
	busy := m.pending > 0 || m.streams > 0
	m.gone = m.gone || !busy
	p.mu.Unlock()
	if !busy {
		m.t.closeIdle()
	}
}

// remove takes an ended tunnel out of the pool.
func (p *Pool) remove(m *member) {
	m.idle.Stop()
	if m.expiry != nil {
		m.expiry.Stop()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	e := m.e
	e.members = slices.DeleteFunc(e.members, func(x *member) bool { return x == m })
	m.streams, m.gone = 0, true
	p.tunnels--
	p.dropIfEmptyLocked(e)
	p.checkQuietLocked()
}

// dropIfEmptyLocked forgets a key with nothing behind it.
func (p *Pool) dropIfEmptyLocked(e *entry) {
	if len(e.members) == 0 && e.dials == 0 {
		delete(p.keys, e.key)
	}
}
