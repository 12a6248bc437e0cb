package proxy_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/warren-mesh/warren/proxy"
	"github.com/warren-mesh/warren/xds/workload"
)

// group is a service whose endpoints are asked in their order: each is nearer to
// the clients than the next. There may be five.
type group struct {
	m   *mesh
	key workload.NamespacedHostname
	vip netip.AddrPort
	eps []*workload.Workload
}

var groups byte // makes addresses of services unique

func (m *mesh) group(eps ...*workload.Workload) *group {
	groups++
	g := &group{m: m, vip: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, 1, groups}), 80)}
	g.key = workload.NamespacedHostname{Namespace: "default", Hostname: fmt.Sprintf("group%d.default.svc.cluster.local", groups)}
	b := workload.Batch{Services: []*workload.Service{{
		Name: fmt.Sprint("group", groups), Namespace: "default", Hostname: g.key.Hostname, VIPs: []workload.NetworkAddr{{Addr: g.vip.Addr()}},
		Ports: workload.NewPortMap(workload.Port{Service: 80, Target: 8080}),
		LoadBalancing: &workload.LoadBalancing{Mode: workload.LBFailover, Preferences: []workload.Scope{
			workload.Cluster, workload.Region, workload.Zone, workload.Subzone,
		}},
	}}}
	for i, w := range eps {
		in := *w
		in.Services = workload.Memberships{{Service: g.key}}
		if i > 0 {
			*[]*string{&in.Locality.Subzone, &in.Locality.Zone, &in.Locality.Region, &in.ClusterID}[i-1] = "elsewhere"
		}
		g.eps = append(g.eps, &in)
	}
	b.Workloads = g.eps
	m.apply(b)
	return g
}

func (g *group) addr() string { return g.vip.String() }

// left counts how often a node's connections left an endpoint for this reason.
func left(t *testing.T, n *node, reason string) int {
	t.Helper()
	families, err := n.srv.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "warren_connect_retries_total" {
			continue
		}
		for _, x := range f.GetMetric() {
			if x.GetLabel()[0].GetValue() == reason {
				return int(x.GetCounter().GetValue())
			}
		}
	}
	t.Fatalf("no metric of connections that left because of %q", reason)
	return 0
}

// absent is a workload at an address that nobody has.
func absent(p *pod, ip string, protocol workload.TunnelProtocol) *workload.Workload {
	w := *p.w
	w.Name, w.Protocol, w.Addresses = "absent-"+ip, protocol, []netip.Addr{netip.MustParseAddr(ip)}
	w.UID = "Kubernetes//Pod/default/" + w.Name
	return &w
}

// silence has the node drop what is for an address, without a word.
func (n *node) silence(ip netip.Addr) {
	n.mesh.t.Helper()
	err := n.NS.Do(func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(32, 32)}, Type: syscall.RTN_BLACKHOLE})
	})
	if err != nil {
		n.mesh.t.Fatal(err)
	}
}

