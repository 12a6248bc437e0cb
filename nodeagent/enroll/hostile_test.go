package enroll_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/nodeagent/enroll"
	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/xds/translate"
)

// killed is a plugin that puts its rules in place and then dies, before or after
// it has said so.
func (n *node) killed(s *sandbox, said bool) {
	n.t.Helper()
	ctx, cancel := context.WithCancel(within(n.t))
	defer cancel()
	_, err := n.client.Add(ctx, event.Add{Key: s.key, Network: "net", PodName: s.name, PodNamespace: s.ns, PodUID: s.uid, Netns: s.path}, s.netns.File(),
		func(r event.Redirect) (string, error) {
			s.programmedWith = r
			err := n.backend.Apply(s.netns, config(r))
			cancel()
			if !said {
				return "", errors.New("killed")
			}
			return event.ByPlugin, err
		})
	if err == nil {
		n.t.Fatal("no error")
	}
}

func TestPluginKilledAfterItsRules(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	n.proxy()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	for _, said := range []bool{false, true} {
		n.killed(s, said)
		n.until("the rules are gone, which nobody else takes away", func() bool { return !n.captured(s) && len(n.attachments()) == 0 })
		n.nothingLeft(s)
	}
	n.mustAdd(s)
}

func TestRefusedAddLeavesNoRulesOfADeadPlugin(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	f, _ := n.proxy()
	f.OnAdd(func(context.Context, string, zds.Info) error { return errors.New("no") })
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	_, err := n.add(s) // this plugin does not undo
	wantRefusal(t, err, true, "no")
	if n.captured(s) {
		t.Error("the rules are left")
	}
	n.nothingLeft(s)
}

func TestHostsNamespaceIsRefused(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	n.proxy()
	n.world.pod("app", "a", "uid-a")
	own, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	s := &sandbox{key: event.Key{ContainerID: "c1", IfName: "eth0"}, name: "a", ns: "app", uid: "uid-a", netns: own, path: "/proc/self/ns/net"}
	_, err = n.addWith(s, func(event.Redirect) (string, error) {
		t.Error("asked to redirect the host")
		return "", errors.New("never")
	})
	wantRefusal(t, err, false, "is the host's")
	if t.Failed() {
		return
	}
	if err := n.e.AddForIstio(within(t), enroll.IstioAdd{Pod: enroll.PodName{Namespace: "app", Name: "a"}, Netns: "/proc/self/ns/net"}); err == nil {
		t.Error("Istio's plugin may redirect the host")
	}
}

// noAttachments makes the folder of attachments one that cannot be written.
func (n *node) noAttachments() (restore func()) {
	n.t.Helper()
	dir := filepath.Join(n.state(), "attachments")
	if err := errors.Join(os.Rename(dir, dir+"-away"), os.WriteFile(dir, nil, 0o600)); err != nil {
		n.t.Fatal(err)
	}
	return func() {
		if err := errors.Join(os.Remove(dir), os.Rename(dir+"-away", dir)); err != nil {
			n.t.Error(err)
		}
	}
}

func TestStateThatCannotBeWritten(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	n.proxy()
	n.world.pod("plain", "p", "uid-p")
	n.world.pod("app", "a", "uid-a")
	out, in := n.sandbox("plain", "p", "uid-p", "c1"), n.sandbox("app", "a", "uid-a", "c2")
	restore := n.noAttachments()
	if a, err := n.add(out); err != nil || a.Action != event.Leave {
		t.Errorf("a pod outside the mesh: %+v, %v", a, err)
	}
	_, err := n.add(in)
	wantRefusal(t, err, true, "write attachment")
	if n.e.Knows(in.key) {
		t.Error("the attachment of a refused ADD is remembered")
	}
	restore()
	n.nothingLeft(in)
	n.mustAdd(in)
	if a, err := n.client.Check(within(t), out.key); err != nil || a.Action != event.Leave {
		t.Errorf("CHECK: %+v, %v", a, err)
	}
}

