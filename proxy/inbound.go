package proxy

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/rbac"
	"github.com/warren-mesh/warren/proxy/route"
	"github.com/warren-mesh/warren/proxy/track"
	"github.com/warren-mesh/warren/xds/workload"
)

// tunnel is one accepted HBONE connection.
type tunnel struct {
	p           *pod
	src, dst    netip.AddrPort
	transparent bool

	term   context.Context // see pod.tenure
	drain  context.CancelFunc
	kill   context.CancelCauseFunc
	certs  atomic.Pointer[[]*x509.Certificate] // the client's; set by its first request
	id     atomic.Pointer[spiffeid.ID]         // who it is; likewise, and one text for all connections
	seen   atomic.Bool                         // a request came, so the handshake was good
	expiry sync.Once
	timer  *time.Timer // runs until the peer's certificate ends; set by expiry
	born   time.Time
	judge  sync.Once
	late   error // set by judge: why a peer that said nothing for long is not served
}

// inbound serves a tunnel until it ends. It owns conn.
func (p *pod) inbound(conn *net.TCPConn, transparent bool) {
	if !p.opened(track.Inbound, conn, addrOf(conn.RemoteAddr())) {
		return
	}
	defer p.closed(track.Inbound)
	if p.tunnels.Add(1) > maxTunnels {
		p.tunnels.Add(-1)
		refuse(conn)
		return
	}
	defer p.tunnels.Add(-1)
	term := p.tenure()
	ctx, drain := context.WithCancel(term)
	defer drain()
	hard, kill := context.WithCancelCause(p.hard)
	defer kill(nil)
	t := &tunnel{p: p, src: addrOf(conn.RemoteAddr()), dst: addrOf(conn.LocalAddr()), transparent: transparent, term: term, drain: drain, kill: kill, born: time.Now()}
	t.join()
	defer t.leave()
	err := hbone.Serve(hard, ctx, conn, p.serverTLS, p.hboneConfig(), t)
	p.s.metrics.svids.cut(track.Inbound, context.Cause(hard))
	t.expiry.Do(func() {}) // no timer is set from here on
	if t.timer != nil {
		t.timer.Stop()
	}
	if err == nil || p.hard.Err() != nil {
		return
	}
	var tlsErr *hbone.TLSError
	switch {
	case errors.As(err, &tlsErr) && !t.seen.Load():
		p.s.metrics.svids.refuse(track.Inbound, err)
		p.s.logs.early(track.Inbound, t.src, t.dst, &wordedError{word: "tls handshake error: ", err: err, cause: tlsErr.Err})
	default:
		p.log.Debug("tunnel ended", "src.addr", t.src, "dst.addr", t.dst, "err", err)
	}
}

// Connect implements hbone.Handler.
func (t *tunnel) Connect(in *hbone.Incoming) {
	t.seen.Store(true)
	t.expiry.Do(func() { t.timer = t.endWith(in) })
	t.p.work.Go(func() { t.serve(in) })
}

// endWith has the tunnel drain when a certificate of its ends: the next one is
// made with a new certificate.
func (t *tunnel) endWith(in *hbone.Incoming) *time.Timer {
	certs := in.TLS().PeerCertificates
	if len(certs) == 0 {
		return nil
	}
	t.certs.Store(&certs)
	return time.AfterFunc(time.Until(tunnelEnd(certs[0], t.p.heldIdentity())), t.drain)
}

// tunnelEnd is when the first of both ends' certificates is over.
func tunnelEnd(peer *x509.Certificate, own *mtls.Identity) time.Time {
	if own != nil && own.NotAfter().Before(peer.NotAfter) {
		return own.NotAfter()
	}
	return peer.NotAfter
}

