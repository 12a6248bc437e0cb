package proxy_test

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/proxy"
)

// readiness is the answer of the readiness port.
func (n *node) readiness(t *testing.T) string {
	t.Helper()
	addrs := n.srv.Addresses()
	resp, err := http.Get("http://" + addrs[len(addrs)-1] + "/healthz/ready")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// Ready is who has a node agent, its whole snapshot, and no pod that waits.
func TestReadiness(t *testing.T) {
	const pending = "not ready, pending: workload proxy manager"
	m := newMesh(t, 1)
	n := m.nodes[0]
	h := n.srv.Handler()
	want := func(when, want string) {
		t.Helper()
		until(t, when+": "+want, func() bool { return n.readiness(t) == want })
	}
	connect := func() {
		t.Helper()
		n.srv.AgentState(true, false)
		want("connected", pending)
		if err := h.Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
		n.srv.AgentState(true, true)
	}
	want("no agent", pending)
	connect()
	want("after the snapshot", "ready")
	p := n.pod("p")
	taken, err := p.Listen("tcp", ":15008")
	if err != nil {
		t.Fatal(err)
	}
	ns, err := p.NS.Dup()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Add(t.Context(), zds.Workload{UID: "u", NS: ns, Info: zds.Info{Name: "p", Namespace: "default"}}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("Add: %v", err)
	}
	want("a pod waits", pending)
	n.srv.AgentState(false, false)
	connect()
	want("the agent has come back without that pod", "ready")
	taken.Close()
	n.srv.RetryPods(t.Context())
	if c, err := p.Dial(t.Context(), "tcp", "127.0.0.1:15008"); err == nil {
		c.Close()
		t.Error("a pod that this agent did not name is served")
	}
	n.srv.AgentState(false, false)
	want("no agent any more", pending)
	m.stop()
	if ns, err = p.NS.Dup(); err != nil {
		t.Fatal(err)
	}
	if err := h.Add(t.Context(), zds.Workload{UID: "u", NS: ns, Info: zds.Info{Name: "p", Namespace: "default"}}); err == nil {
		t.Error("a pod was taken after the end")
	}
}

// A Del that comes before the snapshot is complete only takes the name back.
func TestDelBeforeSnapshot(t *testing.T) {
	m := newMesh(t, 2)
	client, server := m.nodes[0].meshPod("client"), m.nodes[1].meshPod("server")
	server.echo(8080)
	n := m.nodes[1]
	l := open(t, client, server.addr(8080))
	defer l.Close()
	n.srv.AgentState(true, false)
	n.srv.Handler().Keep(server.uid)
	if err := n.srv.Handler().Del(t.Context(), server.uid); err != nil {
		t.Fatal(err)
	}
	l.ping(t)
	client.mustCall(server.addr(8080))
	if err := n.srv.Handler().Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(l); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("ended with %v, want a reset", err)
	}
	client.mustFail(server.addr(8080))
}

// As long as the world is not known nobody is taken in: everybody would seem to
// be outside of the mesh. And the agent's folder may come after the proxy.
func TestWorldFirst(t *testing.T) {
	world, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer world.Close()
	dir := filepath.Join(t.TempDir(), "later")
	m := newMesh(t, 1, func(c *proxy.Config) {
		c.XDS.Address, c.ZDSPath = "http://"+world.Addr().String(), filepath.Join(dir, "zds.sock")
	})
	n := m.nodes[0]
	until(t, "the socket was tried for", func() bool { return strings.Contains(n.logs.text(), "no administration socket yet") })
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	agent, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: n.cfg.ZDSPath, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	c, err := world.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	until(t, "the administration socket has come", func() bool {
		_, err := os.Stat(filepath.Join(dir, proxy.AdminSocket))
		return err == nil
	})
	if err := agent.SetDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := agent.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the agent is asked for pods: %v", err)
	}
	if got, want := n.readiness(t), "not ready, pending: state manager, workload proxy manager"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
