package proxy_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/ready"
	"github.com/warren-mesh/warren/proxy/relay"
	"github.com/warren-mesh/warren/proxy/sockopt"
	"github.com/warren-mesh/warren/xds/workload"
)

// gateway is a waypoint, or a network's gateway, that speaks HBONE by itself from
// a pod that is not captured.
type gateway struct {
	*pod
	pool *hbone.Pool
	set  *ready.Set
	flow *relay.Relay
	hops func(authority string) hop
	cut  context.CancelFunc // ends its tunnels, and refuses more

	work sync.WaitGroup
	mu   sync.Mutex
	seen []asked
}

// asked is a CONNECT that a gateway got.
type asked struct {
	peer, authority string
	forwarded       []string
}

// hop is where a gateway sends a CONNECT on to.
type hop struct {
	raw       string    // by TCP, the bytes as they are: what a network's gateway does
	key       hbone.Key // else by HBONE, in its own name: what a waypoint does
	authority string
	talk      func(*net.UnixConn) // or itself is who is talked to
	status    int                 // or not at all
}

// gateway makes a pod with a gateway of that identity.
func (n *node) gateway(name string, hops func(authority string) hop) *gateway {
	t := n.mesh.t
	t.Helper()
	g := &gateway{pod: n.pod(name), hops: hops}
	g.w.Protocol = workload.HBONE
	self := n.mesh.issue(g.identity())
	var err error
	if g.set, err = ready.New(1); err != nil {
		t.Fatal(err)
	}
	g.flow = relay.New(g.set)
	g.pool = hbone.NewPool(hbone.Config{}, func(ctx context.Context, k hbone.Key) (net.Conn, *tls.Config, error) {
		c, err := g.Dial(ctx, "tcp", k.Dst.String())
		return c, mtls.Client(self, []spiffeid.ID{spiffeid.RequireFromString(k.Expected)}), err
	})
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { g.pool.Close(); g.work.Wait(); g.set.Close() })
	g.listen(15008, func(c *net.TCPConn) {
		cfg := mtls.Server(func(context.Context) (*mtls.Identity, error) { return self, nil })
		_ = hbone.Serve(ctx, ctx, c, cfg, hbone.Config{}, hbone.HandlerFunc(func(in *hbone.Incoming) { g.work.Go(func() { g.serve(ctx, in) }) }))
	})
	t.Cleanup(cancel)
	g.cut = cancel
	n.mesh.apply(workload.Batch{Workloads: []*workload.Workload{g.w}})
	return g
}

func (g *gateway) serve(ctx context.Context, in *hbone.Incoming) {
	peer, err := mtls.Peer(in.TLS())
	if err != nil {
		in.Reject(http.StatusUnauthorized)
		return
	}
	g.mu.Lock()
	g.seen = append(g.seen, asked{peer.String(), in.Authority, in.Header("forwarded")})
	hops := g.hops
	g.mu.Unlock()
	h := hops(in.Authority)
	if h.status != 0 {
		in.Reject(h.status)
		return
	}
	if h.talk != nil {
		h.talk(g.conn(in.Accept(nil)))
		return
	}
	if h.raw != "" {
		c, err := g.Dial(ctx, "tcp", h.raw)
		if err != nil {
			in.Reject(http.StatusServiceUnavailable)
			return
		}
		g.flow.Start(c.(*net.TCPConn), in.Accept(nil), nil, func(relay.Result) {})
		return
	}
	out, err := g.pool.Open(ctx, h.key, hbone.Request{Authority: h.authority})
	if err != nil {
		in.Reject(http.StatusServiceUnavailable)
		return
	}
	splice(g.conn(in.Accept(nil)), g.conn(out))
}

// conn is a stream as a connection.
func (g *gateway) conn(s *hbone.Stream) *net.UnixConn {
	near, far, err := sockopt.Pair()
	if err != nil {
		g.node.mesh.t.Error(err)
		return nil
	}
	g.flow.Start(near, s, nil, func(relay.Result) {})
	return far
}

func splice(a, b *net.UnixConn) {
	var wg sync.WaitGroup
	for _, way := range [][2]*net.UnixConn{{a, b}, {b, a}} {
		wg.Go(func() {
			if _, err := io.Copy(way[0], way[1]); err != nil {
				way[1].Close()
			}
			way[0].CloseWrite()
		})
	}
	wg.Wait()
	a.Close()
	b.Close()
}

// sends changes where the gateway sends what it gets.
func (g *gateway) sends(hops func(authority string) hop) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hops = hops
}

// last is the latest CONNECT that the gateway got.
func (g *gateway) last(t *testing.T) asked {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.seen) == 0 {
		t.Fatalf("%s was not asked for anything", g.Name)
	}
	return g.seen[len(g.seen)-1]
}

func (g *gateway) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.seen)
}

// to is the hop of a waypoint to a pod.
func (g *gateway) to(p *pod, port uint16) hop {
	return hop{authority: p.addr(int(port)), key: hbone.Key{
		Src: spiffeid.RequireFromString(g.identity()), Expected: p.identity(), Dst: netip.AddrPortFrom(p.IP4, 15008),
	}}
}

// hosted is a service of namespace default.
func hosted(name, vip string, change ...func(*workload.Service)) *workload.Service {
	s := &workload.Service{
		Name: name, Namespace: "default", Hostname: name + ".default.svc.cluster.local",
		VIPs:  []workload.NetworkAddr{{Addr: netip.MustParseAddr(vip)}},
		Ports: workload.NewPortMap(workload.Port{Service: 80, Target: 8080}),
	}
	for _, f := range change {
		f(s)
	}
	return s
}

// serves makes the pod an endpoint of services, and tells everybody.
func (p *pod) serves(list ...*workload.Service) {
	p.change(func(w *workload.Workload) {
		services := make(map[workload.NamespacedHostname]workload.PortMap)
		for _, s := range list {
			services[s.Key()] = nil
		}
		w.Services = workload.NewMemberships(services)
	})
}

// change tells everybody that a pod is another one now.
func (p *pod) change(f func(*workload.Workload)) {
	w := *p.w
	f(&w)
	p.w = &w
	p.node.mesh.apply(workload.Batch{Workloads: []*workload.Workload{&w}})
}