// serve answers one CONNECT: where it goes, whether it may, connect, 200, relay.
func (t *tunnel) serve(in *hbone.Incoming) {
	if err := t.stillGood(); err != nil {
		t.p.s.logs.early(track.Inbound, t.src, t.dst, err)
		in.Reject(http.StatusUnauthorized)
		t.kill(err)
		return
	}
	r, refusal := t.resolve(in)
	if refusal != nil {
		t.p.s.logs.early(track.Inbound, t.src, t.dst, refusal.Err)
		in.Reject(refusal.Status)
		return
	}
	c := r.conn
	if t.overtaken() { // asked when c is tracked already: what is cut from now on finds it
		r.refuse(in, http.StatusServiceUnavailable, errWithdrawn)
		return
	}
	stop := context.AfterFunc(c.ctx, func() { in.Reject(cutStatus(context.Cause(c.ctx))) })
	defer stop()
	if err := t.p.authorize(c, r.self); err != nil {
		r.refuse(in, http.StatusUnauthorized, err)
		return
	}
	c.open(r.labels)
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	in.OnGone(cancel)
	app, err := t.dial(ctx, &r)
	if err == nil && !stop() {
		_ = app.Close() // cut, and answered, in this moment
		err = context.Cause(c.ctx)
	}
	if err != nil {
		in.Reject(http.StatusServiceUnavailable)
		c.end(err)
		return
	}
	var header [][2]string
	if b := route.BaggageOf(r.self).String(); t.p.s.cfg.ResponseBaggage && b != "" {
		header = [][2]string{{"baggage", b}}
	}
	far := in.Accept(header)
	if r.caller.native {
		far.TakeResetsAsEnds()
	}
	c.relay(app, far)
}

// cutStatus answers a request that was cut before it was answered.
func cutStatus(reason error) int {
	if errors.Is(reason, errPolicyChange) {
		return http.StatusUnauthorized
	}
	return http.StatusServiceUnavailable
}

// resolved is a CONNECT whose target is known.
type resolved struct {
	conn *connection
	self *workload.Workload
	route.InboundDecision
	labels labels
	caller caller
}

// refuse ends a connection that is not let in. It is counted, but what the peer says of
// itself is not: it could say something else in each request.
func (r *resolved) refuse(in *hbone.Incoming, status int, err error) {
	if r.labels.told != "" {
		r.labels.untell()
	}
	r.conn.open(r.labels)
	in.Reject(status)
	r.conn.end(err)
}

func (t *tunnel) resolve(in *hbone.Incoming) (resolved, *route.Refusal) {
	unavailable := func(err error) (resolved, *route.Refusal) {
		return resolved{}, &route.Refusal{Status: http.StatusServiceUnavailable, Err: err}
	}
	peer, err := t.peerOf(in)
	if err != nil { // the handshake would have failed
		return resolved{}, &route.Refusal{Status: http.StatusUnauthorized, Err: err}
	}
	view, self, err := t.p.local(t.p.hard)
	if err == nil {
		view, err = t.p.knownInbound(t.p.hard, view, self, t.dst.Addr(), in.Authority)
	}
	if err != nil {
		return unavailable(err)
	}
	d, refusal := route.Inbound(view, self, t.dst, in.Authority)
	if refusal != nil {
		return resolved{}, refusal
	}
	if route.IllegalPort(d.Target.Port()) {
		return unavailable(errRecursive)
	}
	if !t.p.admits(d.Target.Port()) {
		return unavailable(fmt.Errorf("port %d is not open to the mesh: of the proxy's own pod there are the metrics only, at port %d", d.Target.Port(), t.p.s.cfg.Stats.Port()))
	}
	host := hostOf(in)
	c, err := t.p.track(track.Facts{
		Pod: t.p.uid, Direction: track.Inbound, Src: t.src, Dst: d.Target, Peer: peer,
		Protocol: route.HBONE.String(), Original: host,
	})
	if err != nil {
		return unavailable(err)
	}
	c.dst, c.hbone, c.dstPod = t.dst, in.Authority, self.Name
	l := labels{direction: track.Inbound, dst: partyOf(self), mtls: true}
	who := t.source(in, view)
	if l.src, c.srcPod = who.party, who.name; who.told {
		l.told = t.p.uid
	}
	l.src.principal, l.dst.principal = principal(peer), principal(self.Identity())
	service := d.Service
	if service == nil {
		service = serviceOf(view, self, host, d.Target.Port())
	}
	l.withService(service)
	return resolved{c, self, d, l, who}, nil
}

