package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/rpc"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/e2e/bench/ends"
	"github.com/warren-mesh/warren/e2e/onehost"
)

const (
	plainPort = 7000
	tlsPort   = 7001
	meshNS    = "bench"
	plainNS   = "plain"

	startTimeout = 30 * time.Second
)

// Proxy is a program to measure.
type Proxy struct {
	Name  string
	Path  string
	Env   []string // added to its environment
	crowd int      // workloads that its control plane knows beside the world's file; 0: it follows none
}

// bed is two nodes with one kind of proxy.
type bed struct {
	*onehost.Mesh
	proxy Proxy

	// The first node has the clients and a server for traffic that stays on it,
	// the second the servers. Those whose name begins with out are outside the
	// mesh.
	client, local, server          *onehost.Pod
	outClient, outLocal, outServer *onehost.Pod

	meshed  []*onehost.Pod // served by the proxies
	boards  map[*onehost.Pod]*ends.Board
	endPIDs map[*onehost.Pod]int // of the server ends
	cold    *coldAddrs
	slot    uint32      // next free on the boards
	plane   *rpc.Client // orders to the control plane
	stop    func()      // what the bench plays
}

// newBed builds the nodes and pods, starts what the bench plays and, if proxy
// has a path, the proxies. Each node serves at least pods pods of the mesh.
func newBed(ctx context.Context, c Config, index int, proxy Proxy, pods int) (_ *bed, err error) {
	prefix := fmt.Sprintf("%s%d-%d", prefix, os.Getpid(), index)
	dir, err := os.MkdirTemp("", prefix+"-")
	if err != nil {
		return nil, err
	}
	b := &bed{proxy: proxy, boards: make(map[*onehost.Pod]*ends.Board), endPIDs: make(map[*onehost.Pod]int), stop: func() {}}
	world := filepath.Join(dir, "world.yaml")
	b.Mesh, err = onehost.New(ctx, onehost.Options{
		Prefix: prefix, Dir: dir, Bins: c.Bins, Proxy: proxy.Path, NoCNI: true, NoWire: true,
		Env: append([]string{
			"XDS_ADDRESS=", "LOCAL_XDS_PATH=" + world, "RUST_LOG=info",
			// So that cold tunnels do not stay for the rest of the run.
			fmt.Sprintf("POOL_UNUSED_RELEASE_TIMEOUT=%ds", int(coldRest.Seconds())),
		}, append(crowdEnv(proxy.crowd), proxy.Env...)...),
	})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w", proxy.Name, err), b.close())
		}
	}()
	if err := b.addPods(ctx, pods); err != nil {
		return nil, err
	}
	if b.cold, err = newColdAddrs(b.server); err != nil {
		return nil, err
	}
	if err := b.writeWorld(world); err != nil {
		return nil, err
	}
	if err := b.startEnds(); err != nil {
		return nil, err
	}
	if proxy.Path == "" {
		return b, nil
	}
	if err := b.play(ctx); err != nil {
		return nil, err
	}
	_, err = b.startProxies(ctx)
	return b, err
}

func (b *bed) addPods(ctx context.Context, pods int) error {
	one, two := b.Nodes[0], b.Nodes[1]
	for _, p := range []struct {
		pod      **onehost.Pod
		node     *onehost.Node
		ns, name string
	}{
		{&b.client, one, meshNS, "client"}, {&b.local, one, meshNS, "local"}, {&b.server, two, meshNS, "server"},
		{&b.outClient, one, plainNS, "client"}, {&b.outLocal, one, plainNS, "local"}, {&b.outServer, two, plainNS, "server"},
	} {
		var err error
		if *p.pod, err = p.node.AddBare(onehost.PodSpec{Namespace: p.ns, Name: p.name, ServiceAccount: p.name}); err != nil {
			return err
		}
	}
	b.meshed = []*onehost.Pod{b.client, b.local, b.server}
	for _, n := range b.Nodes {
		have := 1 + n.Index()%2 // the first node has two of them already
		for i := range max(0, pods-have) {
			if err := ctx.Err(); err != nil {
				return err
			}
			p, err := n.AddBare(onehost.PodSpec{Namespace: meshNS, Name: fmt.Sprintf("%s-%d", n.Name, i), ServiceAccount: fmt.Sprintf("crowd-%d", i%20)})
			if err != nil {
				return err
			}
			b.meshed = append(b.meshed, p)
		}
	}
	return b.redirect()
}

// redirect puts the real rules into the pods of the mesh.
func (b *bed) redirect() error {
	backend, err := redirect.Detect()
	if err != nil {
		return err
	}
	rules := redirect.Defaults()
	rules.IPv6 = false // no pod here has such an address
	for _, p := range b.meshed {
		if err := backend.Apply(p.NS, rules); err != nil {
			return fmt.Errorf("rules of %s: %w", p.Spec.Name, err)
		}
	}
	return b.tune()
}

