package proxy_test

import (
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/proxy"
	"github.com/warren-mesh/warren/xds/workload"
)

// A proxy of one pod serves it in its own namespace, and nobody else: no agent is
// asked, and none need be there.
func TestDedicated(t *testing.T) {
	m := newMesh(t, 1)
	n := m.nodes[0]
	lone, server, outside := n.pod("lone"), n.meshPod("server"), n.pod("outside")
	r := n.resolver("resolver")
	lone.w.Protocol = workload.HBONE
	rules := redirect.Defaults()
	rules.DNS = true
	if err := m.rules.Apply(lone.NS, rules); err != nil {
		t.Fatal(err)
	}
	own := m.addNodeIn("another", lone.NS, func(c *proxy.Config) {
		c.Dedicated, c.NodeName, c.ZDSPath = true, "", ""
		c.Pod = zds.Info{Name: "lone", Namespace: "default", ServiceAccount: "lone"}
		c.Sockets.Mark = redirect.MarkProxy // the rules here tell by it
	})
	m.apply(workload.Batch{Workloads: []*workload.Workload{lone.w, server.w}})
	m.apply(echoService(server))
	until(t, "it is ready", func() bool { return own.readiness(t) == "ready" })
	for _, p := range []*pod{lone, server} {
		p.echo(8080)
	}
	mark := own.logs.mark()
	if saw := lone.mustCall(server.addr(8080)); saw != lone.IP4.String() {
		t.Errorf("the server saw %s", saw)
	}
	own.logs.access(t, mark, map[string]string{"direction": "outbound", "src.identity": lone.identity(), "dst.identity": server.identity(), "error": ""})
	mark = own.logs.mark()
	if saw := server.mustCall(lone.addr(8080)); saw != server.IP4.String() {
		t.Errorf("the lone pod saw %s", saw)
	}
	own.logs.access(t, mark, map[string]string{"direction": "inbound", "src.identity": server.identity(), "dst.identity": lone.identity(), "error": ""})
	outside.mustCall(lone.addr(8080))
	if got, err := lone.ask("udp", r.IP4, "echo.default.svc.cluster.local", 1); err != nil || got != "10.96.0.10" {
		t.Errorf("DNS: %q, %v", got, err)
	}
	m.apply(workload.Batch{Policies: []*workload.Policy{deny("p", workload.Match{Principals: principals(server)})}})
	server.mustFail(lone.addr(8080))
	var dump map[string]any
	own.dump(t, &dump)
	if _, there := dump["workloadState"]; there || dump["config"].(map[string]any)["proxyMode"] != "Dedicated" {
		t.Error("the dump is of a proxy that shares pods")
	}
	if err := own.stop(); err != nil {
		t.Fatal(err)
	}
	lone.mustFail(server.addr(8080)) // redirected, and nobody there
	if left := own.srv.Sockets(); left != 0 {
		t.Errorf("%d sockets were not given back", left)
	}
}

// dump fetches the proxy's dump.
func (n *node) dump(t *testing.T, v any) {
	t.Helper()
	resp, err := http.Get("http://" + n.srv.Addresses()[0] + "/config_dump")
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		t.Fatal(err)
	}
}

// The proxy's own pod is reached by HBONE, like any other of the mesh, with its
// identity and under its policies; what comes in plaintext is not its business.
func TestSelf(t *testing.T) {
	m := newMesh(t, 1)
	client := m.nodes[0].meshPod("client")
	home, bad := m.nodes[0].pod("home"), m.nodes[0].meshPod("bad")
	own := m.addNodeIn("another", home.NS, func(c *proxy.Config) {
		c.PodName, c.PodNamespace, c.ServiceAccount = "home", "default", "home"
		// An address of this process alone: others may run these tests, too.
		c.Stats = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 15, byte(os.Getpid() >> 8), byte(os.Getpid())}), proxy.StatsPort)
	})
	home.node = own
	home.w.Protocol, home.w.Node = workload.HBONE, "another"
	m.apply(workload.Batch{Workloads: []*workload.Workload{client.w, bad.w, home.w}})
	home.echo(15020)
	home.echo(4444)
	until(t, "it is served", func() bool { return strings.Contains(own.logs.text(), "the proxy's own namespace is served") })
	mark := own.logs.mark()
	// Nothing is redirected there, so it sees itself as the caller.
	if saw := client.mustCall(home.addr(15020)); saw != home.IP4.String() {
		t.Errorf("it saw %s", saw)
	}
	own.logs.access(t, mark, map[string]string{
		"direction": "inbound", "src.addr": client.IP4.String(), "src.identity": client.identity(), "dst.identity": home.identity(), "dst.hbone_addr": home.addr(15020), "error": "",
	})
	client.mustFail(home.addr(4444))
	until(t, "the refusal is told", func() bool { return strings.Contains(own.logs.text(), "port 4444 is not open to the mesh") })
	m.apply(workload.Batch{Policies: []*workload.Policy{deny("p", workload.Match{Principals: principals(bad)})}})
	bad.mustFail(home.addr(15020))
	client.mustCall(home.addr(15020))
	for _, port := range []string{"15001", "15006", "15053"} {
		if c, err := home.Dial(t.Context(), "tcp", net.JoinHostPort("127.0.0.1", port)); err == nil {
			c.Close()
			t.Errorf("somebody listens on %s", port)
		}
	}
	var dump struct{ WorkloadState map[string]any }
	own.dump(t, &dump)
	if dump.WorkloadState == nil || len(dump.WorkloadState) != 0 {
		t.Errorf("among the pods that it serves: %v", dump.WorkloadState)
	}
	if err := own.stop(); err != nil {
		t.Fatal(err)
	}
	client.mustFail(home.addr(15020))
}

// In the node's network the proxy takes no HBONE: the node's addresses are not the mesh's.
func TestSelfOnTheNode(t *testing.T) {
	m := newMesh(t, 1)
	home := m.nodes[0].pod("home")
	own := m.addNodeIn("another", home.NS, func(c *proxy.Config) {
		c.PodName, c.PodNamespace, c.ServiceAccount = "home", "default", "home"
	})
	home.node = own
	home.w.Node, home.w.NetworkMode = "another", workload.HostNetwork
	m.apply(workload.Batch{Workloads: []*workload.Workload{home.w}})
	until(t, "it knows where it is", func() bool { return strings.Contains(own.logs.text(), "it is in the node's network") })
	if c, err := home.Dial(t.Context(), "tcp", net.JoinHostPort("127.0.0.1", "15008")); err == nil {
		c.Close()
		t.Error("the node takes HBONE")
	}
}
