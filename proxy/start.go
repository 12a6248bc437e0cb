package proxy

import (
	"context"
	"errors"

	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/ready"
	"github.com/warren-mesh/warren/proxy/route"
	"github.com/warren-mesh/warren/proxy/sockopt"
	"github.com/warren-mesh/warren/proxy/track"
	"github.com/warren-mesh/warren/xds/workload"
)

// atOnce is the context of what may not wait: it has ended.
var atOnce = func() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("there is no time to wait"))
	return ctx
}()

// outbound carries a connection that the pod made. It owns app. A loop calls it,
// which cannot wait: a decision that can be made at once and a tunnel that is there
// need no goroutine, anything else has one.
func (p *pod) outbound(app *sockopt.Connection, turn *ready.Turn) {
	if !p.opened(track.Outbound, app, app.Peer()) {
		return
	}
	src := app.Peer()
	dst, err := redirectedTo(app)
	if err != nil {
		p.turnAway(app, src, dst, err, nil)
		return
	}
	c, d, self, err := p.decideOutbound(atOnce, src, dst)
	switch {
	case err != nil:
		p.work.Go(func() { p.outboundTo(app, src, dst, nil) })
	case c.startStream(d, self, app, turn):
		return
	default:
		p.work.Go(func() { p.carry(c, d, self, app, nil) })
	}
	turn.Woke()
}

// startStream asks the decision's peer for a stream, if there is a tunnel to it, and
// leaves it to the answer to start the relay. It returns false when it has done
// nothing.
func (c *connection) startStream(d route.Decision, self *workload.Workload, app *sockopt.Connection, turn *ready.Turn) bool {
	if d.Protocol != route.HBONE || c.p.nearby(d) {
		return false
	}
	key, err := c.streamTo(atOnce, d, self)
	if err != nil {
		return false
	}
	c.p.work.Add(1)
	req := hbone.Request{Authority: c.hbone, Header: connectHeader(c.guard.Facts.Src, self, d), Late: c.late(d), Patience: answerPatience}
	giveUp, then, ok := c.p.pool.Start(key, req, func(far *hbone.Stream, err error) {
		c.started(d, self, app, far, err)
		c.p.work.Done()
	})
	if !ok {
		c.p.work.Done()
		return false
	}
	if then != nil {
		turn.Later(then)
	}
	c.aborts(giveUp)
	return true
}

// started is the answer to startStream; it must not block.
func (c *connection) started(d route.Decision, self *workload.Workload, app *sockopt.Connection, far *hbone.Stream, err error) {
	switch {
	case err == nil:
		c.acceptedBy(d, app, far)
	case hbone.Again(err):
		c.p.work.Go(func() { c.p.carry(c, d, self, app, nil) })
	case c.search != nil:
		err = c.openError(d, err)
		c.p.work.Go(func() { c.p.carry(c, d, self, app, err) })
	default:
		c.lost(c.openError(d, err), app)
	}
}

// lost ends a connection that nobody has accepted.
func (c *connection) lost(err error, app accepted) {
	c.end(err)
	hangUp(app, err, c.answer)
	c.p.closed(track.Outbound)
}

// aborts has giveUp called when the connection is cut before it has a flow.
func (c *connection) aborts(giveUp func(error)) {
	c.mu.Lock()
	cut := c.cut
	if abort := c.abort; abort != nil {
		c.abort = func(err error) {
			abort(err)
			giveUp(err)
		}
	}
	c.mu.Unlock()
	if cut != nil {
		giveUp(cut)
	}
}
