package proxy

import (
	"context"
	"net/netip"

	"github.com/warren-mesh/warren/proxy/relay"
	"github.com/warren-mesh/warren/proxy/route"
	"github.com/warren-mesh/warren/proxy/sockopt"
	"github.com/warren-mesh/warren/proxy/track"
	"github.com/warren-mesh/warren/xds/workload"
)

// passthrough serves a connection that came to the pod in plaintext. Whether
// that is allowed is for the policies to say: the client has no identity. It
// owns client and returns when the relay runs or all is over.
func (p *pod) passthrough(client *sockopt.Connection, transparent bool) {
	src := client.Peer()
	if !p.opened(track.Inbound, client, src) {
		return
	}
	dst, err := client.OriginalDst()
	var c *connection
	var self *workload.Workload
	if err == nil {
		c, self, err = p.plaintext(src, dst)
	}
	if err != nil {
		p.s.logs.early(track.Inbound, src, dst, err)
		refuse(client)
		p.closed(track.Inbound)
		return
	}
	app, err := p.connectPlain(c, self, dst, transparent)
	if err != nil {
		c.end(err)
		refuse(client)
		p.closed(track.Inbound)
		return
	}
	c.accepted = true
	c.relay(client, relay.TCP(app))
}

// plaintext registers the connection and counts it as opened.
func (p *pod) plaintext(src, dst netip.AddrPort) (*connection, *workload.Workload, error) {
	if route.IllegalPort(dst.Port()) {
		return nil, nil, errRecursive
	}
	view, self, err := p.local(p.hard)
	if err != nil {
		return nil, nil, err
	}
	c, err := p.track(track.Facts{Pod: p.uid, Direction: track.Inbound, Src: src, Dst: dst, Protocol: route.TCP.String()})
	if err != nil {
		return nil, nil, err
	}
	c.clientNear = true
	c.dstPod = self.Name
	client := view.WorkloadByAddr(workload.NetworkAddr{Network: p.s.cfg.Network, Addr: src.Addr()})
	if client != nil {
		c.srcPod = client.Name
	}
	l := labels{direction: track.Inbound, src: partyOf(client), dst: partyOf(self)}
	l.dst.principal = principal(self.Identity())
	l.withService(serviceOf(view, self, "", dst.Port()))
	c.open(l)
	return c, self, nil
}

func (p *pod) connectPlain(c *connection, self *workload.Workload, dst netip.AddrPort, transparent bool) (relay.App, error) {
	if err := p.authorize(c, self); err != nil {
		return nil, err
	}
	app, err := dialInbound(c.ctx, p, c, p.sockets.ConnectApart, dst, transparent)
	if err == nil && c.ctx.Err() != nil {
		_ = app.Close()
		err = context.Cause(c.ctx)
	}
	if err != nil {
		return nil, err
	}
	return app, nil
}
