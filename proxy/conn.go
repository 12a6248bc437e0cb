package proxy

import (
	"context"
	"net"
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
	ctx   context.Context // ends when the connection is cut
	abort context.CancelCauseFunc
	start time.Time
	guard *track.Guard
	bytes *track.Bytes // what its flow carries; the guard's own, but for the second half of a flow
	// clientNear: the client is the near end of the relay, so that what it sends
	// counts as sent.
	clientNear bool
	reserved   bool // a descriptor, for the socket that we make; its owner's until end

	// Set before open, constant afterwards.
	src, dst       netip.AddrPort
	hbone          string
	srcPod, dstPod string
	via            string // how it travelled, where that is not by the wire
	series         *series

	mu           sync.Mutex
	flow         *relay.Flow
	cut          error // why it was cut, once it was
	ended        bool
	sent, recved int64 // what settle has counted
}

// track registers a connection of the pod. It may be cut from then on; end must
// be called.
func (p *pod) track(f track.Facts) (*connection, error) {
	c := &connection{p: p, start: time.Now(), src: f.Src, dst: f.Dst}
	c.ctx, c.abort = context.WithCancelCause(p.hard)
	g, err := p.s.tracked.Add(f, c, c.cutFor)
	if err != nil {
		c.abort(nil)
		return nil, err
	}
	c.guard, c.bytes = g, &g.Bytes
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

// cutFor ends the connection for reason, whatever it is doing.
func (c *connection) cutFor(reason error) {
	c.mu.Lock()
	if c.cut == nil {
		c.cut = reason
	}
	flow := c.flow
	c.mu.Unlock()
	c.abort(reason)
	if flow != nil {
		flow.Cut(reason)
	}
}

// relay moves the bytes between near and far, which it owns, and ends the
// connection when that is over. It returns at once.
func (c *connection) relay(near *net.TCPConn, far relay.Far, done func()) {
	c.ride(c.p.s.relay.Start(near, far, (*relay.Counters)(c.bytes), func(r relay.Result) {
		c.end(r.Err)
		done()
	}))
}

// ride ties the connection to its flow: a cut goes there from here on.
func (c *connection) ride(flow *relay.Flow) {
	c.mu.Lock()
	c.flow = flow
	cut := c.cut
	c.mu.Unlock()
	if cut != nil { // before there was a flow to cut
		flow.Cut(cut)
	}
	c.abort(nil) // the context is not kept for a cut any more
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
	c.flow = nil
	c.mu.Unlock()
	c.abort(nil)
	c.settle()
	if c.reserved {
		c.p.s.share.give(c.p)
	}
	c.guard.Release()
	if c.series == nil {
		return // it was never opened; who ends it logs that
	}
	c.series.closed[flagOf(err)].Add(1)
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
		l: &c.series.labels, srcPod: c.srcPod, dstPod: c.dstPod, src: c.src, dst: c.dst, hbone: c.hbone, via: c.via, ended: ended, err: err,
	}
	if ended {
		l.duration = time.Since(c.start)
		l.sent, l.received = c.bytes.Sent.Load(), c.bytes.Received.Load()
		if c.clientNear && c.series.labels.direction == track.Inbound {
			l.sent, l.received = l.received, l.sent // the pod is the far end
		}
	}
	return l
}