// A connection to a service goes to the next endpoint when one does not take it,
// whatever the way of not taking it; the next connections spare that one.
func TestConnectRetries(t *testing.T) {
	m := newMesh(t, 2)
	client := m.nodes[0].meshPod("client")
	good, goodHere := m.nodes[1].meshPod("good"), m.nodes[0].meshPod("good-here")
	deaf, deafHere := m.nodes[1].meshPod("deaf"), m.nodes[0].meshPod("deaf-here") // nothing listens
	plain := m.nodes[1].pod("plain")
	plainGood := m.nodes[1].pod("plain-good")
	unserved := m.nodes[1].pod("unserved")
	other := m.nodes[1].meshPod("other")
	for _, p := range []*pod{good, goodHere, plainGood, other} {
		p.echo(8080)
	}
	claimed := *unserved.w // the control plane says that it takes tunnels
	claimed.Protocol = workload.HBONE
	successor := *other.w // the control plane still has the pod that had its address before
	successor.Name, successor.ServiceAccount, successor.UID = "before", "before", "Kubernetes//Pod/default/before"
	gone := good.IP4.As4()
	gone[3] = 251
	nobody := netip.AddrFrom4(gone).String()
	gone[3] = 252
	silent := netip.AddrFrom4(gone)
	m.nodes[1].silence(silent)
	for _, tt := range []struct {
		name   string
		bad    *workload.Workload
		next   *pod
		reason string
		said   string
	}{
		{"nothing listens", deaf.w, good, "unavailable", "http status: 503"},
		{"nothing listens on this node", deafHere.w, good, "unavailable", "http status: 503"},
		{"to an endpoint on this node", deaf.w, goodHere, "unavailable", "http status: 503"},
		{"from one endpoint on this node to another", deafHere.w, goodHere, "unavailable", "http status: 503"},
		{"nothing listens outside the mesh", plain.w, good, "refused", "onnection refused"},
		{"to an endpoint outside the mesh", plain.w, plainGood, "refused", "onnection refused"},
		{"no tunnels are taken", &claimed, good, "refused", "onnection refused"},
		{"somebody else has the address", &successor, good, "identity", "identity verification error"},
		{"nobody has the address", absent(good, nobody, workload.HBONE), good, "unreachable", "unreachable"},
		{"nobody has the address, outside the mesh", absent(plain, nobody, workload.TCP), good, "unreachable", "unreachable"},
		{"nobody answers", absent(good, silent.String(), workload.HBONE), good, "timeout", "connection timed out"},
		{"nobody answers, outside the mesh", absent(plain, silent.String(), workload.TCP), good, "timeout", "deadline has elapsed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m.nodes[0].srv.WakeAll()
			g := m.group(tt.bad, tt.next.w)
			before, mark := left(t, m.nodes[0], tt.reason), m.nodes[0].logs.mark()
			client.mustCall(g.addr())
			line := m.nodes[0].logs.access(t, mark, map[string]string{
				"direction": "outbound", "dst.service": g.key.Hostname, "dst.workload": tt.next.w.Name,
				"tried": netip.AddrPortFrom(tt.bad.Addresses[0], 8080).String() + ": ", "error": "",
			})
			if s, _ := line["tried"].(string); !strings.Contains(s, tt.said) {
				t.Errorf("tried %q, want it to say %q", s, tt.said)
			}
			if n := left(t, m.nodes[0], tt.reason) - before; n != 1 {
				t.Errorf("%d connections were counted as having left because of %q, want 1", n, tt.reason)
			}
			mark = m.nodes[0].logs.mark()
			client.mustCall(g.addr())
			m.nodes[0].logs.access(t, mark, map[string]string{"direction": "outbound", "dst.workload": tt.next.w.Name, "tried": "", "error": ""})
			if n := left(t, m.nodes[0], tt.reason) - before; n != 1 {
				t.Errorf("the next connection did not spare the endpoint that failed")
			}
			m.apply(workload.Batch{RemovedAddresses: []string{g.key.Namespace + "/" + g.key.Hostname}})
		})
	}
	until(t, "all connections are gone", func() bool { return m.nodes[0].srv.Tracked().Len()+m.nodes[1].srv.Tracked().Len() == 0 })
	had := m.nodes[0].srv.Sockets() // tunnels
	g := m.group(plain.w, plainGood.w)
	for range 5 {
		m.nodes[0].srv.WakeAll()
		client.mustCall(g.addr())
	}
	until(t, "descriptors are given back", func() bool { return m.nodes[0].srv.Sockets() == had })
}

// What an endpoint refuses is not asked of the others.
func TestDenialIsNotRetried(t *testing.T) {
	m := newMesh(t, 2)
	client := m.nodes[0].meshPod("client")
	strict, strictHere, open := m.nodes[1].meshPod("strict"), m.nodes[0].meshPod("strict-here"), m.nodes[1].meshPod("open")
	for _, p := range []*pod{strict, strictHere, open} {
		p.echo(8080)
	}
	selector := deny("selected", workload.Match{Principals: principals(client)})
	selector.Scope = workload.ScopeSelector
	m.apply(workload.Batch{Policies: []*workload.Policy{selector}})
	for _, p := range []*pod{strict, strictHere} {
		w := *p.w
		w.Policies = []string{"default/selected"}
		g := m.group(&w, open.w)
		for range 2 { // it does not rest either
			mark := m.nodes[0].logs.mark()
			client.mustFail(g.addr())
			m.nodes[0].logs.access(t, mark, map[string]string{"direction": "outbound", "dst.workload": p.w.Name, "tried": "", "error": "http status: 401"})
		}
	}
}

