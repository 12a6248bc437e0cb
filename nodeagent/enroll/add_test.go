package enroll_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/nodeagent/enroll"
	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/xds/translate"
)

func TestAddAndDel(t *testing.T) {
	nstest.LeakCheck(t)
	for _, how := range []string{event.ByPlugin, event.ByAgent} {
		t.Run(how, func(t *testing.T) {
			n := newNode(t).start()
			f, _ := n.proxy()
			n.world.pod("app", "a", "uid-a")
			s := n.sandbox("app", "a", "uid-a", "c1")
			s.howProgrammed = how
			n.mustAdd(s)
			want := map[string]zds.FakePod{"uid-a": {Info: zds.Info{Name: "a", Namespace: "app", ServiceAccount: "sa"}, NS: s.netns.ID()}}
			if diff := cmp.Diff(want, f.Pods()); diff != "" {
				t.Errorf("the proxy was told (-want +got):\n%s", diff)
			}
			if !n.captured(s) {
				t.Error("the pod is not redirected")
			}
			if got := n.attachments(); !slices.Equal(got, []string{"c1-eth0.json"}) {
				t.Errorf("attachments: %v", got)
			}
			if a, err := n.client.Check(within(t), s.key); err != nil || a.Action != event.RedirectSo || a.Redirect.Backend != n.backend.Name() {
				t.Errorf("CHECK: %+v, %v", a, err)
			}
			for range 2 {
				if err := n.client.Del(within(t), s.key, "uid-a"); err != nil {
					t.Errorf("DEL: %v", err)
				}
			}
			if len(f.Pods()) > 0 || len(n.attachments()) > 0 || n.phase("uid-a") != enroll.PhaseAbsent {
				t.Errorf("left after DEL: %v, %v, %s", f.Pods(), n.attachments(), n.phase("uid-a"))
			}
			if err := n.client.Del(within(t), event.Key{ContainerID: "never", IfName: "eth0"}, ""); err != nil {
				t.Errorf("DEL without ADD: %v", err)
			}
		})
	}
}

func TestAddLeavesOthersAlone(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	n.world.pod("plain", "p", "uid-p")
	n.world.pod("app", "out", "uid-out", func(p *corev1.Pod) { p.Labels = map[string]string{translate.LabelDataplaneMode: "none"} })
	n.world.pod("warren-system", "proxy", "uid-proxy", func(p *corev1.Pod) { p.Labels = map[string]string{translate.LabelDataplaneMode: "ambient"} })
	for uid, reason := range map[string]string{"uid-p": "neither the pod nor namespace plain", "uid-out": "opts out", "uid-proxy": "exempt"} {
		namespace, name := map[string]string{"uid-p": "plain", "uid-out": "app", "uid-proxy": "warren-system"}[uid], uid[4:]
		s := n.sandbox(namespace, name, uid, "c-"+name)
		a, err := n.add(s)
		if err != nil || a.Action != event.Leave || !strings.Contains(a.Reason, reason) {
			t.Errorf("%s: %+v, %v", uid, a, err)
		}
		if !n.clean(s) {
			t.Errorf("%s was redirected", uid)
		}
		if a, err := n.client.Check(within(t), s.key); err != nil || a.Action != event.Leave {
			t.Errorf("%s: CHECK %+v, %v", uid, a, err)
		}
		if err := n.client.Del(within(t), s.key, uid); err != nil {
			t.Errorf("%s: DEL: %v", uid, err)
		}
	}
	if got := n.attachments(); len(got) > 0 {
		t.Errorf("attachments left: %v", got)
	}
}

