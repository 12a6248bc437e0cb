package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/sockopt"
	"github.com/warren-mesh/warren/xds/workload"
)

// pod serves one pod from sockets in its network namespace.
type pod struct {
	s    *Server
	uid  string
	info zds.Info
	ns   netns.ID
	log  *slog.Logger

	sockets   *sockopt.Sockets
	listeners []*net.TCPListener
	pool      *hbone.Pool
	serverTLS *tls.Config
	tunnels   atomic.Int64

	// soft ends when the pod takes no new connections, hard when those that
	// there are have to go.
	soft, hard  context.Context
	close, kill context.CancelCauseFunc
	work        sync.WaitGroup // accept loops, tunnels and connections

	mu    sync.Mutex
	lease *svid.Lease
	last  *workload.Workload // as the control plane last knew it

	dials map[hbone.Key]*mtls.Identity // what tunnels under way present
}

// newPod opens a pod's listeners and serves them. w.NS stays the caller's.
func (s *Server) newPod(ctx context.Context, w zds.Workload) (p *pod, err error) {
	ns, err := w.NS.Dup()
	if err != nil {
		return nil, err
	}
	p = &pod{
		s: s, uid: w.UID, info: w.Info, ns: w.NS.ID(), sockets: sockopt.New(ns, s.cfg.Sockets),
		log:   s.logs.scope("proxy").With("pod", podName(w.Info), "uid", w.UID),
		dials: make(map[hbone.Key]*mtls.Identity),
	}
	defer func() {
		if err != nil {
			p.closeListeners()
			err = errors.Join(err, p.sockets.Close())
			p = nil
		}
	}()
	outbound, _, err := p.listen(ctx, OutboundPort)
	if err != nil {
		return p, err
	}
	plaintext, transparent, err := p.listen(ctx, PlaintextPort)
	if err != nil {
		return p, err
	}
	tunnels, transparentToo, err := p.listen(ctx, HBONEPort)
	if err != nil {
		return p, err
	}
	p.soft, p.close = context.WithCancelCause(context.Background())
	p.hard, p.kill = context.WithCancelCause(context.Background())
	p.serverTLS = mtls.Server(p.present)
	p.pool = hbone.NewPool(p.hboneConfig(), p.dialTunnel)
	p.work.Go(func() { p.accept(outbound, p.outbound) })
	p.work.Go(func() { p.accept(plaintext, func(c *net.TCPConn) { p.passthrough(c, transparent) }) })
	p.work.Go(func() { p.accept(tunnels, func(c *net.TCPConn) { p.inbound(c, transparentToo) }) })
	return p, nil
}

func (p *pod) listen(ctx context.Context, port uint16) (*net.TCPListener, bool, error) {
	addr := netip.IPv6Unspecified()
	if !p.s.cfg.IPv6 {
		addr = netip.IPv4Unspecified()
	}
	l, transparent, err := p.sockets.Listen(ctx, netip.AddrPortFrom(addr, port))
	if err != nil {
		return nil, false, fmt.Errorf("port %d: %w", port, err)
	}
	p.listeners = append(p.listeners, l)
	return l, transparent, nil
}

// closeListeners may be called more than once.
func (p *pod) closeListeners() {
	for _, l := range p.listeners {
		_ = l.Close()
	}
	if p.close != nil {
		p.close(errDrain)
	}
}

// drain takes no more connections, waits until ctx ends for those that there
// are, and stops.
func (p *pod) drain(ctx context.Context) {
	p.closeListeners()
	ended := make(chan struct{})
	go func() { p.work.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-ctx.Done():
		p.log.Warn("connection failed to drain within the timeout", "connections", countText(p.s.tracked.Pod(p.uid)))
	}
	p.stop(errDrain)
	<-ended
}

// stop ends everything of the pod now, and returns when it has ended.
func (p *pod) stop(why error) {
	p.closeListeners()
	p.kill(why)
	p.s.tracked.CutPod(p.uid, why)
	_ = p.pool.Close()
	p.work.Wait()
	p.mu.Lock()
	lease := p.lease
	p.lease = nil
	p.mu.Unlock()
	if lease != nil {
		lease.Release()
	}
	if err := p.sockets.Close(); err != nil {
		p.log.Warn("the pod's namespace was not let go", "err", err)
	}
}

