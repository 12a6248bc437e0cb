package proxy

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"
	"weak"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/relay"
	"github.com/warren-mesh/warren/proxy/route"
	"github.com/warren-mesh/warren/proxy/track"
	"github.com/warren-mesh/warren/xds/workload"
)

// viaNode is what the access log says of a connection that stayed on the node.
const viaNode = "node"

// neighbour is the other end of a connection that needs no wire: its pod is
// served by this very proxy.
type neighbour struct {
	p      *pod
	self   *workload.Workload
	target netip.AddrPort
	client netip.AddrPort // as the application will see it
}

// neighbour finds the destination among the pods of this node and joins its
// work, which whoever gets it leaves. nil means that the connection takes the wire, as it may always do: because SAME_NODE asks
// for it, the destination is elsewhere or about to end, or one end cannot be
// proven to be who it is without a handshake.
func (p *pod) neighbour(client netip.AddrPort, d route.Decision, self *workload.Workload) *neighbour {
	if !p.s.cfg.SameNode || d.Protocol != route.HBONE || d.Waypoint || d.Destination == nil {
		return nil
	}
	// A pod can give its sockets any address. Across nodes the network would
	// show; here only those are believed that the control plane knows as its own.
	if !slices.Contains(self.Addresses, client.Addr()) {
		return nil
	}
	q := p.s.pods.serving(d.Destination)
	if q == nil || q.soft.Err() != nil {
		return nil
	}
	view := p.s.store.View()
	dst := q.find(view)
	if dst == nil || dst.UID != d.Destination.UID || dst.Protocol != workload.HBONE {
		return nil
	}
	in, refusal := route.Inbound(view, dst, d.Dial, d.Authority.String())
	if refusal != nil || in.Proxied || route.IllegalPort(in.Target.Port()) {
		return nil // the destination's own listener is to say so
	}
	// A pod of the same name that has ended is served for a while longer. A
	// connection made in its namespace to its successor's address would leave it,
	// in the open.
	if owns, err := q.sockets.Owns(in.Target.Addr()); err != nil || !owns {
		return nil
	}
	if !q.join() {
		return nil
	}
	return &neighbour{p: q, self: dst, target: in.Target, client: sameFamily(self, client, in.Target.Addr())}
}

// nearby says whether neighbour may find something, without finding out.
func (p *pod) nearby(d route.Decision) bool {
	return p.s.cfg.SameNode && d.Destination != nil && p.s.pods.serving(d.Destination) != nil
}

// sameFamily is the client as one sees it who is called by the other family.
func sameFamily(self *workload.Workload, client netip.AddrPort, target netip.Addr) netip.AddrPort {
	if client.Addr().Is4() == target.Is4() {
		return client
	}
	for _, a := range self.Addresses {
		if a.Is4() == target.Is4() {
			return netip.AddrPortFrom(a, client.Port())
		}
	}
	return client
}

// serving finds the pod of a workload on this node.
func (ps *pods) serving(w *workload.Workload) *pod {
	if ps.s.cfg.NodeName != "" && w.Node != ps.s.cfg.NodeName {
		return nil
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.byName[podKey{w.Namespace, w.Name, w.ServiceAccount}]
}

// join adds a piece of work to the pod's from outside of it, unless it takes no
// more; the caller says Done to p.work.
func (p *pod) join() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.soft.Err() != nil || p.hard.Err() != nil {
		return false
	}
	p.work.Add(1)
	return true
}

// podKey is what the node agent and the control plane both know of a pod.
type podKey struct{ namespace, name, serviceAccount string }

func keyOf(p *pod) podKey { return podKey{p.info.Namespace, p.info.Name, p.info.ServiceAccount} }

// errStatus is the outbound end's view of a refusal at the inbound end: what it
// would have been told over the wire.
func errStatus(code int) error { return &hbone.StatusError{Code: code} }

// connectHere makes the destination's half of a connection that stays on the
// node: the same checks in the same order as behind a tunnel. c is the source's
// half. On success both halves share the flow that the caller starts.
func (c *connection) connectHere(n *neighbour, d route.Decision, self *workload.Workload) (*connection, relay.App, error) {
	in, err := n.p.track(track.Facts{
		Pod: n.p.uid, Direction: track.Inbound, Src: n.client, Dst: n.target, Peer: self.Identity(),
		Protocol: route.HBONE.String(), Original: serviceHost(d),
	})
	if err != nil {
		return nil, nil, errStatus(http.StatusServiceUnavailable)
	}
	// Asked when it is tracked already: an identity that is withdrawn from now on finds it.
	if err := c.proveIdentities(n, d, self); err != nil {
		in.end(err)
		return nil, nil, err
	}
	in.dst, in.hbone, in.srcPod, in.dstPod, in.here = d.Dial, c.hbone, self.Name, n.self.Name, true
	in.clientNear, in.bytes = true, c.bytes // one flow, counted once, told by both
	in.open(inboundLabels(self, n.self, d))
	if err := n.p.authorize(in, n.self); err != nil {
		in.end(err)
		return nil, nil, errStatus(http.StatusUnauthorized)
	}
	ctx, done := c.patiently(in.ctx, d, since())
	defer done()
	app, err := dialInbound(ctx, n.p, in, n.p.sockets.ConnectLocal, n.target, n.p.transparent)
	if err == nil && in.ctx.Err() != nil {
		_ = app.Close()
		app, err = nil, in.ctx.Err()
	}
	if err != nil {
		in.end(err)
		return nil, nil, c.refusedHere(context.Cause(ctx))
	}
	return in, app, nil
}