func TestAddWaitsForThePod(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	n.times.Pod = 5 * time.Second
	n.start()
	n.proxy()
	n.world.pod("app", "a", "uid-old") // its predecessor
	s := n.sandbox("app", "a", "uid-a", "c1")
	done := make(chan error, 1)
	go func() {
		_, err := n.add(s)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("ADD did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	n.world.pod("app", "a", "uid-a")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAddOfUnknownPod(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	_, err := n.add(n.sandbox("app", "ghost", "uid-g", "c1"))
	wantRefusal(t, err, true, "no pod app/ghost with UID uid-g")
	if got := n.attachments(); len(got) > 0 {
		t.Errorf("attachments left: %v", got)
	}
}

func TestAddWithoutProxy(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	s.howProgrammed = event.ByAgent
	_, err := n.add(s)
	wantRefusal(t, err, true, "no proxy is connected")
	n.nothingLeft(s)
	if r := n.e.Report(); len(r) != 1 || r[0].Refusal == nil || !strings.Contains(r[0].Reason, "no proxy") {
		t.Errorf("the report does not say why: %+v", r)
	}
	// Then it comes, and does not find the pod that was refused.
	f, _ := n.proxy()
	if len(f.Pods()) > 0 {
		t.Errorf("the refused pod is in the snapshot: %v", f.Pods())
	}
	n.mustAdd(s)
	if r := n.e.Report(); len(r) != 1 || r[0].Refusal != nil || r[0].Phase != enroll.PhaseEnrolled {
		t.Errorf("after it worked: %+v", r)
	}
}

func (n *node) nothingLeft(s *sandbox) {
	n.t.Helper()
	if got := n.attachments(); len(got) > 0 {
		n.t.Errorf("attachments left: %v", got)
	}
	if p := n.phase(s.uid); p != enroll.PhaseAbsent {
		n.t.Errorf("the pod is %s", p)
	}
	if !n.clean(s) {
		n.t.Error("rules left")
	}
	if len(n.e.Snapshot()) > 0 {
		n.t.Errorf("the pod is in the snapshot")
	}
}

func TestAddRefusedByTheProxy(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	f, _ := n.proxy()
	f.OnAdd(func(context.Context, string, zds.Info) error { return errors.New("port 15001 is taken") })
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	s.howProgrammed = event.ByAgent
	_, err := n.add(s)
	wantRefusal(t, err, true, "port 15001 is taken")
	n.nothingLeft(s)
	if !slices.Contains(f.Events(), "del uid-a") { // a real proxy would try again otherwise
		t.Errorf("the proxy was not told to give up: %v", f.Events())
	}
}

func TestAddWithWrongRules(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	f, _ := n.proxy()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	_, err := n.addWith(s, func(event.Redirect) (string, error) { return event.ByPlugin, nil })
	wantRefusal(t, err, true, "verify the redirection")
	if len(f.Events()) != 1 {
		t.Errorf("the proxy was told of a pod whose rules are wrong: %v", f.Events())
	}
	n.nothingLeft(s)
}

func TestAddWhosePluginGivesUp(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	n.proxy()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	if _, err := n.addWith(s, func(event.Redirect) (string, error) { return "", errors.New("no iptables") }); err == nil {
		t.Error("no error")
	}
	n.until("nothing is left", func() bool { return len(n.attachments()) == 0 })
	n.nothingLeft(s)
	n.mustAdd(s)
}

// foreignRules puts a chain of Istio's into the namespace.
func TestAddOfAPodOfAnotherMesh(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	n.proxy()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	inPod(t, s.netns, "iptables", "-t", "nat", "-N", "ISTIO_OUTPUT")
	_, err := n.add(s)
	wantRefusal(t, err, false, "ISTIO_OUTPUT")
	if got := n.attachments(); len(got) > 0 {
		t.Errorf("attachments left: %v", got)
	}
}

func TestAddTwice(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	f, stop := n.proxy()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	n.mustAdd(s)
	n.mustAdd(s)
	if len(f.Pods()) != 1 || len(n.attachments()) != 1 || !n.captured(s) {
		t.Errorf("after two ADDs: %v, %v", f.Pods(), n.attachments())
	}
	stop()
	_, err := n.add(s)
	wantRefusal(t, err, true, "proxy")
	if n.phase("uid-a") != enroll.PhaseEnrolled || !n.captured(s) {
		t.Error("a failed repetition undid what was there")
	}
	f2, _ := n.proxy()
	if len(f2.Pods()) != 1 {
		t.Error("a failed repetition took the pod out of the snapshot")
	}
	if err := n.client.Del(within(t), s.key, ""); err != nil {
		t.Fatal(err)
	}
	if len(f2.Pods()) > 0 {
		t.Error("the proxy still serves it")
	}
}

func TestTwoInterfacesOfOnePod(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	f, _ := n.proxy()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	n.mustAdd(s)
	second := *s
	second.key.IfName = "net1"
	n.mustAdd(&second)
	if err := n.client.Del(within(t), second.key, ""); err != nil {
		t.Fatal(err)
	}
	if len(f.Pods()) != 1 || n.phase("uid-a") != enroll.PhaseEnrolled {
		t.Error("the pod went with its second interface")
	}
	if err := n.client.Del(within(t), s.key, ""); err != nil {
		t.Fatal(err)
	}
	if len(f.Pods()) != 0 || len(n.attachments()) != 0 {
		t.Error("the pod stayed after its last interface")
	}
}

// TestNewSandboxOfOnePod is what happens after a sandbox died: the new one comes
// before the DEL of the old one.
func TestNewSandboxOfOnePod(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	f, _ := n.proxy()
	n.world.pod("app", "a", "uid-a")
	older, newer := n.sandbox("app", "a", "uid-a", "c1"), n.sandbox("app", "a", "uid-a", "c2")
	n.mustAdd(older)
	n.mustAdd(newer)
	if got := n.attachments(); !slices.Equal(got, []string{"c2-eth0.json"}) || n.e.Knows(older.key) {
		t.Errorf("the old sandbox is remembered: %v", got)
	}
	if f.Pods()["uid-a"].NS != newer.netns.ID() {
		t.Error("the proxy does not serve the new sandbox")
	}
	if err := n.client.Del(within(t), older.key, "uid-a"); err != nil {
		t.Fatal(err)
	}
	if f.Pods()["uid-a"].NS != newer.netns.ID() || n.phase("uid-a") != enroll.PhaseEnrolled {
		t.Error("the DEL of the old sandbox took the new one")
	}
	if got := n.attachments(); !slices.Equal(got, []string{"c2-eth0.json"}) {
		t.Errorf("attachments: %v", got)
	}
}

func TestGC(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	f, _ := n.proxy()
	var all []*sandbox
	for i := range 3 {
		uid := fmt.Sprintf("uid-%d", i)
		n.world.pod("app", fmt.Sprintf("p%d", i), uid)
		s := n.sandbox("app", fmt.Sprintf("p%d", i), uid, fmt.Sprintf("c%d", i))
		n.mustAdd(s)
		all = append(all, s)
	}
	if err := n.client.GC(within(t), "another", nil); err != nil || len(f.Pods()) != 3 {
		t.Errorf("GC of another network: %v, %v", f.Pods(), err)
	}
	if err := n.client.GC(within(t), "net", []event.Key{all[1].key}); err != nil {
		t.Fatal(err)
	}
	if got := n.attachments(); !slices.Equal(got, []string{"c1-eth0.json"}) || len(f.Pods()) != 1 {
		t.Errorf("after GC: %v, %v", got, f.Pods())
	}
}

// TestOneSlowPodDoesNotBlockOthers holds one ADD in the plugin.
func TestOneSlowPodDoesNotBlockOthers(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	n.proxy()
	n.world.pod("app", "slow", "uid-slow")
	slow := n.sandbox("app", "slow", "uid-slow", "c-slow")
	begun, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := n.addWith(slow, func(r event.Redirect) (string, error) {
			close(begun)
			<-release
			return event.ByPlugin, n.backend.Apply(slow.netns, config(r))
		}); err != nil {
			t.Errorf("the slow one: %v", err)
		}
	})
	<-begun
	for i := range 4 {
		uid := fmt.Sprintf("uid-%d", i)
		n.world.pod("app", uid, uid)
		s := n.sandbox("app", uid, uid, "c-"+uid)
		wg.Go(func() { n.mustAdd(s) })
	}
	n.until("the others are in", func() bool {
		in := 0
		for _, r := range n.e.Report() {
			if r.Phase == enroll.PhaseEnrolled {
				in++
			}
		}
		return in == 4
	})
	close(release)
	wg.Wait()
}

