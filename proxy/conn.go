package proxy

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/warren-mesh/warren/proxy/relay"
	"github.com/warren-mesh/warren/proxy/track"
)

// connection is one proxied connection from the moment it is known whose it is
// until its line in the access log is written.
type connection struct {
	p     *pod
	start time.Duration // of the server's life
	guard track.Guard
	bytes *track.Bytes // what its flow carries; the guard's own, but for the second half of a flow
	// clientNear: the client is the near end of the relay, so that what it sends
	// counts as sent.
	clientNear bool
	accepted   bool        // near was accepted, and counts as open until the relay ends
	here       bool        // it stays on the node
	reserved   bool        // a descriptor, for the socket that we make; its owner's until end
	ended      bool        // guarded by mu; here, where it takes no room
	answer     func(error) // tells the client how connecting went; nil: it sees that

	// Until there is a flow: ctx ends when the connection is cut, which abort does.
	// What waits for traffic holds no context.
	ctx   context.Context
	abort context.CancelCauseFunc // guarded by mu

	// Set before open, constant afterwards.
	dst            netip.AddrPort // as the client sees it
	hbone          string
	srcPod, dstPod string
	series         *series
	search         *search // of an endpoint that accepts; nil when there is nothing to say of it

	mu           sync.Mutex
	flow         *relay.Flow
	cut          error  // why it was cut, once it was
	shown        *proof // nil: it goes through a tunnel, or in the clear
	sent, recved int64  // what settle has counted
}

// track registers a connection of the pod. It may be cut from then on; end must
// be called.
func (p *pod) track(f track.Facts) (*connection, error) {
	c := &connection{p: p, start: time.Since(p.s.born), dst: f.Dst}
	c.bytes = &c.guard.Bytes
	c.ctx, c.abort = context.WithCancelCause(p.hard)
	if err := p.s.tracked.Add(&c.guard, f, c); err != nil {
		c.abort(nil)
		return nil, err
	}
	return c, nil
}

// reserve takes a descriptor out of the pod's share for the connection's second
// socket; end gives it back.
func (c *connection) reserve() error {
	err := c.p.s.share.take(c.p)
	c.reserved = err == nil
	return err
}

// open counts the connection, under its labels.
func (c *connection) open(l labels) {
	s := c.p.s.metrics.of(l)
	s.opened.Add(1)
	c.mu.Lock()
	c.series = s
	c.mu.Unlock()
	c.p.s.logs.access(c.line(nil, false))
}

// Cut implements track.Owner: it ends the connection for reason, whatever it is
// doing.
func (c *connection) Cut(reason error) {
	c.mu.Lock()
	if c.cut == nil {
		c.cut = reason
	}
	flow, abort := c.flow, c.abort
	c.mu.Unlock()
	if abort != nil {
		abort(reason)
	}
	if flow != nil {
		flow.Cut(reason)
	}
}

// relay moves the bytes between near and far, which it owns, and ends the
// connection when that is over. It returns at once.
func (c *connection) relay(near relay.App, far relay.Far) {
	c.p.work.Add(1)
	c.ride(c.p.s.relay.Start(near, far, (*relay.Counters)(c.bytes), c.over))
}

// over is the end of relay.
func (c *connection) over(r relay.Result) {
	c.end(r.Err)
	if c.accepted {
		c.p.closed(c.guard.Facts.Direction)
	}
	c.p.work.Done()
}

// ride ties the connection to its flow: a cut goes there from here on.
func (c *connection) ride(flow *relay.Flow) {
	c.mu.Lock()
	if !c.ended {
		c.flow = flow
	}
	cut, abort := c.cut, c.abort
	c.ctx, c.abort = nil, nil
	c.mu.Unlock()
	if cut != nil { // before there was a flow to cut
		flow.Cut(cut)
	}
	if abort != nil {
		abort(nil)
	}
}

// end counts and logs the end of the connection; err is what it ended with, if
// that was not in good order. Only the first call counts.
func (c *connection) end(err error) {
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return
	}
	c.ended = true
	if c.cut != nil {
		err = c.cut // the rest is only its consequence
	}
	abort := c.abort
	c.flow = nil
	c.mu.Unlock()
	if abort != nil {
		abort(nil)
	}
	c.settle()
	if c.reserved {
		c.p.s.share.give(c.p)
	}
	c.guard.Release()
	if c.series == nil {
		return // it was never opened; who ends it logs that
	}
	c.series.end(flagOf(err))
	c.p.s.logs.access(c.line(err, true))
}

// settle adds what the connection carried since the last time to its series.
func (c *connection) settle() {
	c.mu.Lock()
	if c.series == nil {
		c.mu.Unlock()
		return
	}
	sent, recved := c.bytes.Sent.Load(), c.bytes.Received.Load()
	newSent, newRecved := sent-c.sent, recved-c.recved
	c.sent, c.recved = sent, recved
	c.mu.Unlock()
	if !c.clientNear {
		newSent, newRecved = newRecved, newSent
	}
	c.series.fromClient.Add(newSent)
	c.series.fromServer.Add(newRecved)
}

func (c *connection) line(err error, ended bool) *accessLine {
	l := &accessLine{
		l: &c.series.labels, srcPod: c.srcPod, dstPod: c.dstPod, src: c.guard.Facts.Src, dst: c.dst, hbone: c.hbone, ended: ended, err: err,
	}
	if c.here {
		l.via = viaNode
	}
	if ended {
		l.tried = c.search.text()
		l.duration = time.Since(c.p.s.born) - c.start
		l.sent, l.received = c.bytes.Sent.Load(), c.bytes.Received.Load()
		if c.clientNear && c.series.labels.direction == track.Inbound {
			l.sent, l.received = l.received, l.sent // the pod is the far end
		}
	}
	return l
}
