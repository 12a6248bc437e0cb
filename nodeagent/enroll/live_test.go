package enroll_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/nodeagent/enroll"
	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/xds/translate"
)

func labelled(mode string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Labels = map[string]string{translate.LabelDataplaneMode: mode} }
}

// outside makes a running pod that is not in the mesh.
func (n *node) outside(name, uid, container string) *sandbox {
	n.t.Helper()
	n.world.pod("plain", name, uid)
	s := n.sandbox("plain", name, uid, container)
	if a, err := n.add(s); err != nil || a.Action != event.Leave {
		n.t.Fatalf("ADD: %+v, %v", a, err)
	}
	return s
}

func TestRunningPodComesAndGoes(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	f, _ := n.proxy()
	s := n.outside("p", "uid-p", "c1")
	var early atomic.Bool
	f.OnAdd(func(context.Context, string, zds.Info) error {
		early.Store(n.captured(s))
		return nil
	})
	n.world.pod("plain", "p", "uid-p", labelled("ambient"))
	n.until("the pod is in the mesh", func() bool { return n.phase("uid-p") == enroll.PhaseEnrolled })
	if early.Load() || !n.captured(s) || len(f.Pods()) != 1 {
		t.Errorf("redirected before the listeners: %t, redirected: %t, proxy: %v", early.Load(), n.captured(s), f.Pods())
	}
	if away, err := event.ReadAway(filepath.Join(n.state(), event.AwayName)); err != nil || away.Namespaces["plain"] != event.NSMixed || away.Namespaces["app"] != event.NSIn {
		t.Errorf("the away file says %v, %v", away, err)
	}

	n.flows.set(1)
	n.world.pod("plain", "p", "uid-p")
	n.until("the pod is leaving", func() bool { return n.phase("uid-p") == enroll.PhaseLeaving && !n.captured(s) })
	if len(f.Pods()) != 1 || n.clean(s) {
		t.Error("its listeners or the routes of its connections went before the connections")
	}
	n.flows.set(0)
	n.until("the pod is outside", func() bool { return n.phase("uid-p") == enroll.PhaseLeft })
	if len(f.Pods()) != 0 || !n.clean(s) {
		t.Errorf("left behind: %v", f.Pods())
	}
	if away, err := event.ReadAway(filepath.Join(n.state(), event.AwayName)); err != nil || away.Namespaces["plain"] != event.NSOut {
		t.Errorf("the away file says %v, %v", away, err)
	}
	if err := n.client.Del(within(t), s.key, ""); err != nil || len(n.attachments()) > 0 {
		t.Errorf("after DEL: %v, %v", n.attachments(), err)
	}
}

func TestLeavingPodChangesItsMind(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	n.times.Drain = time.Minute
	n.start()
	f, _ := n.proxy()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	n.mustAdd(s)
	n.flows.set(1)
	n.world.pod("app", "a", "uid-a", labelled("none"))
	n.until("the pod is leaving", func() bool { return n.phase("uid-a") == enroll.PhaseLeaving })
	n.world.pod("app", "a", "uid-a")
	n.until("the pod is in again", func() bool { return n.phase("uid-a") == enroll.PhaseEnrolled })
	if !n.captured(s) || slices.Contains(f.Events(), "del uid-a") {
		t.Errorf("redirected: %t, events %v", n.captured(s), f.Events())
	}
}

// TestDelComesBeforeDrain: the runtime does not wait for connections to end.
func TestDelComesBeforeDrain(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	n.times.Drain = time.Minute
	n.start()
	f, _ := n.proxy()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	n.mustAdd(s)
	n.flows.set(1)
	n.world.pod("app", "a", "uid-a", labelled("none"))
	n.until("the pod is leaving", func() bool { return n.phase("uid-a") == enroll.PhaseLeaving })
	if err := n.client.Del(within(t), s.key, "uid-a"); err != nil {
		t.Fatal(err)
	}
	if len(f.Pods()) > 0 || len(n.attachments()) > 0 {
		t.Errorf("left after DEL: %v, %v", f.Pods(), n.attachments())
	}
}

func TestRunningPodThatCannotComeStaysAsItWas(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	f, _ := n.proxy()
	f.OnAdd(func(context.Context, string, zds.Info) error { return errors.New("port 15006 is taken") })
	s := n.outside("p", "uid-p", "c1")
	n.world.pod("plain", "p", "uid-p", labelled("ambient"))
	n.until("the reason is reported", func() bool {
		r := n.e.Report()
		return len(r) == 1 && strings.Contains(r[0].Reason, "port 15006 is taken")
	})
	n.until("the pod is outside", func() bool { return n.phase("uid-p") == enroll.PhaseLeft })
	if !n.clean(s) || len(f.Pods()) > 0 {
		t.Error("something was left behind")
	}
	n.world.pod("plain", "p", "uid-p")
}

func TestAnnotationsAreFollowed(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	n.proxy()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	n.mustAdd(s)
	n.world.pod("app", "a", "uid-a", func(p *corev1.Pod) {
		p.Annotations = map[string]string{translate.AnnotationBypass: "true", translate.AnnotationDNSCapture: "true"}
	})
	s.programmedWith.BypassInbound, s.programmedWith.DNS = true, true
	n.until("the rules follow", func() bool { return n.captured(s) })
}

func TestRulesAreRepaired(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	n.proxy()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	n.mustAdd(s)
	if err := n.backend.StopCapture(s.netns); err != nil {
		t.Fatal(err)
	}
	n.until("the rules are back", func() bool { return n.captured(s) })
}