func TestNamespaceVanishesDuringAdd(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	f, _ := n.proxy()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	s.path = filepath.Join(t.TempDir(), "gone") // the runtime has unbound it; the descriptors keep it alive
	n.mustAdd(s)
	n.world.remove("app", "a")
	n.until("the pod without object and namespace is forgotten", func() bool {
		return len(f.Pods()) == 0 && len(n.attachments()) == 0
	})
}

func TestIstiosPlugin(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	f, _ := n.proxy()
	n.world.pod("app", "a", "uid-a")
	n.world.pod("plain", "p", "uid-p")
	s := n.sandbox("app", "a", "uid-a", "c1")
	link := filepath.Join(t.TempDir(), "netns")
	if err := os.Symlink(s.path, link); err != nil {
		t.Fatal(err)
	}
	s.path = link
	add := enroll.IstioAdd{Pod: enroll.PodName{Namespace: "app", Name: "a"}, Netns: s.path}
	for range 2 {
		if err := n.e.AddForIstio(within(t), add); err != nil {
			t.Fatal(err)
		}
	}
	if len(f.Pods()) != 1 || !n.captured(s) {
		t.Error("the pod is not in the mesh")
	}
	for _, bad := range []enroll.IstioAdd{
		{Pod: enroll.PodName{Namespace: "plain", Name: "p"}, Netns: s.path},
		{Pod: enroll.PodName{Namespace: "app", Name: "none"}, Netns: s.path},
		{Pod: enroll.PodName{Namespace: "app", Name: "a"}, Netns: "/dev/null"},
	} {
		if err := n.e.AddForIstio(within(t), bad); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	if err := n.client.GC(within(t), "net", nil); err != nil || len(f.Pods()) != 1 {
		t.Errorf("GC took it: %v, %v", f.Pods(), err)
	}
	n.world.remove("app", "a")
	if len(f.Pods()) != 1 {
		t.Error("the pod went while its namespace was there")
	}
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	n.until("it goes with object and namespace", func() bool { return len(f.Pods()) == 0 && len(n.attachments()) == 0 })
}