// When nobody takes the connection, the log names all who were asked, and asks
// nobody twice.
func TestAllEndpointsFail(t *testing.T) {
	m := newMesh(t, 2)
	client := m.nodes[0].meshPod("client")
	var eps []*workload.Workload
	for i := range 5 {
		eps = append(eps, m.nodes[1].meshPod(fmt.Sprint("deaf", i)).w)
	}
	at := func(i int) string {
		return netip.AddrPortFrom(eps[i].Addresses[0], 8080).String() + ": http status: 503"
	}
	for _, tt := range []struct {
		name string
		eps  int
		said []int // those before the last
	}{
		{"of one", 1, nil},
		{"of two", 2, []int{0}},
		{"of five, four are asked", 5, []int{0, 1, 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m.nodes[0].srv.WakeAll()
			g := m.group(eps[:tt.eps]...)
			mark := m.nodes[0].logs.mark()
			client.mustFail(g.addr())
			want := map[string]string{"direction": "outbound", "dst.service": g.key.Hostname, "error": "http status: 503", "tried": ""}
			line := fmt.Sprint(m.nodes[0].logs.access(t, mark, want)["error"])
			for _, i := range tt.said {
				if !strings.Contains(line, at(i)) {
					t.Errorf("error %q does not name %s", line, at(i))
				}
			}
			if n := strings.Count(line, "503"); n != len(tt.said)+1 {
				t.Errorf("error %q names %d attempts, want %d", line, n, len(tt.said)+1)
			}
			arrived := func() (n int) {
				for line := range strings.Lines(m.nodes[1].logs.text()) { // which is a moment late
					if strings.Contains(line, `"connection complete"`) && strings.Contains(line, g.key.Hostname) {
						n++
					}
				}
				return n
			}
			until(t, "all attempts have arrived", func() bool { return arrived() >= len(tt.said)+1 })
			if n := arrived(); n != len(tt.said)+1 {
				t.Errorf("%d connections arrived, want %d", n, len(tt.said)+1)
			}
		})
	}
}

// CONNECT_RETRIES=0: the first endpoint's answer is the answer, and nothing rests.
func TestRetriesOff(t *testing.T) {
	m := newMesh(t, 2, func(c *proxy.Config) { c.ConnectRetries = 0 })
	client, deaf, good := m.nodes[0].meshPod("client"), m.nodes[1].meshPod("deaf"), m.nodes[1].meshPod("good")
	good.echo(8080)
	g := m.group(deaf.w, good.w)
	for range 2 {
		mark := m.nodes[0].logs.mark()
		client.mustFail(g.addr())
		m.nodes[0].logs.access(t, mark, map[string]string{"direction": "outbound", "dst.workload": "deaf", "tried": "", "error": "http status: 503 Service Unavailable"})
	}
}

// An endpoint that rests is used when there is no other, and is as good as any
// again once it has taken a connection.
func TestRestingEndpointIsBetterThanNone(t *testing.T) {
	m := newMesh(t, 2)
	client, ep, other := m.nodes[0].meshPod("client"), m.nodes[1].meshPod("ep"), m.nodes[1].meshPod("other")
	g := m.group(ep.w, other.w)
	client.mustFail(g.addr()) // both rest
	ep.echo(8080)
	client.mustCall(g.addr())
	other.echo(8080)
	mark := m.nodes[0].logs.mark()
	client.mustCall(g.addr())
	m.nodes[0].logs.access(t, mark, map[string]string{"direction": "outbound", "dst.workload": "ep", "tried": "", "error": ""})
}

