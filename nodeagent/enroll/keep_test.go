package enroll_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/nodeagent/enroll"
)

// TestPodWithoutObjectIsKept: while its namespace is there, it is served.
func TestPodWithoutObjectIsKept(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	f, _ := n.proxy()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	n.mustAdd(s)
	n.world.remove("app", "a")
	for deadline := time.Now().Add(6 * n.times.Sweep); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if n.phase("uid-a") != enroll.PhaseEnrolled {
			t.Fatalf("the pod is %q", n.phase("uid-a"))
		}
	}
	if len(f.Pods()) != 1 || !n.captured(s) {
		t.Errorf("served: %v, redirected: %t", f.Pods(), n.captured(s))
	}
}

// TestRecoveryTakesTheNewestSandbox: an agent that was killed between two writes
// leaves records of both.
func TestRecoveryTakesTheNewestSandbox(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	n.proxy()
	n.world.pod("app", "a", "uid-a")
	older, newer := n.sandbox("app", "a", "uid-a", "c1"), n.sandbox("app", "a", "uid-a", "c2")
	n.mustAdd(older)
	path := filepath.Join(n.state(), "attachments", "c1-eth0.json")
	record, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n.mustAdd(newer)
	n.stop()
	if err := os.WriteFile(path, record, 0o600); err != nil {
		t.Fatal(err)
	}
	n.start()
	if r := n.e.Report(); len(r) != 1 || r[0].NetnsID != newer.netns.ID() {
		t.Errorf("recovered %+v", r)
	}
	if got := n.attachments(); len(got) != 1 || got[0] != "c2-eth0.json" {
		t.Errorf("attachments: %v", got)
	}
}
