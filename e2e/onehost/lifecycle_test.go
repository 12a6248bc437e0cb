package onehost_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

func TestPodRecreatedUnderTheSameName(t *testing.T) {
	m := sharedMesh(t)
	ctx := testContext(t)
	client := addPod(t, m.Nodes[0], "app", "client", nil)
	spec := onehost.PodSpec{Namespace: "app", Name: "again", ServiceAccount: "server"}
	for i := range 3 {
		node := m.Nodes[i%2]
		p, err := node.AddPod(ctx, spec)
		if err != nil {
			t.Fatal(err)
		}
		s, err := p.Serve(7, onehost.Echo)
		if err != nil {
			t.Fatal(err)
		}
		waitPods(t, m)
		mustEcho(t, client, netip.AddrPortFrom(p.IP4(), 7))
		s.Close()
		if err := p.Delete(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTwoPodsOfOneServiceAccount(t *testing.T) {
	m := sharedMesh(t)
	a, b := addPod(t, m.Nodes[0], "app", "twin", nil), addPod(t, m.Nodes[0], "app", "twin", nil)
	server := addPod(t, m.Nodes[1], "app", "server", nil)
	dst := echo(t, server, 7)
	waitPods(t, m)
	mustEcho(t, a, dst)
	mustEcho(t, b, dst)
	if err := a.Delete(testContext(t)); err != nil {
		t.Fatal(err)
	}
	mustEcho(t, b, dst) // the certificate is still its own
	var d onehost.Dump
	if err := m.Nodes[0].ConfigDump(testContext(t), &d); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, c := range d.Certificates {
		if c.Identity == "spiffe://cluster.local/ns/app/sa/twin" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d certificates for one identity, want 1", n)
	}
}

// traffic makes connections from p to dst until stopped and returns how many
// there were and the errors.
func traffic(p *onehost.Pod, dst netip.AddrPort) (stop func() (int, []error)) {
	ctx, cancel := context.WithCancel(context.Background())
	var n int
	var errs []error
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			n++
			if err := roundTrip(p, dst, "ping"); err != nil {
				errs = append(errs, fmt.Errorf("connection %d at %s: %w", n, time.Now().Format("15:04:05.000"), err))
			}
		}
	})
	return func() (int, []error) {
		cancel()
		wg.Wait()
		return n, errs
	}
}

func held(t *testing.T, p *onehost.Pod, dst netip.AddrPort) func() error {
	c := dial(t, p, dst)
	ping := func() error {
		c.SetDeadline(time.Now().Add(8 * time.Second))
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	if err := ping(); err != nil {
		t.Fatal(err)
	}
	return ping
}

func TestRestarts(t *testing.T) {
	m := newMesh(t, onehost.Options{})
	client, server := addPod(t, m.Nodes[0], "app", "client", nil), addPod(t, m.Nodes[1], "app", "server", nil)
	dst := echo(t, server, 7)
	waitPods(t, m)
	rules, err := server.Rules()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(rules, "WARREN_PRERT") {
		t.Fatalf("no rules in the pod:\n%s", rules)
	}

	t.Run("agent killed and started: traffic never stops", func(t *testing.T) {
		ping, stop := held(t, client, dst), traffic(client, dst)
		for _, n := range m.Nodes {
			if err := n.KillAgent(); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range m.Nodes {
			if err := n.StartAgent(testContext(t)); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range m.Nodes {
			eventually(t, 20*time.Second, "status is healthy again", func() error { return healthy(n) })
		}
		if n, errs := stop(); len(errs) > 0 || n == 0 {
			t.Errorf("%d of %d connections failed: %v", len(errs), n, errs)
		}
		if err := ping(); err != nil {
			t.Errorf("the connection from before: %v", err)
		}
		// The agent found its pods again: it still removes what it did not add itself.
		late := addPod(t, m.Nodes[1], "app", "late", nil)
		echo(t, late, 7)
		waitPods(t, m)
		mustEcho(t, client, netip.AddrPortFrom(late.IP4(), 7))
	})

	t.Run("agent started beside a broken file: pods keep their place", func(t *testing.T) {
		if err := errors.Join(m.Nodes[1].KillAgent(), m.Break("Namespace", "", "app")); err != nil {
			t.Fatal(err)
		}
		if err := m.Nodes[1].StartAgent(testContext(t)); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, "the proxy is connected", func() error {
			text, _, err := m.Nodes[1].Status(testContext(t))
			if err == nil && !strings.Contains(text, "verified") {
				err = errors.New(text)
			}
			return err
		})
		if now, err := server.Rules(); err != nil || now != rules {
			t.Errorf("the pod's rules changed: %v\n%s", err, now)
		}
		mustEcho(t, client, dst)
		if _, err := m.Nodes[1].AddPod(testContext(t), onehost.PodSpec{Namespace: "app", Name: "undecided", ServiceAccount: "u"}); err == nil {
			t.Error("a pod was admitted, though nobody knows whether it belongs into the mesh")
		} else if !strings.Contains(err.Error(), "namespace-") {
			t.Errorf("the refusal does not name the file: %v", err)
		}
		if err := m.PutNamespace("app", map[string]string{"istio.io/dataplane-mode": "ambient"}); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, "status is healthy again", func() error { return healthy(m.Nodes[1]) })
	})

	t.Run("proxy killed and started: pods keep their place", func(t *testing.T) {
		if err := m.Nodes[1].KillProxy(); err != nil {
			t.Fatal(err)
		}
		if err := roundTrip(client, dst, "x"); err == nil {
			t.Error("carried without the proxy: not captured")
		}
		if err := m.Nodes[1].StartProxy(testContext(t)); err != nil {
			t.Fatal(err)
		}
		if err := m.Nodes[1].WaitProxyReady(testContext(t)); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, "new connections work", func() error { return roundTrip(client, dst, "x") })
		now, err := server.Rules()
		if err != nil || now != rules {
			t.Errorf("the pod's rules changed: %v\n%s", err, now)
		}
	})

	t.Run("control plane down: traffic goes on", func(t *testing.T) {
		ping := held(t, client, dst)
		if err := m.StopControlPlane(); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			mustEcho(t, client, dst)
		}
		if err := ping(); err != nil {
			t.Error(err)
		}
		eventually(t, 30*time.Second, "status says so", func() error {
			text, code, err := m.Nodes[0].Status(testContext(t))
			if err != nil || code != 1 {
				return fmt.Errorf("exit status %d, %v\n%s", code, err, text)
			}
			return nil
		})
		if err := m.StartControlPlane(testContext(t)); err != nil {
			t.Fatal(err)
		}
		eventually(t, 40*time.Second, "status is healthy again", func() error { return healthy(m.Nodes[0]) })
	})
}