// Bytes that the client has sent before anybody took the connection arrive once,
// and only where it was taken.
func TestRetryLosesNothing(t *testing.T) {
	m := newMesh(t, 2)
	client, deaf, good := m.nodes[0].meshPod("client"), m.nodes[1].meshPod("deaf"), m.nodes[1].meshPod("good")
	away := good.IP4.As4()
	away[3] = 252
	silent := netip.AddrFrom4(away)
	m.nodes[1].silence(silent)
	got := make(chan string, 10)
	good.listen(8080, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		got <- string(b)
		fmt.Fprintf(c, "%d", len(b))
	})
	text := strings.Repeat("0123456789abcdef", 10_000)
	for _, first := range []*workload.Workload{deaf.w, absent(good, silent.String(), workload.HBONE)} {
		g := m.group(first, good.w)
		c, err := client.dial(g.addr())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		c.CloseWrite()
		if b, err := io.ReadAll(c); err != nil || string(b) != fmt.Sprint(len(text)) {
			t.Errorf("answer %q, %v", b, err)
		}
		c.Close()
		if s := <-got; s != text {
			t.Errorf("%d bytes arrived, want %d as sent", len(s), len(text))
		}
	}
	select {
	case s := <-got:
		t.Errorf("a further connection arrived with %d bytes", len(s))
	case <-time.After(20 * time.Millisecond):
	}
}

// A pod that is stopped while a connection of it looks for an endpoint ends, and
// the connection with it.
func TestStopWhileRetrying(t *testing.T) {
	m := newMesh(t, 1)
	n := m.nodes[0]
	client := n.meshPod("client")
	base := client.IP4.As4()
	base[3] = 240
	var eps []*workload.Workload
	for range 4 {
		silent := netip.AddrFrom4(base)
		n.silence(silent)
		eps = append(eps, absent(client, silent.String(), workload.HBONE))
		base[3]++
	}
	g := m.group(eps...)
	c, err := client.dial(g.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	until(t, "the connection is known", func() bool { return n.srv.Tracked().Len() == 1 })
	if err := n.srv.Handler().Del(t.Context(), client.uid); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); err == nil {
		t.Error("the connection ended in good order")
	}
	until(t, "the connection is gone", func() bool { return n.srv.Tracked().Len() == 0 })
}

// A gateway to another network is one endpoint among others: one that does not take
// connections is left, and is gone to when another does not. So is an endpoint behind it,
// of which it chooses one for each connection.
func TestConnectRetriesAndGateways(t *testing.T) {
	m, client, server, gw, _ := twoNetworks(t)
	server.echo(8080)
	good, deaf := m.nodes[0].meshPod("good"), m.nodes[0].meshPod("deaf")
	good.echo(8080)
	through := func(string) hop { return hop{raw: server.addr(15008)} }
	goes := func(name string, g *group, want map[string]string) {
		t.Helper()
		m.nodes[0].srv.WakeAll()
		mark := m.nodes[0].logs.mark()
		client.mustCall(g.addr())
		want["direction"], want["error"] = "outbound", ""
		t.Log(name)
		m.nodes[0].logs.access(t, mark, want)
	}
	gw.sends(func(string) hop { return hop{status: 503} })
	goes("the gateway refuses", m.group(server.w, good.w), map[string]string{"dst.workload": "good", "tried": "503"})
	gw.sends(through)
	goes("from a deaf endpoint to one behind the gateway", m.group(deaf.w, server.w), map[string]string{"dst.workload": "server", "tried": "503"})
	nowhere := *server.w
	place := gw.IP4.As4()
	place[3] = 253
	nowhere.NetworkGateway = &workload.GatewayAddress{Address: workload.NetworkAddr{Network: "n2", Addr: netip.AddrFrom4(place)}, HBONEPort: 15008}
	lost := *gw.w // the control plane still knows a gateway there
	lost.UID, lost.Name, lost.Addresses = "Kubernetes//Pod/default/lost", "lost", []netip.Addr{netip.AddrFrom4(place)}
	m.apply(workload.Batch{Workloads: []*workload.Workload{&lost}})
	goes("no gateway there", m.group(&nowhere, good.w), map[string]string{"dst.workload": "good", "tried": "unreachable"})
	m.apply(workload.Batch{Workloads: []*workload.Workload{server.w}})

	idle, broken := m.nodes[1].meshPod("idle"), m.nodes[1].pod("broken")
	idle.change(func(w *workload.Workload) { w.Network, w.NetworkGateway = "n2", server.w.NetworkGateway })
	broken.listen(15008, func(*net.TCPConn) {}) // what was there has gone
	gw.sends(func(string) hop { return hop{raw: idle.addr(15008)} })
	goes("nobody listens behind the gateway", m.group(idle.w, good.w), map[string]string{"dst.workload": "good", "tried": "503"})
	gw.sends(func(string) hop { return hop{raw: broken.addr(15008)} })
	goes("broken off behind the gateway", m.group(server.w, good.w), map[string]string{"dst.workload": "good", "tried": "behind network gateway"})
	var asked atomic.Int32
	gw.sends(func(string) hop {
		if asked.Add(1) == 1 {
			return hop{raw: broken.addr(15008)}
		}
		return through("")
	})
	goes("there is another one behind the gateway", m.group(server.w), map[string]string{"dst.workload": "server", "tried": "behind network gateway"})
	gw.sends(func(string) hop { asked.Add(1); return hop{raw: broken.addr(15008)} })
	asked.Store(0)
	client.mustFail(m.group(server.w).addr())
	if n := asked.Load(); n != 2 {
		t.Errorf("the gateway was asked %d times for somebody else behind it, want 2", n)
	}
	gw.sends(through)

	m.nodes[0].srv.WakeAll()
	g := m.group(server.w, good.w)
	m.apply(workload.Batch{Policies: []*workload.Policy{deny("p", workload.Match{Principals: principals(client)})}})
	mark := m.nodes[0].logs.mark()
	client.mustFail(g.addr())
	m.nodes[0].logs.access(t, mark, map[string]string{"direction": "outbound", "dst.workload": "server", "tried": "", "error": "401"})
}

