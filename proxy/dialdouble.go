package proxy

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/relay"
	"github.com/warren-mesh/warren/proxy/route"
	"github.com/warren-mesh/warren/proxy/sockopt"
	"github.com/warren-mesh/warren/proxy/track"
	"github.com/warren-mesh/warren/xds/workload"
)

// errInnerOver says that the inner tunnel has ended, and the outer stream with it.
var errInnerOver = errors.New("the inner tunnel has ended")

// dialDouble reaches a workload of another network. A stream through a tunnel to
// that network's gateway, which is shared like any other, leads to one of the
// service's endpoints; within it goes a tunnel to that endpoint, for this
// connection alone: the gateway chooses an endpoint for each stream, so a shared
// one would have them all at one.
//
// Between the two is a pair of sockets, so that the inner tunnel is like any other.
func (c *connection) dialDouble(d route.Decision, self *workload.Workload) (relay.Far, error) {
	far, err := c.dialBoth(d, self)
	l := outboundLabels(self, d)
	if err != nil {
		c.openOnce(l)
		return nil, err
	}
	if peer, perr := mtls.Peer(far.TLS()); perr == nil {
		l.dst.principal = principal(peer)
	}
	if b := route.ParseBaggage(far.Header(route.HeaderBaggage)); c.p.s.cfg.ResponseBaggage && b.WorkloadName != "" {
		who := l.dst.principal
		l.dst, l.told = partyTold(b), c.p.uid
		l.dst.principal, c.dstPod = who, b.WorkloadName
	}
	c.openOnce(l)
	return far, nil
}

// openOnce is open for a connection that may have been tried before.
func (c *connection) openOnce(l labels) {
	if c.series == nil {
		c.open(l)
	}
}

// dialBoth opens the outer stream and the inner one.
func (c *connection) dialBoth(d route.Decision, self *workload.Workload) (*hbone.Stream, error) {
	p := c.p
	header := connectHeader(c.guard.Facts.Src, self, d) // one trace for both
	outer, err := c.openStream(d, self, header)
	if err != nil {
		return nil, fmt.Errorf("network gateway %s: %w", d.Dial, err)
	}
	inner, err := c.openInner(outer, d, self, append(header, [2]string{route.HeaderForwardedNetwork, p.s.cfg.Network}))
	if err != nil {
		outer.Reset(err)
		if errors.Is(err, hbone.ErrClosed) || p.hard.Err() != nil {
			return nil, c.openError(d, err)
		}
		return nil, &behindError{fmt.Errorf("%s behind network gateway %s: %w", d.InnerAuthority, d.Dial, tunnelError(d.Dial, err))}
	}
	return inner, nil
}

// openInner has the workload behind the gateway accept a CONNECT. On error outer
// is the caller's to end.
func (c *connection) openInner(outer *hbone.Stream, d route.Decision, self *workload.Workload, header [][2]string) (*hbone.Stream, error) {
	p := c.p
	i, err := p.identity(c.ctx, self)
	if err != nil {
		return nil, err
	}
	if err := p.s.share.take(p); err != nil {
		return nil, err
	}
	if err := p.s.share.take(p); err != nil {
		p.s.share.give(p)
		return nil, err
	}
	near, far, err := sockopt.Pair()
	if err != nil {
		p.s.share.give(p)
		p.s.share.give(p)
		return nil, err
	}
	p.work.Add(2)
	bridge := p.s.relay.Start(near, outer, nil, func(relay.Result) {
		p.s.share.give(p)
		p.work.Done()
	})
	in := p.enter(c)
	there := d
	there.Gateway = route.Endpoint{} // who is silent is not the gateway, which has answered
	began := time.Now()
	ctx, done := c.patiently(c.ctx, there, func() (time.Time, bool) { return began, false })
	defer done()
	stream, err := hbone.Over(ctx, far, mtls.Client(i, d.InnerExpected), p.hboneConfig(),
		hbone.Request{Authority: d.InnerAuthority.String(), Header: header},
		func() {
			bridge.Cut(errInnerOver) // unless it ended in good order, as it should
			p.exit(in)
			p.s.share.give(p)
			p.work.Done()
		})
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, errSilent) {
		err = cause
	}
	p.s.metrics.svids.refuse(track.Outbound, err)
	if err == nil {
		certs := stream.TLS().PeerCertificates
		in.certs.Store(&certs)
	}
	return stream, err
}

// inner is the peer of an inner tunnel, to be judged again. A connection has no room for it.
type inner struct {
	c     *connection
	certs atomic.Pointer[[]*x509.Certificate] // nil: not known yet
}

func (p *pod) enter(c *connection) *inner {
	in := &inner{c: c}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.inners == nil {
		p.inners = make(map[*inner]struct{})
	}
	p.inners[in] = struct{}{}
	return in
}

func (p *pod) exit(in *inner) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.inners, in)
}

// judgeInners ends the connections whose peers in another network no handshake would accept now.
func (p *pod) judgeInners(i *mtls.Identity) {
	p.mu.Lock()
	all := slices.Collect(maps.Keys(p.inners))
	p.mu.Unlock()
	for _, in := range all {
		certs := in.certs.Load()
		if certs == nil {
			continue
		}
		if err := distrusts(i, *certs, x509.ExtKeyUsageServerAuth); err != nil {
			p.s.tracked.Cut(func(g *track.Guard) bool { return g.Owner == in.c }, err)
			p.s.metrics.svids.cut(track.Outbound, err)
		}
	}
}