func TestRecovery(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	f, _ := n.proxy()
	names := []string{"stays", "ends", "vanishes", "damaged"}
	all := make(map[string]*sandbox)
	for _, name := range names {
		n.world.pod("app", name, "uid-"+name)
		all[name] = n.sandbox("app", name, "uid-"+name, "c-"+name)
		n.mustAdd(all[name])
	}
	left := n.outside("left", "uid-left", "c-left")
	n.stop()
	if len(f.Pods()) != len(names) {
		t.Fatalf("the agent took pods away when it stopped: %v", f.Pods())
	}
	// Meanwhile:
	if err := event.WriteTombstone(n.state(), event.Tombstone{Key: all["ends"].key}); err != nil {
		t.Fatal(err)
	}
	if err := n.backend.Remove(all["damaged"].netns); err != nil {
		t.Fatal(err)
	}
	edit(t, n, all["vanishes"])
	n.start()
	n.until("the proxy is in step", func() bool {
		return slices.Equal(slices.Sorted(maps.Keys(f.Pods())), []string{"uid-damaged", "uid-stays"})
	})
	n.until("the rules are right again", func() bool { return n.captured(all["damaged"]) })
	if got, want := n.attachments(), []string{"c-damaged-eth0.json", "c-left-eth0.json", "c-stays-eth0.json"}; !slices.Equal(got, want) {
		t.Errorf("attachments %v, want %v", got, want)
	}
	if tombs, err := event.Tombstones(n.state()); err != nil || len(tombs) > 0 {
		t.Errorf("tombstones left: %v, %v", tombs, err)
	}
	// It knows its pods as if it had added them itself.
	if err := n.client.Del(within(t), all["stays"].key, ""); err != nil {
		t.Fatal(err)
	}
	if err := n.client.Del(within(t), left.key, ""); err != nil {
		t.Fatal(err)
	}
	if got := slices.Sorted(maps.Keys(f.Pods())); !slices.Equal(got, []string{"uid-damaged"}) {
		t.Errorf("after DEL the proxy serves %v", got)
	}
}

// edit makes the attachment name another namespace.
func edit(t *testing.T, n *node, s *sandbox) {
	t.Helper()
	path := filepath.Join(n.state(), "attachments", s.key.ContainerID+"-eth0.json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(b), `"Ino": `, `"Ino": 9`, 1)
	if text == string(b) {
		t.Fatalf("no inode in %s", b)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestRecoveryUndoesAHalfDoneAdd(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	n.proxy()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	n.mustAdd(s)
	n.stop()
	path := filepath.Join(n.state(), "attachments", "c1-eth0.json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(b), `"enrolled"`, `"adding"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.nothingLeft(s)
}

func TestRecoveryKeepsWhatItCannotSee(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	f, _ := n.proxy()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	// A link to it, in a folder that is not there at the next start.
	folder := filepath.Join(t.TempDir(), "mount")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	real := s.path
	s.path = filepath.Join(folder, "ns")
	if err := os.Symlink(real, s.path); err != nil {
		t.Fatal(err)
	}
	n.mustAdd(s)
	n.stop()
	if err := os.Rename(folder, folder+"-away"); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.until("the proxy was told to keep it", func() bool { return slices.Contains(f.Events(), "keep uid-a") && f.Synced() })
	if len(f.Pods()) != 1 {
		t.Error("the proxy does not serve it any more")
	}
	if err := os.Rename(folder+"-away", folder); err != nil {
		t.Fatal(err)
	}
	n.until("it is found again", func() bool { return strings.HasSuffix(strings.Join(f.Events(), " "), "add uid-a") })
}

func TestRecoveryAfterReboot(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	n.proxy()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	n.mustAdd(s)
	n.stop()
	path := filepath.Join(n.state(), "attachments", "c1-eth0.json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(b), `"bootID": "boot"`, `"bootID": "before"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	n.start()
	if len(n.attachments()) > 0 || len(n.e.Snapshot()) > 0 {
		t.Errorf("attachments of before the reboot: %v", n.attachments())
	}
}

func TestTombstonesOfARunningAgent(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	f, _ := n.proxy()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	n.mustAdd(s)
	if err := event.WriteTombstone(n.state(), event.Tombstone{Key: s.key, PodUID: "uid-a"}); err != nil {
		t.Fatal(err)
	}
	n.until("the tombstone is applied", func() bool {
		tombs, err := event.Tombstones(n.state())
		return err == nil && len(tombs) == 0 && len(f.Pods()) == 0
	})
}

// TestAFullNode: an agent that comes to a node where many pods run hands them to the proxy
// one after the other; those at the end have as long as those at the beginning.
func TestAFullNode(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	n.times.Live = 3 * time.Second
	find := n.withFinder()
	const many, each = 60, 70 * time.Millisecond // longer than Live in all
	boxes := map[string]*sandbox{}
	for i := range many {
		name := fmt.Sprint("p", i)
		boxes["uid-"+name] = n.sandbox("app", name, "uid-"+name, "c"+name)
		find.set("uid-"+name, boxes["uid-"+name])
	}
	n.start()
	f, _ := n.proxy()
	f.OnAdd(func(context.Context, string, zds.Info) error { time.Sleep(each); return nil }) // as a busy proxy
	n.world.podsAtOnce(boxes)
	for deadline := time.Now().Add(time.Minute); len(f.Pods()) < many || n.phase("uid-p0") != enroll.PhaseEnrolled; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d are in the mesh", len(f.Pods()), many)
		}
	}
	if n.log.has("not where it belongs") {
		t.Error("some had to be tried again")
	}
}