// local returns the world and this pod in it, waiting a while for the control
// plane to know the pod.
func (p *pod) local(ctx context.Context) (*workload.View, *workload.Workload, error) {
	if v := p.s.store.View(); p.find(v) != nil {
		return v, p.find(v), nil
	}
	ctx, cancel := context.WithTimeout(ctx, localWait)
	defer cancel()
	var view *workload.View
	var self *workload.Workload
	err := p.s.store.Wait(ctx, func(v *workload.View) bool {
		view, self = v, p.find(v)
		return self != nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("failed to fetch information about local workload: %s.%s (%s)", p.info.ServiceAccount, p.info.Namespace, p.info.Name)
	}
	return view, self, nil
}

// find looks the pod up by what the node agent said of it; where a connection
// came from says nothing.
func (p *pod) find(v *workload.View) *workload.Workload {
	w := v.Local(p.info.Name, p.info.Namespace, p.info.ServiceAccount, p.s.cfg.NodeName)
	if w != nil {
		p.mu.Lock()
		p.last = w
		p.mu.Unlock()
	}
	return w
}

// current is the pod in v, or as it was last known: the control plane forgets
// a pod that ends before its connections have.
func (p *pod) current(v *workload.View) *workload.Workload {
	if w := p.find(v); w != nil {
		return w
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

// hold returns the pod's lease on its identity.
func (p *pod) hold(self *workload.Workload) (*svid.Lease, error) {
	id := self.Identity()
	if id.IsZero() {
		return nil, &identityError{errors.New("the workload has no identity: its trust domain, namespace and service account do not form one")}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.hard.Err(); err != nil {
		return nil, errPodGone
	}
	if p.lease != nil && (p.lease.ID() != id || p.lease.Err() != nil) {
		p.lease.Release()
		p.lease = nil
	}
	if p.lease == nil {
		p.lease = p.s.certs.Acquire(p.uid, id)
	}
	return p.lease, nil
}

// present gives the certificate for a handshake, as server.
func (p *pod) present(ctx context.Context) (*mtls.Identity, error) {
	_, self, err := p.local(ctx)
	if err != nil {
		return nil, err
	}
	return p.identity(ctx, self)
}

func (p *pod) identity(ctx context.Context, self *workload.Workload) (*mtls.Identity, error) {
	lease, err := p.hold(self)
	if err != nil {
		return nil, err
	}
	i, err := lease.Identity(ctx)
	if err != nil {
		return nil, &identityError{err}
	}
	return i, nil
}

// dialTunnel is the pool's DialFunc.
func (p *pod) dialTunnel(ctx context.Context, key hbone.Key) (net.Conn, *tls.Config, error) {
	_, self, err := p.local(ctx)
	if err != nil {
		return nil, nil, err
	}
	i, err := p.identity(ctx, self)
	if err != nil {
		return nil, nil, err
	}
	if i.ID() != key.Src {
		return nil, nil, &identityError{fmt.Errorf("the pod is %s now, not %s", i.ID(), key.Src)}
	}
	expected, err := splitIDs(key.Expected)
	if err != nil {
		return nil, nil, err
	}
	c, err := p.sockets.Dial(ctx, netip.Addr{}, key.Dst)
	if err != nil {
		return nil, nil, err
	}
	p.mu.Lock()
	p.dials[key] = i
	p.mu.Unlock()
	return c, mtls.Client(i, expected), nil
}

// until is when a pooled tunnel takes no more connections: when a certificate
// of either end does.
func (p *pod) until(key hbone.Key, cs tls.ConnectionState) time.Time {
	p.mu.Lock()
	i := p.dials[key]
	delete(p.dials, key)
	p.mu.Unlock()
	var end time.Time
	if i != nil {
		end = i.NotAfter()
	}
	if len(cs.PeerCertificates) > 0 {
		if peer := cs.PeerCertificates[0].NotAfter; end.IsZero() || peer.Before(end) {
			end = peer
		}
	}
	return end
}

func (p *pod) hboneConfig() hbone.Config {
	c := p.s.cfg.HBONE
	c.Budget = p.s.budget
	c.Log = p.s.logs.scope("hbone").With("pod", podName(p.info))
	c.Until = p.until
	return c
}

// joinIDs and splitIDs make a comparable value of identities, for the pool's
// key. No identity contains a comma.
func joinIDs(ids []spiffeid.ID) string {
	var b strings.Builder
	for i, id := range ids {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(id.String())
	}
	return b.String()
}

func splitIDs(s string) ([]spiffeid.ID, error) {
	var ids []spiffeid.ID
	if s == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		id, err := spiffeid.FromString(part)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// ports lists the ports that are listened on.
func (p *pod) ports() []string {
	out := make([]string, 0, len(p.listeners))
	for _, l := range p.listeners {
		if a, ok := l.Addr().(*net.TCPAddr); ok {
			out = append(out, strconv.Itoa(a.Port))
		}
	}
	return out
}
