package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/proxy/dns"
	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/ready"
	"github.com/warren-mesh/warren/proxy/sockopt"
	"github.com/warren-mesh/warren/proxy/track"
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
	listeners []listener
	pool      *hbone.Pool
	serverTLS *tls.Config
	dns       *dns.Server // nil: nobody asks
	queries   []*net.TCPListener
	// transparent: the listeners are, so that applications can be shown the
	// client's address.
	transparent bool
	tunnels     atomic.Int64
	connects    connects
	peerAsks    quota

	// soft ends when the pod takes no new connections, hard when those that
	// there are have to go.
	soft, hard  context.Context
	close, kill context.CancelCauseFunc
	work        sync.WaitGroup // the accept loop, tunnels and connections

	mu             sync.Mutex
	term           context.Context // see tenure
	endTerm        context.CancelFunc
	lease          *svid.Lease
	inboundTunnels map[*tunnel]struct{}
	inners         map[*inner]struct{}
	last           *workload.Workload // as the control plane last knew it

	dials map[hbone.Key]*mtls.Identity // what tunnels under way present
}

// listener is a *net.TCPListener or *ready.Listener.
type listener interface {
	Addr() net.Addr
	Close() error
}

// newPod opens a pod's listeners and serves them. w.NS stays the caller's.
func (s *Server) newPod(ctx context.Context, w zds.Workload) (*pod, error) {
	ns, err := w.NS.Dup()
	if err != nil {
		return nil, err
	}
	p := s.makePod(w.UID, w.Info, sockopt.New(ns, s.cfg.Sockets))
	p.ns = w.NS.ID()
	return p, p.begin(ctx, p.openAll)
}

// makePod makes a pod that is not served yet. It takes over sockets.
func (s *Server) makePod(uid string, info zds.Info, sockets *sockopt.Sockets) *pod {
	p := &pod{
		s: s, uid: uid, info: info, sockets: sockets,
		log:   s.logs.scope("proxy").With("pod", podName(info), "uid", uid),
		dials: make(map[hbone.Key]*mtls.Identity),
	}
	p.soft, p.close = context.WithCancelCause(context.Background())
	p.hard, p.kill = context.WithCancelCause(context.Background())
	p.serverTLS = mtls.Server(p.present)
	p.pool = hbone.NewPool(p.hboneConfig(), p.dialTunnel)
	return p
}

// begin opens and serves what open says. When that fails nothing of the pod is left.
func (p *pod) begin(ctx context.Context, open func(context.Context) error) error {
	err := open(ctx)
	if err != nil {
		p.stop()
	}
	return err
}

// openAll opens everything that a pod of the mesh has.
func (p *pod) openAll(ctx context.Context) error {
	if p.s.cfg.DNSOnly {
		return p.openDNS(ctx)
	}
	outbound, _, err := p.listen(ctx, OutboundPort)
	if err != nil {
		return err
	}
	plaintext, transparent, err := p.listen(ctx, PlaintextPort)
	if err != nil {
		return err
	}
	socks, err := p.listenSOCKS(ctx)
	if err != nil {
		return err
	}
	if err := p.openDNS(ctx); err != nil {
		return err
	}
	if err := p.openInbound(ctx); err != nil {
		return err
	}
	if err := p.open(outbound, p.outbound); err != nil {
		return err
	}
	if err := p.open(plaintext, p.apart(func(c *sockopt.Connection) { p.passthrough(c, transparent) })); err != nil {
		return err
	}
	if socks != nil {
		p.work.Go(func() { p.accept(socks, p.socks) })
	}
	p.warmUp()
	return nil
}

// openInbound opens the port for HBONE.
func (p *pod) openInbound(ctx context.Context) error {
	tunnels, transparent, err := p.listen(ctx, HBONEPort)
	if err != nil {
		return err
	}
	p.transparent = transparent
	p.work.Go(func() { p.accept(tunnels, func(c *net.TCPConn) { p.inbound(c, transparent) }) })
	return nil
}

// open has the loops accept what comes to l.
func (p *pod) open(l *net.TCPListener, handle func(*sockopt.Connection, *ready.Turn)) error {
	watched, err := p.s.waiting.Listen(l, &door{p: p, handle: handle})
	if err == nil {
		p.listeners[slices.Index(p.listeners, listener(l))] = watched
	}
	return err
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
	p.mu.Lock() // join sees it before anybody waits for the work to end
	p.close(errDrain)
	p.mu.Unlock()
}

// drain takes no more connections, waits until ctx ends for those that there
// are, and stops.
func (p *pod) drain(ctx context.Context) {
	p.closeListeners()
	p.work.Go(func() { p.shutDNS(ctx) })
	ended := make(chan struct{})
	go func() { p.work.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-ctx.Done():
		p.log.Warn("connection failed to drain within the timeout", "connections", countText(p.s.tracked.Pod(p.uid)))
	}
	p.stop()
	<-ended
}

// stop ends everything of the pod now, and returns when it has ended.
func (p *pod) stop() {
	p.closeListeners()
	p.kill(errDrain)
	p.endDNS()
	// By owner, not by UID: a pod with a new namespace has the same one, and is
	// served already.
	p.s.tracked.Cut(func(g *track.Guard) bool { c, ok := g.Owner.(*connection); return ok && c.p == p }, errDrain)
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

func (p *pod) hboneConfig() hbone.Config {
	c := p.s.cfg.HBONE
	c.Budget = p.s.budget
	c.Ready = p.s.waiting
	c.Gate, c.Owner = p.s.gate, p.uid
	c.Log = p.s.logs.scope("hbone").With("pod", podName(p.info))
	c.Until = p.until
	return c
}

// ports lists the ports that are listened on.
func (p *pod) ports() []string {
	out := make([]string, 0, len(p.listeners)+1)
	all := slices.Clone(p.listeners)
	if len(p.queries) > 0 {
		all = append(all, p.queries[0])
	}
	for _, l := range all {
		if a, ok := l.Addr().(*net.TCPAddr); ok {
			out = append(out, strconv.Itoa(a.Port))
		}
	}
	return out
}