// peerOf is who the tunnel's client is.
func (t *tunnel) peerOf(in *hbone.Incoming) (spiffeid.ID, error) {
	if id := t.id.Load(); id != nil {
		return *id, nil
	}
	id, err := mtls.Peer(in.TLS())
	if err == nil {
		t.id.Store(&id)
	}
	return id, err
}

// hostOf is what the client asked for, as it says itself. It is kept as long as the
// connection, and the header that it is a part of is not.
func hostOf(in *hbone.Incoming) string {
	host := route.ParseForwarded(in.Header("forwarded"))
	if host == in.Authority {
		return in.Authority
	}
	return strings.Clone(host)
}

// caller is whom a connection comes from.
type caller struct {
	party
	name   string
	told   bool // by itself
	native bool // it speaks HBONE by itself, without a proxy of the mesh
}

// source describes the client for telemetry. A gateway of another network speaks
// for clients whose addresses mean nothing here: then its baggage is believed,
// else what is known of the address.
func (t *tunnel) source(in *hbone.Incoming, view *workload.View) caller {
	network := t.p.s.cfg.Network
	gateway := in.Header("x-forwarded-network")
	if len(gateway) == 0 || strings.EqualFold(gateway[0], network) {
		if w := view.WorkloadByAddr(workload.NetworkAddr{Network: network, Addr: t.src.Addr()}); w != nil {
			return caller{party: partyOf(w), name: w.Name, native: w.NativeTunnel}
		}
	}
	if !t.p.s.cfg.ResponseBaggage {
		return caller{}
	}
	return caller{party: partyTold(route.ParseBaggage(in.Header(route.HeaderBaggage))), told: true}
}

// serviceOf guesses for telemetry which service was addressed: the one that the
// client says, if the pod belongs to it, else the first with that port.
func serviceOf(v *workload.View, self *workload.Workload, host string, port uint16) *workload.Service {
	var best *workload.Service
	for _, m := range self.Services {
		named := host != "" && strings.EqualFold(m.Service.Hostname, host)
		if !named && best != nil {
			continue
		}
		s := v.Service(m.Service)
		if s == nil {
			continue
		}
		if named {
			return s
		}
		if serves(s, m.Ports, port) {
			best = s
		}
	}
	return best
}

func serves(s *workload.Service, own workload.PortMap, target uint16) bool {
	for _, p := range s.Ports {
		t := p.Target
		if o, ok := own.Target(p.Service); ok {
			t = o
		}
		if t == target {
			return true
		}
	}
	return false
}

// authorize asks the policies of the present moment. The connection is tracked
// already, so an update that comes after it cuts it.
func (p *pod) authorize(c *connection, self *workload.Workload) error {
	view := p.s.store.View()
	if now := p.find(view); now != nil {
		self = now
	}
	f := c.guard.Facts
	v := rbac.Evaluate(view, self, rbac.Connection{Src: f.Src, Dst: f.Dst, Peer: f.Peer})
	p.s.logVerdict(f, v)
	if !v.Allowed {
		return &policyError{v.Reason}
	}
	return nil
}

// dialInbound connects to the application with dial; it gives up when c is cut.
func dialInbound[C any](ctx context.Context, p *pod, c *connection, dial dialFunc[C], target netip.AddrPort, transparent bool) (C, error) {
	var none C
	if err := c.reserve(); err != nil {
		return none, err
	}
	app, err := dialApp(ctx, p, dial, c.guard.Facts.Src.Addr(), target, transparent)
	if err != nil {
		return none, &connectError{err}
	}
	return app, nil
}
