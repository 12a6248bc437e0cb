package proxy

import (
	"context"
	"net/netip"

	"github.com/warren-mesh/warren/proxy/route"
	"github.com/warren-mesh/warren/proxy/sockopt"
	"github.com/warren-mesh/warren/proxy/track"
	"github.com/warren-mesh/warren/xds/workload"
)

// turnAway ends a connection that was opened, before it is known where it goes.
func (p *pod) turnAway(app accepted, src, dst netip.AddrPort, err error, answer func(error)) {
	p.s.logs.early(track.Outbound, src, dst, err)
	hangUp(app, err, answer)
	p.closed(track.Outbound)
}

// outboundTo carries a connection to dst and may wait. answer, unless it is nil,
// tells the client how that went, once. It owns app and returns when the relay runs
// or all is over.
func (p *pod) outboundTo(app accepted, src, dst netip.AddrPort, answer func(error)) {
	c, d, self, err := p.decideOutbound(p.hard, src, dst)
	if err != nil {
		p.turnAway(app, src, dst, err, answer)
		return
	}
	c.answer = answer
	p.carry(c, d, self, app)
}

// carry has the destination accept the connection, and starts the relay. It owns
// app and returns when the relay runs or all is over.
func (p *pod) carry(c *connection, d route.Decision, self *workload.Workload, app accepted) {
	if n := p.neighbour(c.guard.Facts.Src, d, self); n != nil {
		p.outboundHere(c, n, d, self, app)
		return
	}
	far, err := c.dialOut(d, self)
	if err != nil {
		c.lost(err, app)
		return
	}
	c.accepted = true
	c.welcome()
	c.relay(app, far)
}

// redirectedTo is where the application wanted a connection to go that came to our
// port.
func redirectedTo(app *sockopt.Connection) (netip.AddrPort, error) {
	dst, err := app.OriginalDst()
	if err == nil && madeToUs(app, dst) {
		err = errRecursive
	}
	return dst, err
}

// decideOutbound says where the connection goes, and counts it as opened. What it
// has to wait for it waits for until ctx ends.
func (p *pod) decideOutbound(ctx context.Context, src, dst netip.AddrPort) (*connection, route.Decision, *workload.Workload, error) {
	var none route.Decision
	if route.Recursive(dst) {
		return nil, none, nil, errRecursive
	}
	view, self, err := p.speaker(ctx)
	if err == nil {
		view, err = p.known(ctx, view, self, dst.Addr())
	}
	if err != nil {
		return nil, none, nil, err
	}
	d, err := route.Outbound(view, self, route.Options{Network: p.s.cfg.Network}, src, dst)
	if err != nil {
		return nil, none, nil, err
	}
	if d, err = p.withAddress(ctx, d, self, dst); err != nil {
		return nil, none, nil, err
	}
	c, err := p.track(track.Facts{
		Pod: p.uid, Direction: track.Outbound, Src: src, Dst: d.Dial, Protocol: d.Protocol.String(), Original: dst.String(),
	})
	if err != nil {
		return nil, none, nil, err
	}
	c.clientNear = true
	c.srcPod, c.hbone = self.Name, d.Authority.String()
	if d.Destination != nil {
		c.dstPod = d.Destination.Name
	}
	if d.Protocol != route.DoubleHBONE { // who is there will be known when it is
		c.open(outboundLabels(self, d))
	}
	return c, d, self, nil
}

// madeToUs says whether nobody redirected this connection: it was made to our port.
func madeToUs(app *sockopt.Connection, dst netip.AddrPort) bool {
	if dst.Port() != OutboundPort {
		return false
	}
	local, err := app.Local()
	return err != nil || dst == local
}

func outboundLabels(self *workload.Workload, d route.Decision) labels {
	l := labels{direction: track.Outbound, src: partyOf(self), dst: partyOf(d.Destination), mtls: d.Protocol != route.TCP}
	if l.mtls {
		l.src.principal = principal(self.Identity())
	}
	if d.Destination != nil {
		l.dst.principal = principal(d.Destination.Identity())
	}
	l.withService(d.Service)
	return l
}
