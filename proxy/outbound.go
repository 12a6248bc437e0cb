package proxy

import (
	"net"
	"net/netip"

	"github.com/warren-mesh/warren/proxy/route"
	"github.com/warren-mesh/warren/proxy/sockopt"
	"github.com/warren-mesh/warren/proxy/track"
	"github.com/warren-mesh/warren/xds/workload"
)

// outbound carries a connection that the pod made. It owns app and returns when
// the relay runs or all is over.
func (p *pod) outbound(app *net.TCPConn) {
	if !p.opened(track.Outbound, app) {
		return
	}
	dst, err := sockopt.OriginalDst(app)
	if err != nil {
		p.turnAway(app, dst, err, nil)
		return
	}
	p.outboundTo(app, dst, nil)
}

// turnAway ends a connection that was opened, before it is known where it goes.
func (p *pod) turnAway(app *net.TCPConn, dst netip.AddrPort, err error, answer func(error)) {
	p.s.logs.early(track.Outbound, addrOf(app.RemoteAddr()), dst, err)
	hangUp(app, err, answer)
	p.closed(track.Outbound)
}

// outboundTo is outbound for a connection that goes to dst. answer, unless it is
// nil, tells the client how that went, once.
func (p *pod) outboundTo(app *net.TCPConn, dst netip.AddrPort, answer func(error)) {
	src := addrOf(app.RemoteAddr())
	c, d, self, err := p.decideOutbound(app, src, dst)
	if err != nil {
		p.turnAway(app, dst, err, answer)
		return
	}
	c.answer = answer
	if n := p.neighbour(src, d, self); n != nil {
		p.outboundHere(c, n, d, self, app)
		return
	}
	far, err := c.dialOut(d, self)
	if err != nil {
		c.end(err)
		hangUp(app, err, answer)
		p.closed(track.Outbound)
		return
	}
	c.accepted = true
	c.welcome()
	c.relay(app, far)
}

// refuse closes an application's connection so that it sees an error and not
// the end of an answer.
func refuse(app *net.TCPConn) {
	_ = app.SetLinger(0) // fails on what is closed already
	_ = app.Close()
}

// decideOutbound says where the connection goes, and counts it as opened.
func (p *pod) decideOutbound(app *net.TCPConn, src, dst netip.AddrPort) (*connection, route.Decision, *workload.Workload, error) {
	var none route.Decision
	if route.Recursive(dst) || dst == addrOf(app.LocalAddr()) && dst.Port() == OutboundPort {
		return nil, none, nil, errRecursive // nobody redirected this: it was made to our port
	}
	view, self, err := p.speaker(p.hard)
	if err == nil {
		view, err = p.known(p.hard, view, self, dst.Addr())
	}
	if err != nil {
		return nil, none, nil, err
	}
	d, err := route.Outbound(view, self, route.Options{Network: p.s.cfg.Network}, src, dst)
	if err != nil {
		return nil, none, nil, err
	}
	if d, err = p.withAddress(p.hard, d, self, dst); err != nil {
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
