package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/source/fake"
	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/proxy"
	"github.com/warren-mesh/warren/xds/workload"
)

func TestMain(m *testing.M) { nstest.Main(m) }

const patience = 10 * time.Second

// mesh is two nodes with a proxy each, in one process, and a CA.
type mesh struct {
	t     *testing.T
	net   *nstest.Net
	ca    *fake.Signer
	nodes []*node
	rules redirect.Backend
	issue func(id string) *mtls.Identity // for peers that are not proxies
}

type node struct {
	*nstest.Node
	mesh *mesh
	srv  *proxy.Server
	logs *logBook
	cfg  proxy.Config
	own  *netns.NS    // the proxy's own, if it serves anybody there
	stop func() error // drains and waits
}

// pod is a mesh pod with an application.
type pod struct {
	*nstest.Pod
	node *node
	uid  string
	w    *workload.Workload
}

func newMesh(t *testing.T, nodes int, change ...func(*proxy.Config)) *mesh {
	t.Helper()
	nstest.LeakCheck(t)
	t.Cleanup(func() { runtime.GC(); runtime.GC() }) // net keeps pipes for splice until then
	m := &mesh{t: t, net: nstest.New(t)}
	var err error
	m.rules, err = redirect.Detect()
	nstest.Need(t, err)
	if m.ca, err = fake.New(spiffeid.RequireTrustDomainFromString("cluster.local"), nil); err != nil {
		t.Fatal(err)
	}
	m.issue = func(id string) *mtls.Identity { return issue(t, m.ca, id, time.Hour) }
	for i := range nodes {
		m.addNode(fmt.Sprintf("node%d", i+1), change...)
	}
	return m
}

// stop ends the proxies.
func (m *mesh) stop() {
	for _, n := range m.nodes {
		if err := n.stop(); err != nil {
			m.t.Errorf("%s: %v", n.Name, err)
		}
	}
}

func (m *mesh) addNode(name string, change ...func(*proxy.Config)) *node {
	m.t.Helper()
	return m.addNodeIn(name, nil, change...)
}

// addNodeIn is addNode for a proxy that serves somebody in its own namespace, too.
func (m *mesh) addNodeIn(name string, own *netns.NS, change ...func(*proxy.Config)) *node {
	m.t.Helper()
	dir := m.t.TempDir()
	static := filepath.Join(dir, "static.yaml")
	if err := os.WriteFile(static, []byte("workloads: []\nservices: []\npolicies: []\n"), 0o600); err != nil {
		m.t.Fatal(err)
	}
	cfg := proxy.Defaults()
	cfg.NodeName, cfg.XDS.Address, cfg.LocalXDS = name, "", static
	cfg.ZDSPath = filepath.Join(dir, "zds.sock")
	cfg.Log = proxy.LogConfig{Filter: "debug,zds=warn", JSON: true}
	local := netip.MustParseAddrPort("127.0.0.1:0")
	cfg.Admin, cfg.Stats, cfg.Ready = local, local, local
	cfg.DrainDeadline = 2 * time.Second
	for _, f := range change {
		f(&cfg)
	}
	n := &node{Node: m.net.Node(name), mesh: m, logs: &logBook{}, cfg: cfg, own: own}
	m.nodes = append(m.nodes, n)
	n.start()
	m.t.Cleanup(func() {
		_ = n.stop()
		if m.t.Failed() {
			m.t.Logf("log of %s:\n%s", name, n.logs.text())
		}
	})
	return n
}

func (n *node) start() {
	t := n.mesh.t
	t.Helper()
	opts := proxy.Options{Out: n.logs, Version: "test", Namespace: n.own}
	if n.cfg.SVIDs.Source == "" {
		opts.Signer = n.mesh.ca
	}
	srv, err := proxy.New(n.cfg, opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(ctx) }()
	n.srv = srv
	n.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(patience):
			return fmt.Errorf("did not end within %s", patience)
		}
	})
	select {
	case <-srv.Started():
	case err := <-ended:
		t.Fatalf("the proxy did not start: %v", err)
	}
	if err := srv.Handler().Snapshot(ctx); err != nil {
		t.Fatal(err)
	}
}

// pod makes a pod, outside the mesh as yet.
func (n *node) pod(name string, opts ...nstest.PodOption) *pod {
	p := &pod{Pod: n.Node.Pod(name, opts...), node: n, uid: "uid-" + name}
	n.mesh.t.Cleanup(n.mesh.stop) // before the namespace goes, which proxies hold
	p.w = &workload.Workload{
		UID: "Kubernetes//Pod/default/" + name, Name: name, Namespace: "default", ServiceAccount: name,
		Node: n.cfg.NodeName, ClusterID: "Kubernetes", TrustDomain: "cluster.local",
		CanonicalName: name, CanonicalRevision: "v1", WorkloadName: name, Type: workload.Pod,
	}
	for _, ip := range []netip.Addr{p.IP4, p.IP6} {
		if ip.IsValid() {
			p.w.Addresses = append(p.w.Addresses, ip)
		}
	}
	return p
}

// meshPod makes a pod that is captured and served, and tells everybody.
func (n *node) meshPod(name string) *pod {
	n.mesh.t.Helper()
	p := n.pod(name)
	p.w.Protocol = workload.HBONE
	p.redirect()
	p.serve(n)
	n.mesh.apply(workload.Batch{Workloads: []*workload.Workload{p.w}})
	return p
}