// hangs makes an application that never answers: the queue of its listener is full.
func (p *pod) hangs(port int) (listener *os.File) {
	t := p.node.mesh.t
	t.Helper()
	err := p.NS.Do(func() error {
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		listener = os.NewFile(uintptr(fd), "listener")
		t.Cleanup(func() { listener.Close() })
		if err := syscall.Bind(fd, &syscall.SockaddrInet4{Port: port}); err != nil {
			return err
		}
		return syscall.Listen(fd, 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.dial(fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return listener
}

// Who is cut by a policy while the application on its own node is connected to has been
// refused: the connection does not go to another endpoint, nor does this one rest.
func TestCutOnThisNodeIsNotRetried(t *testing.T) {
	m := newMesh(t, 1)
	n := m.nodes[0]
	client, strict, open := n.meshPod("client"), n.meshPod("strict"), n.meshPod("open")
	strict.hangs(8080)
	open.echo(8080)
	selector := deny("selected", workload.Match{Principals: principals(client)})
	selector.Scope = workload.ScopeSelector
	m.apply(workload.Batch{Policies: []*workload.Policy{selector}})
	g := m.group(strict.w, open.w)
	mark := n.logs.mark()
	c, err := client.dial(g.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	until(t, "the application is connected to", func() bool { return n.srv.Tracked().Len() == 2 })
	w := *g.eps[0]
	w.Policies = []string{"default/selected"}
	m.apply(workload.Batch{Workloads: []*workload.Workload{&w}})
	if _, err := io.ReadAll(c); err == nil {
		t.Error("the connection ended in good order")
	}
	n.logs.access(t, mark, map[string]string{"direction": "outbound", "dst.workload": "strict", "tried": "", "error": "http status: 401"})

	m.apply(workload.Batch{RemovedPolicies: []string{selector.ResourceName()}})
	t.Run("left since it does not answer", func(t *testing.T) {
		before, mark := left(t, n, "timeout"), n.logs.mark()
		client.mustCall(m.group(strict.w, open.w).addr())
		n.logs.access(t, mark, map[string]string{"direction": "outbound", "dst.workload": "open", "tried": "no answer within 2s", "error": ""})
		if left(t, n, "timeout") != before+1 {
			t.Error("not counted as a timeout")
		}
	})
}

// An endpoint of another node that takes the TCP connection and is silent then is left in
// time for another one, whoever it is that hangs: its application, for which its proxy
// would wait longer, or its proxy.
func TestSilentEndpointIsLeft(t *testing.T) {
	m := newMesh(t, 2)
	hung, good, mute := m.nodes[1].meshPod("hung"), m.nodes[1].meshPod("good"), m.nodes[1].pod("mute")
	another := m.nodes[1].meshPod("another")
	cold, warm, third := m.nodes[0].meshPod("cold"), m.nodes[0].meshPod("warm"), m.nodes[0].meshPod("third")
	hung.hangs(8080)
	hung.echo(9090)
	good.echo(8080)
	another.echo(8080)
	mute.listen(15008, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	claimed := *mute.w
	claimed.Protocol = workload.HBONE
	warm.mustCall(hung.addr(9090)) // has a tunnel
	before, mark := left(t, m.nodes[0], "timeout"), m.nodes[0].logs.mark()
	a, b := m.group(hung.w, good.w).addr(), m.group(&claimed, another.w).addr()
	calls := []struct {
		client *pod
		addr   string
		bad    *workload.Workload
		good   string
	}{{cold, a, hung.w, "good"}, {warm, a, hung.w, "good"}, {third, b, &claimed, "another"}}
	errs := make(chan error, len(calls))
	for _, c := range calls {
		go func() {
			_, answer, err := c.client.call(c.addr, "hello")
			if err == nil && answer != "hello" {
				err = fmt.Errorf("answer %q", answer)
			}
			errs <- err
		}()
	}
	for range calls {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for _, c := range calls {
		m.nodes[0].logs.access(t, mark, map[string]string{
			"direction": "outbound", "src.workload": c.client.w.Name, "dst.workload": c.good, "error": "",
			"tried": netip.AddrPortFrom(c.bad.Addresses[0], 8080).String() + ": ",
		})
	}
	if n := left(t, m.nodes[0], "timeout") - before; n != len(calls) {
		t.Errorf("%d connections left because of a timeout, want %d", n, len(calls))
	}
	until(t, "all connections are gone", func() bool { return m.nodes[0].srv.Tracked().Len() == 0 })
}

// An endpoint behind a network's gateway that is silent is left in time as well: for
// another one, and where there is none for whom the gateway chooses next.
func TestSilentBehindAGatewayIsLeft(t *testing.T) {
	m, client, server, gw, _ := twoNetworks(t)
	server.echo(8080)
	good, mute := m.nodes[0].meshPod("good"), m.nodes[1].pod("mute")
	good.echo(8080)
	mute.listen(15008, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	second := m.nodes[1].meshPod("second")
	second.change(func(w *workload.Workload) { w.Network, w.NetworkGateway = "n2", server.w.NetworkGateway })
	alone, one := m.group(server.w), m.group(second.w, good.w)
	var asked sync.Map // authorities
	gw.sends(func(authority string) hop {
		if _, again := asked.LoadOrStore(authority, true); again {
			return hop{raw: server.addr(15008)}
		}
		return hop{raw: mute.addr(15008)}
	})
	mark := m.nodes[0].logs.mark()
	errs := make(chan error, 2)
	for _, g := range []*group{alone, one} {
		go func() {
			_, answer, err := client.call(g.addr(), "hello")
			if err == nil && answer != "hello" {
				err = fmt.Errorf("answer %q", answer)
			}
			errs <- err
		}()
	}
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for _, who := range []string{"server", "good"} {
		line := m.nodes[0].logs.access(t, mark, map[string]string{"direction": "outbound", "dst.workload": who, "tried": "behind network gateway", "error": ""})
		if tried := fmt.Sprint(line["tried"]); !strings.Contains(tried, "no answer within 4s") {
			t.Errorf("%s: tried %q", who, tried)
		}
	}
	until(t, "all connections are gone", func() bool { return m.nodes[0].srv.Tracked().Len() == 0 })
}