// refusedHere is why the destination's application was not reached, when what was to
// reach it ended because of cause: nil if it did not. Who was cut by a policy has been
// refused, and is not to go elsewhere.
func (c *connection) refusedHere(cause error) error {
	if errors.Is(cause, errUnanswered) {
		return errUnanswered
	}
	return errStatus(cutStatus(cause))
}

func inboundLabels(src, dst *workload.Workload, d route.Decision) labels {
	l := labels{direction: track.Inbound, src: partyOf(src), dst: partyOf(dst), mtls: true}
	l.src.principal, l.dst.principal = principal(src.Identity()), principal(dst.Identity())
	l.withService(d.Service)
	return l
}

func serviceHost(d route.Decision) string {
	if d.ServiceAddressed && d.Service != nil {
		return d.Service.Hostname
	}
	return ""
}

// proveIdentities does what a handshake would: both ends hold valid
// certificates, each accepts the other's, and the destination is one that the
// decision expects.
func (c *connection) proveIdentities(n *neighbour, d route.Decision, self *workload.Workload) error {
	mine, err := c.p.identity(c.ctx, self)
	if err != nil {
		return err
	}
	theirs, err := c.identityOf(n, d)
	if err != nil {
		return err
	}
	if err := asNamed(mine, theirs, self.Identity(), d.Expected); err != nil {
		return err
	}
	if !c.p.s.proven.has(mine, theirs) {
		if at, err := acceptEachOther(mine, theirs, time.Now()); err != nil {
			c.p.s.metrics.svids.refuse(at, err)
			return err
		}
		c.p.s.proven.add(mine, theirs)
	}
	c.mu.Lock()
	c.shown = &proof{client: mine.Chain(), server: theirs.Chain(), to: n.p}
	c.mu.Unlock()
	return nil
}

// identityOf is the destination's certificate, for which one waits as for a handshake over
// the wire: while there is no other endpoint.
func (c *connection) identityOf(n *neighbour, d route.Decision) (*mtls.Identity, error) {
	ctx, done := c.patiently(c.ctx, d, func() (time.Time, bool) { return time.Time{}, false })
	defer done()
	i, err := n.p.identity(ctx, n.self)
	if err == nil {
		return i, nil
	}
	if cause := context.Cause(ctx); errors.Is(cause, errSilent) {
		return nil, cause
	}
	return nil, &neighbourError{leftTLS, err}
}

// asNamed checks that the certificates are of those whom the control plane names.
func asNamed(mine, theirs *mtls.Identity, self spiffeid.ID, expected route.Identities) error {
	switch {
	case mine.ID() != self:
		return &identityError{fmt.Errorf("the pod is %s now, not %s", mine.ID(), self)}
	case !expected.Contains(theirs.ID()):
		return &neighbourError{leftIdentity, &identityError{fmt.Errorf("it is %s now, which is not expected", theirs.ID())}}
	}
	return nil
}

// acceptEachOther is what the two sides of a handshake check of each other. It says which of them refuses.
func acceptEachOther(mine, theirs *mtls.Identity, now time.Time) (at track.Direction, err error) {
	if _, err := mine.VerifyPeer(theirs.Chain(), x509.ExtKeyUsageServerAuth, now); err != nil {
		return track.Outbound, &neighbourError{leftIdentity, &identityError{err}}
	}
	if _, err := theirs.VerifyPeer(mine.Chain(), x509.ExtKeyUsageClientAuth, now); err != nil {
		return track.Inbound, &identityError{err}
	}
	return 0, nil
}

// outboundHere carries a connection from socket to socket. On success the relay
// owns client.
func (p *pod) outboundHere(c *connection, n *neighbour, d route.Decision, self *workload.Workload, client accepted) error {
	c.here = true
	in, app, err := c.connectHere(n, d, self)
	if err != nil {
		n.p.work.Done()
		return err
	}
	c.taken(d)
	c.welcome()
	p.s.metrics.sameNode.Inc()
	p.work.Add(1)
	flow := p.s.relay.Start(client, relay.TCP(app), (*relay.Counters)(c.bytes), func(r relay.Result) {
		c.end(r.Err)
		in.end(r.Err)
		p.closed(track.Outbound)
		p.work.Done()
		n.p.work.Done()
	})
	c.ride(flow)
	in.ride(flow)
	return nil
}

// maxPairs bounds the memory of pairs.
const maxPairs = 4096

// pairs remembers which two certificates have accepted each other. It holds
// them weakly: a replaced certificate's key must not live on here. A full memory
// is emptied, not grown.
type pairs struct {
	mu sync.Mutex
	m  map[pair]struct{}
}

type pair [2]weak.Pointer[mtls.Identity]

func pairOf(a, b *mtls.Identity) pair { return pair{weak.Make(a), weak.Make(b)} }

func (p *pairs) has(a, b *mtls.Identity) bool {
	now := time.Now()
	if a.Expired(now) || b.Expired(now) {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.m[pairOf(a, b)]
	return ok
}

// forget is for when what a pair was judged by has changed.
func (p *pairs) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.m = nil
}

func (p *pairs) add(a, b *mtls.Identity) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil || len(p.m) >= maxPairs {
		p.m = make(map[pair]struct{})
	}
	p.m[pairOf(a, b)] = struct{}{}
}