func healthy(n *onehost.Node) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	text, code, err := n.Status(ctx)
	if err != nil || code != 0 {
		return fmt.Errorf("exit status %d, %v\n%s", code, err, text)
	}
	return nil
}

// TestDrainHandsOver ends a proxy as a rollout does, with its successor beside it.
func TestDrainHandsOver(t *testing.T) {
	m := newMesh(t, onehost.Options{})
	client, server := addPod(t, m.Nodes[0], "app", "client", nil), addPod(t, m.Nodes[1], "app", "server", nil)
	dst := echo(t, server, 7)
	waitPods(t, m)
	stop := traffic(client, dst)
	if err := m.Nodes[1].StopProxy(); err != nil {
		t.Fatal(err)
	}
	if err := m.Nodes[1].StartProxy(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := m.Nodes[1].WaitProxyReady(testContext(t)); err != nil {
		t.Fatal(err)
	}
	stop()
	mustEcho(t, client, dst)
}

// TestAwayAgent takes agent and proxy off the node: the plugin then decides
// from the file that the agent kept.
func TestAwayAgent(t *testing.T) {
	m := newMesh(t, onehost.Options{})
	n := m.Nodes[0]
	ctx := testContext(t)
	kept := addPod(t, n, "app", "kept", nil)
	addPod(t, n, "plain", "seen", nil)
	waitPods(t, m)
	if err := errors.Join(n.KillAgent(), n.KillProxy()); err != nil {
		t.Fatal(err)
	}
	if err := n.CNIStatus(ctx); err != nil {
		t.Errorf("STATUS: %v, but a pod outside the mesh can still be admitted", err)
	}
	out, err := n.AddPod(ctx, onehost.PodSpec{Namespace: "plain", Name: "out", ServiceAccount: "out"})
	if err != nil {
		t.Errorf("a pod of a namespace outside the mesh: %v", err)
	} else if err := out.Delete(ctx); err != nil {
		t.Errorf("DEL with the agent away: %v", err)
	}
	if _, err := n.AddPod(ctx, onehost.PodSpec{Namespace: "app", Name: "in", ServiceAccount: "in"}); err == nil {
		t.Error("a mesh pod was admitted without an agent to serve it")
	} else if !strings.Contains(err.Error(), "agent") {
		t.Errorf("the refusal does not say why: %v", err)
	}
	if err := kept.Delete(ctx); err != nil {
		t.Errorf("DEL of a mesh pod with the agent away: %v", err)
	}
	if err := n.StartAgent(ctx); err != nil {
		t.Fatal(err)
	}
	if err := n.StartProxy(ctx); err != nil {
		t.Fatal(err)
	}
	if err := n.WaitProxyReady(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "status is healthy again", func() error { return healthy(n) })
	if left, _ := filepath.Glob(filepath.Join(n.StateDir(), "attachments", "*")); len(left) != len(n.Pods) {
		t.Errorf("attachments of deleted pods remain: %v, pods: %d", left, len(n.Pods))
	}
}

// TestAddWithoutProxy refuses the pod for now and leaves nothing behind.
func TestAddWithoutProxy(t *testing.T) {
	m := newMesh(t, onehost.Options{})
	n := m.Nodes[0]
	ctx := testContext(t)
	if err := n.KillProxy(); err != nil {
		t.Fatal(err)
	}
	before, err := n.AgentResources()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		began := time.Now()
		_, err := n.AddPod(ctx, onehost.PodSpec{Namespace: "app", Name: fmt.Sprintf("early-%d", i), ServiceAccount: "early"})
		if err == nil {
			t.Fatal("admitted, though no proxy serves it")
		}
		if took := time.Since(began); took > 12*time.Second {
			t.Errorf("refused only after %s", took)
		}
	}
	eventually(t, 10*time.Second, "the agent holds no more than before", func() error {
		now, err := n.AgentResources()
		if err == nil && now.FDs > before.FDs+2 {
			err = fmt.Errorf("%+v, before %+v", now, before)
		}
		return err
	})
	if err := n.StartProxy(ctx); err != nil {
		t.Fatal(err)
	}
	if err := n.WaitProxyReady(ctx); err != nil {
		t.Fatal(err)
	}
	addPod(t, n, "app", "early", nil)
}

