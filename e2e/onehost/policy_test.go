package onehost_test

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// policy puts an AuthorizationPolicy in place for the length of a test.
func policy(t *testing.T, m *onehost.Mesh, name, spec string) {
	t.Helper()
	if err := m.PutPolicy("app", name, spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Remove("AuthorizationPolicy", "app", name); err != nil {
			t.Error(err)
		}
		if err := m.WaitNoPolicy(testContext(t), "app/"+name); err != nil {
			t.Error(err)
		}
	})
	if err := m.WaitPolicy(testContext(t), "app/"+name); err != nil {
		t.Fatal(err)
	}
}

func TestPolicy(t *testing.T) {
	m := sharedMesh(t)
	alice, bob := addPod(t, m.Nodes[0], "app", "alice", nil), addPod(t, m.Nodes[0], "app", "bob", nil)
	old := addPod(t, m.Nodes[0], "plain", "old", nil)
	server := addPod(t, m.Nodes[1], "app", "server", nil)
	echo(t, server, 7)
	echo(t, server, 8)
	waitPods(t, m)
	for _, tc := range []struct {
		name, spec string
		denied     map[*onehost.Pod][]int // ports
	}{
		{name: "deny principal", spec: `
  action: DENY
  rules: [{from: [{source: {principals: ["cluster.local/ns/app/sa/alice"]}}]}]
`, denied: map[*onehost.Pod][]int{alice: {7, 8}}},
		{name: "deny port", spec: `
  action: DENY
  rules: [{to: [{operation: {ports: ["8"]}}]}]
`, denied: map[*onehost.Pod][]int{alice: {8}, bob: {8}, old: {8}}},
		{name: "deny ip", spec: `
  action: DENY
  rules: [{from: [{source: {ipBlocks: ["BOB/32"]}}]}]
`, denied: map[*onehost.Pod][]int{bob: {7, 8}}},
		{name: "deny other namespaces", spec: `
  action: DENY
  rules: [{from: [{source: {notNamespaces: ["app"]}}]}]
`, denied: map[*onehost.Pod][]int{old: {7, 8}}},
		{name: "allow namespace", spec: `
  action: ALLOW
  rules: [{from: [{source: {namespaces: ["app"]}}]}]
`, denied: map[*onehost.Pod][]int{old: {7, 8}}},
		{name: "allow principal on port", spec: `
  action: ALLOW
  rules: [{from: [{source: {principals: ["cluster.local/ns/app/sa/bob"]}}], to: [{operation: {ports: ["7"]}}]}]
`, denied: map[*onehost.Pod][]int{alice: {7, 8}, bob: {8}, old: {7, 8}}},
		{name: "allow nothing", spec: " {}\n", denied: map[*onehost.Pod][]int{alice: {7, 8}, bob: {7, 8}, old: {7, 8}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			name := strings.ReplaceAll(tc.name, " ", "-")
			policy(t, m, name, strings.ReplaceAll(tc.spec, "BOB", bob.IP4().String()))
			for _, from := range []*onehost.Pod{alice, bob, old} {
				for _, port := range []int{7, 8} {
					denied := false
					for _, p := range tc.denied[from] {
						denied = denied || p == port
					}
					err := roundTrip(from, netip.AddrPortFrom(server.IP4(), uint16(port)), "hello")
					if denied != (err != nil) {
						t.Errorf("%s → port %d: %v, want denied %v", from.Spec.ServiceAccount, port, err, denied)
					}
				}
			}
		})
	}
	mustEcho(t, old, netip.AddrPortFrom(server.IP4(), 8))
}

func TestStrictMTLS(t *testing.T) {
	m := sharedMesh(t)
	client, old := addPod(t, m.Nodes[0], "app", "client", nil), addPod(t, m.Nodes[0], "plain", "old", nil)
	server := addPod(t, m.Nodes[1], "app", "server", map[string]string{"app": "strict"})
	dst := echo(t, server, 7)
	waitPods(t, m)
	mustEcho(t, old, dst)
	held := dial(t, old, dst)
	held.Write([]byte("x"))
	if _, err := io.ReadFull(held, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := m.PutPeerAuthentication("app", "strict", "  selector: {matchLabels: {app: strict}}\n  mtls: {mode: STRICT}\n"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Remove("PeerAuthentication", "app", "strict") })
	eventually(t, 10*time.Second, "plaintext is refused", func() error {
		if roundTrip(old, dst, "hello") == nil {
			return errors.New("still carried")
		}
		return nil
	})
	if _, err := held.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a plaintext connection from before: read ended with %v, want it cut", err)
	}
	mustEcho(t, client, dst)
}

// TestPolicyChangeCutsLive attaches a selector policy while a connection is up.
func TestPolicyChangeCutsLive(t *testing.T) {
	m := sharedMesh(t)
	client, other := addPod(t, m.Nodes[0], "app", "client", nil), addPod(t, m.Nodes[0], "app", "other", nil)
	server := addPod(t, m.Nodes[1], "app", "server", map[string]string{"app": "cut"})
	dst := echo(t, server, 7)
	waitPods(t, m)
	up := func(p *onehost.Pod) interface {
		io.ReadWriter
	} {
		c := dial(t, p, dst)
		c.Write([]byte("x"))
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	cut, kept := up(client), up(other)
	logs := m.AccessLogs()
	policy(t, m, "cut", "  selector: {matchLabels: {app: cut}}\n  action: DENY\n  rules: [{from: [{source: {principals: [\"cluster.local/ns/app/sa/client\"]}}]}]\n")
	if _, err := cut.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the denied connection's read ended with %v, want it cut", err)
	}
	if _, err := kept.Write([]byte("y")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(kept, make([]byte, 1)); err != nil {
		t.Fatalf("a connection that is still allowed: %v", err)
	}
	eventually(t, 5*time.Second, "the access log says why", func() error {
		lines, err := logs.Lines()
		for _, l := range lines {
			if l.Direction == "inbound" && l.Err == "connection closed due to policy change" {
				return nil
			}
		}
		return errors.Join(err, fmt.Errorf("lines: %+v", lines))
	})
}