func TestDelOfAPodThatIsFoundAgainWithoutAProxy(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	_, disconnect := n.proxy()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	folder := filepath.Join(t.TempDir(), "mount")
	real := s.path
	s.path = filepath.Join(folder, "ns")
	if err := errors.Join(os.Mkdir(folder, 0o700), os.Symlink(real, s.path)); err != nil {
		t.Fatal(err)
	}
	n.mustAdd(s)
	n.stop()
	disconnect()
	if err := os.Rename(folder, folder+"-away"); err != nil {
		t.Fatal(err)
	}
	n.start()
	if err := os.Rename(folder+"-away", folder); err != nil {
		t.Fatal(err)
	}
	n.until("it is found again", func() bool {
		all := n.e.Snapshot()
		return len(all) == 1 && all[0].NS != nil
	})
	if err := n.client.Del(within(t), s.key, "uid-a"); err != nil {
		t.Errorf("DEL while no proxy is connected: %v", err)
	}
}

func TestAwayFileIsPutBack(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	path := filepath.Join(n.state(), event.AwayName)
	says := func(mode string) func() bool {
		return func() bool {
			a, err := event.ReadAway(path)
			return err == nil && a.Namespaces["app"] == mode
		}
	}
	n.until("it is written", says(event.NSIn))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	n.until("it is back", says(event.NSIn))
	if err := os.WriteFile(path, []byte(`{"version":1,"namespaces":{"app":"out"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	n.until("it is right again", says(event.NSIn))
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	n.until("the plugin may rely on it again", says(event.NSIn))
}

func TestOldRefusalIsForgotten(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	s.howProgrammed = event.ByAgent
	_, err := n.add(s)
	wantRefusal(t, err, true, "no proxy")
	n.proxy()
	n.mustAdd(s)
	if err := n.client.Del(within(t), s.key, "uid-a"); err != nil {
		t.Fatal(err)
	}
	if r := n.e.Report(); len(r) != 1 || r[0].Refusal != nil || strings.Contains(r[0].Reason, "no proxy") {
		t.Errorf("after an ADD that worked: %+v", r)
	}
}

// TestOneAddressForTwoPods: whoever looks at one of them is told of the other.
func TestOneAddressForTwoPods(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	n.proxy()
	for _, name := range []string{"a", "b"} { // every sandbox of these tests has the same address
		n.world.pod("app", name, "uid-"+name)
		n.mustAdd(n.sandbox("app", name, "uid-"+name, "c-"+name))
	}
	r := n.e.Report()
	if len(r) != 2 {
		t.Fatalf("%d pods", len(r))
	}
	for i, other := range []string{"app/b", "app/a"} {
		want := "10.1.2.3 is also the address of pod " + other
		if w := r[i].Warnings; len(w) != 1 || w[0] != want {
			t.Errorf("%s: warnings %q, want %q", r[i].Name, w, want)
		}
		n.until("it is told", func() bool { return n.notices.about(r[i].Name.Name, want) })
	}
}

// TestTombstoneOfABusyPod: sweeps that cannot apply a DEL yet do not queue up.
func TestTombstoneOfABusyPod(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	n.times.Add, n.times.Sweep = 4*time.Second, 5*time.Millisecond
	n.start()
	f, _ := n.proxy()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	in, free := make(chan struct{}), make(chan struct{})
	f.OnAdd(func(ctx context.Context, _ string, _ zds.Info) error { close(in); <-free; return nil })
	done := make(chan error, 1)
	go func() { _, err := n.add(s); done <- err }()
	<-in
	if err := event.WriteTombstone(n.state(), event.Tombstone{Key: s.key, PodUID: "uid-a"}); err != nil {
		t.Fatal(err)
	}
	n.until("a sweep waits for the pod", func() bool { return n.e.Waiting("uid-a") == 2 })
	for deadline := time.Now().Add(100 * time.Millisecond); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if w := n.e.Waiting("uid-a"); w > 2 {
			t.Errorf("%d wait for one pod", w)
			break
		}
	}
	close(free)
	if err := <-done; err != nil {
		t.Error(err)
	}
	n.until("the tombstone is applied", func() bool {
		_, err := os.Lstat(filepath.Join(n.state(), "attachments", "c1-eth0.json"))
		return errors.Is(err, fs.ErrNotExist)
	})
}

// TestNewSandboxOutsideTheMesh: of a pod whose earlier sandbox is still in it.
func TestNewSandboxOutsideTheMesh(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	f, _ := n.proxy()
	n.flows.set(1) // so that the earlier one does not leave by itself
	n.world.pod("app", "a", "uid-a")
	old, s := n.sandbox("app", "a", "uid-a", "c1"), n.sandbox("app", "a", "uid-a", "c2")
	n.mustAdd(old)
	n.world.pod("app", "a", "uid-a", func(p *corev1.Pod) { p.Labels = map[string]string{translate.LabelDataplaneMode: "none"} })
	if a, err := n.add(s); err != nil || a.Action != event.Leave {
		t.Fatalf("ADD: %+v, %v", a, err)
	}
	if r := n.e.Report(); len(r) != 1 || r[0].NetnsID != s.netns.ID() || r[0].Phase != enroll.PhaseLeft {
		t.Errorf("the pod is %+v", r)
	}
	if got := n.attachments(); len(got) != 1 || got[0] != "c2-eth0.json" || len(f.Pods()) > 0 {
		t.Errorf("attachments %v, served %v", got, f.Pods())
	}
	if err := n.client.Del(within(t), old.key, "uid-a"); err != nil || n.phase("uid-a") != enroll.PhaseLeft {
		t.Errorf("DEL of the earlier one: %v, the pod is %q", err, n.phase("uid-a"))
	}
}

// TestTwoAddsOfWhichOneFails: the plugin of the one takes away the rules that the
// other relies on.
func TestTwoAddsOfWhichOneFails(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	f, _ := n.proxy()
	in, fail := make(chan struct{}), make(chan struct{})
	f.OnAdd(func(context.Context, string, zds.Info) error {
		f.OnAdd(nil)
		close(in)
		<-fail
		return errors.New("no")
	})
	n.world.pod("app", "a", "uid-a")
	first, second := n.sandbox("app", "a", "uid-a", "c1"), &sandbox{}
	*second = *first
	done := make(chan error, 2)
	go func() { _, err := n.add(first); done <- err }()
	<-in
	go func() { _, err := n.add(second); done <- err }()
	n.until("the second waits for the first", func() bool { return n.e.Waiting("uid-a") == 2 })
	close(fail)
	wantRefusal(t, <-done, true, "no")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !n.e.Suspect("uid-a") {
		t.Error("nobody looks whether the rules stay")
	}
	if err := n.backend.Remove(first.netns); err != nil { // as the first's plugin does
		t.Fatal(err)
	}
	n.until("the rules are back", func() bool { return n.captured(second) })
}

// TestPluginDiesBeforeItHears: the pod was served, and nobody knows.
func TestPluginDiesBeforeItHears(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	f, _ := n.proxy()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	ns, err := s.netns.Dup()
	if err != nil {
		t.Fatal(err)
	}
	session, answer, err := n.e.Decide(within(t), event.Add{Key: s.key, Network: "net", PodName: s.name, PodNamespace: s.ns, PodUID: s.uid, Netns: s.path}, ns)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.backend.Apply(s.netns, config(*answer.Redirect)); err != nil {
		t.Fatal(err)
	}
	if err := session.Programmed(within(t), event.ByPlugin); err != nil {
		t.Fatal(err)
	}
	session.Abort(errors.New("gone"))
	s.programmedWith = *answer.Redirect
	if n.captured(s) || len(f.Pods()) > 0 {
		t.Errorf("redirected: %t, served: %v", n.captured(s), f.Pods())
	}
	n.nothingLeft(s)
}
