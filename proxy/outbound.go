package proxy

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

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

// outboundTo carries a connection to dst, or when that fails to one of more, and may
// wait. answer, unless it is nil, tells the client how that went, once. It owns app and
// returns when the relay runs or all is over.
func (p *pod) outboundTo(app accepted, src, dst netip.AddrPort, answer func(error), more ...netip.AddrPort) {
	if p.s.cfg.ConnectRetries == 0 {
		more = nil
	}
	began := time.Now()
	c, d, self, err := p.decideOutbound(p.hard, src, dst)
	for first := err; err != nil; {
		if len(more) == 0 || p.hard.Err() != nil || time.Since(began) > retryTime {
			p.turnAway(app, src, dst, first, answer)
			return
		}
		c, d, self, err = p.decideOutbound(p.hard, src, more[0])
		if err == nil {
			dst = more[0]
		}
		more = more[1:]
	}
	c.answer = answer
	if len(more) > 0 {
		if c.search == nil {
			c.search = &search{origDst: dst, began: began}
		}
		c.search.more = more
	}
	p.carry(c, d, self, app, nil)
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
	d, self, err := p.decide(ctx, src, dst, nil)
	if err != nil {
		return nil, none, nil, err
	}
	c, err := p.record(src, dst, d, self)
	if err != nil {
		return nil, none, nil, err
	}
	c.search = p.seek(d, dst)
	return c, d, self, nil
}

// decide says where a connection goes that has been to those endpoints before. An
// endpoint whose hostname has no address, or none that was not tried, is left for
// another one like one that refuses; where there is none, its error is what counts. With
// an error, the workload is as choose has it.
func (p *pod) decide(ctx context.Context, src, dst netip.AddrPort, tried []route.Endpoint) (route.Decision, *workload.Workload, error) {
	var first error
	began := time.Now()
	for n := 0; ; n++ {
		d, self, err := p.choose(ctx, src, dst, tried)
		if err != nil {
			return d, self, cmp.Or(first, err)
		}
		named := d.Attempt()
		if d, err = p.withAddress(ctx, d, self, dst, tried); err == nil {
			return d, self, nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil || named == (route.Endpoint{}) || n >= p.s.cfg.ConnectRetries || time.Since(began) > retryTime {
			return d, self, first
		}
		p.s.resting.add(named, everybody)
		tried = append(slices.Clip(tried), named)
	}
}

// choose is decide, with the names of workloads left as they are. With an error, there is
// no workload if it is not known what there is to choose among.
func (p *pod) choose(ctx context.Context, src, dst netip.AddrPort, tried []route.Endpoint) (route.Decision, *workload.Workload, error) {
	view, self, err := p.speaker(ctx)
	if err == nil {
		view, err = p.known(ctx, view, self, dst.Addr())
	}
	if err != nil {
		return route.Decision{}, nil, err
	}
	opts := route.Options{Network: p.s.cfg.Network, Tried: tried, Resting: p.s.resting.reports(p.account())}
	d, err := route.Outbound(view, self, opts, src, dst)
	return d, self, err
}

// record registers a connection that goes where d says, and counts it as opened.
func (p *pod) record(src, dst netip.AddrPort, d route.Decision, self *workload.Workload) (*connection, error) {
	c, err := p.track(track.Facts{
		Pod: p.uid, Direction: track.Outbound, Src: src, Dst: d.Dial, Protocol: d.Protocol.String(), Original: dst.String(),
	})
	if err != nil {
		return nil, err
	}
	c.clientNear = true
	c.srcPod, c.hbone = self.Name, d.Authority.String()
	if d.Destination != nil {
		c.dstPod = d.Destination.Name
	}
	if d.Protocol != route.DoubleHBONE { // who is there will be known when it is
		c.open(outboundLabels(self, d))
	}
	return c, nil
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
