package onehost_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// knows reports whether a node's proxy has been told of a pod.
func knows(t *testing.T, n *onehost.Node, p *onehost.Pod) bool {
	t.Helper()
	var d onehost.Dump
	if err := n.ConfigDump(testContext(t), &d); err != nil {
		t.Fatal(err)
	}
	for _, w := range d.Workloads {
		if w.Namespace == p.Spec.Namespace && w.Name == p.Spec.Name {
			return true
		}
	}
	return false
}

// TestOnDemand: proxies that ask when they need to know carry the same traffic as those
// that know everything, with the same identities, and learn no more than they ask for.
func TestOnDemand(t *testing.T) {
	m := newMesh(t, onehost.Options{Env: []string{"XDS_ON_DEMAND=true"}})
	one, two := m.Nodes[0], m.Nodes[1]
	a := addPod(t, one, "app", "a", nil)
	b, quiet := addPod(t, two, "app", "b", map[string]string{"app": "b"}), addPod(t, two, "app", "quiet", nil)
	old, stranger := addPod(t, two, "plain", "old", nil), addPod(t, two, "plain", "stranger", nil)
	toB, toQuiet, toOld, toStranger := echo(t, b, 7), echo(t, quiet, 7), echo(t, old, 7), echo(t, stranger, 7)
	vip := netip.MustParseAddrPort("10.96.1.1:80")
	if err := m.PutService("app", "b", vip, 7, map[string]string{"app": "b"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the nodes know their own pods", func() error {
		if !knows(t, one, a) || !knows(t, two, b) || !knows(t, two, quiet) {
			return errors.New("not yet")
		}
		return nil
	})
	if knows(t, one, b) {
		t.Error("node 1 has been told of a pod that it did not ask for")
	}

	// The first connection asks, and is carried as every other.
	carried := func(dst netip.AddrPort, to *onehost.Pod) {
		t.Helper()
		logs := m.AccessLogs()
		mustEcho(t, a, dst)
		lines, err := logs.Wait(testContext(t), a.IPs, to.IPs, []string{"outbound", "inbound"})
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range lines {
			if l.SrcIdentity != "spiffe://cluster.local/ns/app/sa/a" || l.DstIdentity != "spiffe://cluster.local/ns/app/sa/"+to.Spec.ServiceAccount {
				t.Errorf("%s: %q → %q", l.Direction, l.SrcIdentity, l.DstIdentity)
			}
		}
	}
	carried(toB, b)
	eventually(t, 20*time.Second, "the service is there", func() error { return roundTrip(a, vip, "hello") })
	carried(vip, b)
	mustEcho(t, a, toOld)
	if !knows(t, one, b) || knows(t, one, quiet) {
		t.Error("node 1 knows what it did not ask for, or does not know what it did")
	}

	// Endpoints that come later belong to the service as well.
	late := addPod(t, one, "app", "late", map[string]string{"app": "b"})
	echo(t, late, 7)
	eventually(t, 20*time.Second, "the service has its new endpoint", func() error {
		// Enough of them that both endpoints get some.
		logs := m.AccessLogs()
		for range 20 {
			if err := roundTrip(a, vip, "hello"); err != nil {
				return err
			}
		}
		ctx, cancel := context.WithTimeout(testContext(t), time.Second)
		defer cancel()
		_, err := logs.Wait(ctx, a.IPs, late.IPs, []string{"outbound"})
		return err
	})

	// Policies are known in any case.
	policy(t, m, "deny", "  selector: {matchLabels: {app: b}}\n  action: DENY\n  rules: [{from: [{source: {principals: [\"cluster.local/ns/app/sa/a\"]}}]}]\n")
	eventually(t, 20*time.Second, "a policy takes effect", func() error {
		if roundTrip(a, toB, "hello") == nil {
			return errors.New("carried")
		}
		return nil
	})

	// Without the control plane, what is known stays; what is not is refused rather than
	// sent in the clear to what may be in the mesh.
	if err := m.StopControlPlane(); err != nil {
		t.Fatal(err)
	}
	mustEcho(t, a, toOld)
	mustRefuse(t, a, toQuiet)
	mustRefuse(t, a, toStranger)
	if err := m.StartControlPlane(testContext(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the control plane is back", func() error { return roundTrip(a, toStranger, "hello") })
	carried(toQuiet, quiet)
}
