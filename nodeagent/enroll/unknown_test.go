package enroll_test

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/nodeagent/enroll"
)

// silent is a World that has not heard anything yet.
type silent struct{}

func (silent) View() (*enroll.View, <-chan struct{}) { return nil, nil }

// TestNothingIsKnownYet: an agent that has not heard of the cluster is no worse for pods
// outside of the mesh than no agent: it goes by what an earlier one has written down.
func TestNothingIsKnownYet(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	n.config = func(c *enroll.Config) {
		c.World, c.Exempt = silent{}, []string{"kube-system"}
		c.Stale = func() string { return "Pod: 429 slow down" }
	}
	if err := os.MkdirAll(n.state(), 0o755); err != nil {
		t.Fatal(err)
	}
	away := event.Away{Namespaces: map[string]string{"plain": event.NSOut, "app": event.NSIn, "both": event.NSMixed}}
	if err := event.WriteAway(filepath.Join(n.state(), event.AwayName), away); err != nil {
		t.Fatal(err)
	}
	n.start()
	if err := n.client.Status(within(t)); err != nil {
		t.Errorf("the node's network is not ready: %v", err)
	}
	for namespace, refused := range map[string]bool{"plain": false, "kube-system": false, "app": true, "both": true, "new": true} {
		answer, err := n.add(n.sandbox(namespace, "a", "uid-"+namespace, "c-"+namespace))
		if refused {
			wantRefusal(t, err, true, "429 slow down")
			continue
		}
		if err != nil || answer.Action != event.Leave {
			t.Errorf("%s: %+v, %v", namespace, answer, err)
		}
	}
	if err := os.Remove(filepath.Join(n.state(), event.AwayName)); err != nil {
		t.Fatal(err)
	}
	if err := n.client.Status(within(t)); err == nil {
		t.Error("ready, and no pod could start")
	}
}

// TestNewsDoNotArrive: while the API server tells nothing, a pod that it has not told of
// starts where no pod is in the mesh, and nowhere else; when it tells, it has to.
func TestNewsDoNotArrive(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	var gone atomic.Bool
	gone.Store(true)
	n.config = func(c *enroll.Config) {
		c.Stale = func() string {
			if gone.Load() {
				return "Pod: connection refused"
			}
			return ""
		}
	}
	n.start()
	answer, err := n.add(n.sandbox("plain", "a", "uid-a", "c1"))
	if err != nil || answer.Action != event.Leave {
		t.Errorf("%+v, %v", answer, err)
	}
	_, err = n.add(n.sandbox("app", "b", "uid-b", "c2"))
	wantRefusal(t, err, true, "connection refused")
	gone.Store(false)
	_, err = n.add(n.sandbox("plain", "c", "uid-c", "c3"))
	wantRefusal(t, err, true, "knows no pod plain/c")
}