// tune readies the pods for many short connections between two addresses:
// ports come back soon, and the tables of ended connections stay small. Clients
// and servers have ports of their own: a proxy that dials the application from
// the client's address, in plaintext, could else take the port of another of
// the client's connections, which the pod's kernel cannot tell apart.
func (b *bed) tune() error {
	const clients, servers = "16384 36863", "36864 65535"
	for _, p := range []*onehost.Pod{b.client, b.local, b.server, b.outClient, b.outLocal, b.outServer} {
		ports := servers
		if p == b.client || p == b.outClient {
			ports = clients
		}
		for _, kv := range [][2]string{
			{"ipv4/ip_local_port_range", ports}, {"ipv4/tcp_tw_reuse", "1"}, {"netfilter/nf_conntrack_tcp_timeout_time_wait", "2"},
		} {
			if err := p.Sysctl(kv[0], kv[1]); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

func (b *bed) writeWorld(path string) error {
	inside := make(map[*onehost.Pod]bool)
	for _, p := range b.meshed {
		inside[p] = true
	}
	all := append([]*onehost.Pod{b.outClient, b.outLocal, b.outServer}, b.meshed...)
	more := map[*onehost.Pod][]string{b.server: b.cold.all()}
	return os.WriteFile(path, world(all, func(p *onehost.Pod) bool { return inside[p] }, more), 0o644)
}

// startEnds starts a server end in each server pod.
func (b *bed) startEnds() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cert, err := writeCert(b.Opts.Dir)
	if err != nil {
		return err
	}
	for _, p := range []*onehost.Pod{b.local, b.server, b.outLocal, b.outServer} {
		board := filepath.Join(b.Opts.Dir, p.Spec.Namespace+"-"+p.Spec.Name+".board")
		if b.boards[p], err = ends.CreateBoard(board); err != nil {
			return err
		}
		args := []string{"-serve", fmt.Sprintf(":%d", plainPort), "-board", board}
		if p == b.outServer {
			args = append(args, "-serve-tls", fmt.Sprintf(":%d", tlsPort), "-cert", cert)
		}
		if b.endPIDs[p], err = p.Run(self, args...); err != nil {
			return err
		}
	}
	return nil
}

// play starts the agents and the control plane.
func (b *bed) play(starting context.Context) error {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	b.stop = func() {
		cancel()
		wg.Wait()
	}
	for _, n := range b.Nodes {
		if err := playAgent(ctx, n, b.meshed, &wg); err != nil {
			return err
		}
	}
	return b.playControlPlane(starting)
}

// startProxies starts a proxy on each node and says how long it took until
// both were ready.
func (b *bed) startProxies(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	began := time.Now()
	for _, n := range b.Nodes {
		if err := n.StartProxy(ctx); err != nil {
			return 0, err
		}
	}
	for _, n := range b.Nodes {
		if err := n.WaitProxyReady(ctx); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}

// restart gives the bed fresh proxies.
func (b *bed) restart(ctx context.Context) (time.Duration, error) {
	for _, n := range b.Nodes {
		if err := n.KillProxy(); err != nil {
			return 0, err
		}
	}
	return b.startProxies(ctx)
}

func (b *bed) close() error {
	err := b.Close()
	b.stop()
	if b.plane != nil {
		b.plane.Close()
	}
	for _, board := range b.boards {
		if board != nil {
			err = errors.Join(err, board.Close())
		}
	}
	return errors.Join(err, os.RemoveAll(b.Opts.Dir))
}

// coldRest is how long the proxies keep a tunnel that nobody uses.
const coldRest = 10 * time.Second

// coldAddrs are many addresses of one pod. A tunnel is made for a pair of
// identities and an address, so each address is a cold tunnel until it has been
// used, and again some time after.
type coldAddrs struct {
	prefix netip.Prefix
	n      int
	next   netip.Addr
}

func newColdAddrs(p *onehost.Pod) (*coldAddrs, error) {
	c := &coldAddrs{prefix: netip.MustParsePrefix("10.250.0.0/19"), n: 1 << 13}
	c.next = c.prefix.Addr()
	return c, p.Answers(c.prefix)
}

func (c *coldAddrs) all() []string {
	all := make([]string, 0, c.n)
	for a := c.prefix.Addr(); c.prefix.Contains(a); a = a.Next() {
		all = append(all, a.String())
	}
	return all
}

// take returns the address that has rested longest.
func (c *coldAddrs) take() netip.Addr {
	a := c.next
	if c.next = a.Next(); !c.prefix.Contains(c.next) {
		c.next = c.prefix.Addr()
	}
	return a
}