// TestRotation runs traffic through certificates of ten seconds, then takes
// the CA away until they end.
func TestRotation(t *testing.T) {
	const ttl = 10 * time.Second
	m := newMesh(t, onehost.Options{TTL: ttl})
	client, server := addPod(t, m.Nodes[0], "app", "client", nil), addPod(t, m.Nodes[1], "app", "server", nil)
	dst := echo(t, server, 7)
	waitPods(t, m)
	mustEcho(t, client, dst)
	stop := traffic(client, dst)
	serials := make(map[string]bool)
	eventually(t, 3*ttl, "three certificates were used", func() error {
		var d struct {
			Certificates []struct {
				Identity  string
				CertChain []struct{ SerialNumber string }
			}
		}
		if err := m.Nodes[0].ConfigDump(testContext(t), &d); err != nil {
			return err
		}
		for _, c := range d.Certificates {
			if strings.HasSuffix(c.Identity, "/sa/client") && len(c.CertChain) > 0 {
				serials[c.CertChain[0].SerialNumber] = true
			}
		}
		if len(serials) < 3 {
			return fmt.Errorf("serial numbers so far: %d", len(serials))
		}
		return nil
	})
	if n, errs := stop(); len(errs) > 0 {
		t.Errorf("%d of %d connections failed while certificates rotated: %v\n%s", len(errs), n, errs[0], failures(m))
	} else {
		t.Logf("%d connections over %d certificates", n, len(serials))
	}
	if err := m.StopControlPlane(); err != nil {
		t.Fatal(err)
	}
	mustEcho(t, client, dst)
	eventually(t, 3*ttl, "connections end with the certificates", func() error {
		if roundTrip(client, dst, "x") == nil {
			return errors.New("still carried")
		}
		return nil
	})
	text, code, err := m.Nodes[0].Status(testContext(t))
	if err != nil || code != 1 {
		t.Errorf("status with ended certificates: exit status %d, %v\n%s", code, err, text)
	}
	if err := m.StartControlPlane(testContext(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 40*time.Second, "the CA is back, and so is traffic", func() error { return roundTrip(client, dst, "x") })
}

// failures is what the proxies say of connections that failed.
func failures(m *onehost.Mesh) string {
	var b strings.Builder
	for _, n := range m.Nodes {
		text, err := os.ReadFile(n.ProxyLog())
		if err != nil {
			return err.Error()
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, `"error":`) {
				b.WriteString(n.Name + ": " + line)
			}
		}
	}
	return b.String()
}

// TestCNIVerbs repeats and misplaces verbs, as runtimes do.
func TestCNIVerbs(t *testing.T) {
	m := sharedMesh(t)
	ctx := testContext(t)
	p := addPod(t, m.Nodes[0], "app", "verbs", nil)
	if err := p.Check(ctx); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	if err := m.Nodes[0].CNIStatus(ctx); err != nil {
		t.Errorf("STATUS: %v", err)
	}
	before, err := p.Rules()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AddAgain(ctx); err != nil {
		t.Errorf("ADD twice: %v", err)
	}
	if after, err := p.Rules(); err != nil || after != before {
		t.Errorf("rules after the second ADD: %v\n%s\nbefore:\n%s", err, after, before)
	}
	if err := p.Delete(ctx); err != nil {
		t.Errorf("DEL: %v", err)
	}
	if err := p.Delete(ctx); err != nil {
		t.Errorf("DEL twice: %v", err)
	}
	if err := m.Nodes[0].DeleteUnknown(ctx); err != nil {
		t.Errorf("DEL without ADD: %v", err)
	}
	if files, _ := os.ReadDir(filepath.Join(m.Nodes[0].StateDir(), "attachments")); len(files) > len(m.Nodes[0].Pods) {
		t.Errorf("%d attachments for %d pods", len(files), len(m.Nodes[0].Pods))
	}
}