func (p *pod) redirect() {
	t := p.node.mesh.t
	t.Helper()
	rules := redirect.Defaults()
	rules.IPv4, rules.IPv6 = p.IP4.IsValid(), p.IP6.IsValid()
	if err := p.node.mesh.rules.Apply(p.NS, rules); err != nil {
		t.Fatal(err)
	}
}

// serve hands the pod to a proxy, as the node agent does.
func (p *pod) serve(n *node) {
	n.mesh.t.Helper()
	ns, err := p.NS.Dup()
	if err != nil {
		n.mesh.t.Fatal(err)
	}
	w := zds.Workload{UID: p.uid, NS: ns, Info: zds.Info{Name: p.w.Name, Namespace: p.w.Namespace, ServiceAccount: p.w.ServiceAccount}}
	if err := n.srv.Handler().Add(n.mesh.t.Context(), w); err != nil {
		n.mesh.t.Fatal(err)
	}
	closed(n.mesh.t, ns)
}

// closed says that the proxy has let go of a namespace that it was given: that
// the collector would do so one day hides the leak from those who count.
func closed(t *testing.T, ns *netns.NS) {
	t.Helper()
	if left, err := ns.Dup(); err == nil {
		left.Close()
		t.Error("the descriptor of the namespace was kept")
	}
}

// apply tells all proxies the same.
func (m *mesh) apply(b workload.Batch) {
	for _, n := range m.nodes {
		n.srv.Store().Apply(b)
	}
}

// identity is the SPIFFE ID of a pod.
func (p *pod) identity() string { return "spiffe://cluster.local/ns/default/sa/" + p.w.ServiceAccount }

// listen runs handle for each connection to a port of the pod until the test ends.
func (p *pod) listen(port int, handle func(*net.TCPConn)) {
	t := p.node.mesh.t
	t.Helper()
	l, err := p.Listen("tcp", fmt.Sprintf("[::]:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); handle(c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
}

// echo answers with what it gets, after a line that says who it thinks calls.
func (p *pod) echo(port int) {
	p.listen(port, func(c *net.TCPConn) {
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		addr, _ := netip.ParseAddr(host)
		fmt.Fprintf(c, "%s\n", addr.Unmap())
		_, _ = io.Copy(c, c)
	})
}

func (p *pod) addr(port int) string { return netip.AddrPortFrom(p.IP4, uint16(port)).String() }

func (p *pod) dial(addr string) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := p.Dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn), nil
}

// call connects to an echo, sends text, half-closes and returns the address
// that the echo saw and what it answered.
func (p *pod) call(addr, text string) (saw, answer string, err error) {
	c, err := p.dial(addr)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	return talk(c, text)
}

func talk(c *net.TCPConn, text string) (saw, answer string, err error) {
	if _, err := io.WriteString(c, text); err != nil {
		return "", "", err
	}
	if err := c.CloseWrite(); err != nil {
		return "", "", err
	}
	r := bufio.NewReader(c)
	saw, err = r.ReadString('\n')
	if err != nil {
		return "", "", fmt.Errorf("first line: %w", err)
	}
	rest, err := io.ReadAll(r)
	return strings.TrimSpace(saw), string(rest), err
}

// mustCall is call for what has to work; it checks the answer.
func (p *pod) mustCall(addr string) (saw string) {
	p.node.mesh.t.Helper()
	const text = "hello, mesh"
	saw, answer, err := p.call(addr, text)
	if err != nil || answer != text {
		p.node.mesh.t.Fatalf("%s to %s: answer %q, %v", p.Name, addr, answer, err)
	}
	return saw
}

// mustFail is call for what must not work.
func (p *pod) mustFail(addr string) {
	p.node.mesh.t.Helper()
	if saw, answer, err := p.call(addr, "x"); err == nil {
		p.node.mesh.t.Fatalf("%s to %s: got through: %q, %q", p.Name, addr, saw, answer)
	}
}

// logBook keeps the lines of a proxy's log.
type logBook struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	wake chan struct{}
}

func (l *logBook) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.wake != nil {
		close(l.wake)
		l.wake = nil
	}
	return l.buf.Write(b)
}

func (l *logBook) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// mark is a place in the log.
func (l *logBook) mark() int { return len(l.text()) }

// access waits for a line of the access log, written since mark, that has all
// these keys with these values; an empty value means that the key is not there.
func (l *logBook) access(t *testing.T, since int, want map[string]string) map[string]any {
	t.Helper()
	deadline := time.After(patience)
	for {
		l.mu.Lock()
		text := l.buf.String()[since:]
		if l.wake == nil {
			l.wake = make(chan struct{})
		}
		wake := l.wake
		l.mu.Unlock()
		for line := range strings.Lines(text) {
			var got map[string]any
			if json.Unmarshal([]byte(line), &got) == nil && got["scope"] == "access" && got["message"] != "connection opened" && fits(got, want) {
				return got
			}
		}
		select {
		case <-wake:
		case <-deadline:
			t.Fatalf("no access line with %v in:\n%s", want, text)
		}
	}
}

func fits(got map[string]any, want map[string]string) bool {
	for k, v := range want {
		g, ok := got[k]
		if v == "" && ok || v != "" && (!ok || !strings.Contains(fmt.Sprint(g), v)) {
			return false
		}
	}
	return true
}

// until waits for something that the mesh does by itself.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	untilWithin(t, patience, what, ok)
}

func untilWithin(t *testing.T, most time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(most); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waiting until %s", what)
		}
	}
}
