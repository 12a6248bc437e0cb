package enroll_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/nodeagent/enroll"
	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/xds/translate"
)

// finder knows the namespaces that the test tells it.
type finder struct {
	mu     sync.Mutex
	known  map[string]*sandbox
	broken error
	asked  int
}

func (f *finder) Find(_ context.Context, pods []enroll.Wanted) (map[string]enroll.Found, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	if f.broken != nil {
		return nil, f.broken
	}
	found := make(map[string]enroll.Found)
	for _, p := range pods {
		if s := f.known[p.UID]; s != nil {
			ns, err := s.netns.Dup()
			found[p.UID] = enroll.Found{NS: ns, Path: s.path, Container: s.key.ContainerID, Err: err}
		}
	}
	return found, nil
}

func (f *finder) set(uid string, s *sandbox) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known == nil {
		f.known = make(map[string]*sandbox)
	}
	f.known[uid] = s
}

// withFinder makes the agent look for running pods.
func (n *node) withFinder() *finder {
	f := new(finder)
	n.config = func(c *enroll.Config) { c.Finder = f }
	return f
}

func address(ip string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.Phase = corev1.PodRunning
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
}

func marked(p *corev1.Pod) {
	p.Annotations = map[string]string{translate.AnnotationRedirection: "enabled"}
}

func phased(phase corev1.PodPhase) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Status.Phase = phase }
}

// TestRunningPodIsFound: one that was there before the plugin joins, survives a
// restart of the agent, and goes with its DEL.
func TestRunningPodIsFound(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	find := n.withFinder()
	n.start()
	f, _ := n.proxy()
	s := n.sandbox("app", "a", "uid-a", "c1")
	inPod(t, s.netns, "ip", "link", "set", "lo", "up")
	inPod(t, s.netns, "ip", "addr", "add", "10.1.2.3/32", "dev", "lo")
	n.world.pod("app", "a", "uid-a", address("10.1.2.3"), address("10.9.9.9")) // the second one is a lie
	n.until("it was looked for", func() bool {
		return n.reason("uid-a") == "no process of it was found on this node, so that its network namespace is not known"
	})
	find.set("uid-a", s)
	n.until("the pod is in the mesh", func() bool { return n.phase("uid-a") == enroll.PhaseEnrolled })
	if !n.captured(s) || len(f.Pods()) != 1 || f.Pods()["uid-a"].NS != s.netns.ID() {
		t.Errorf("redirected: %t, proxy: %v", n.captured(s), f.Pods())
	}
	if r := n.e.Report(); len(r) != 1 || fmt.Sprint(r[0].IPs) != "[10.1.2.3]" {
		t.Errorf("%+v", r)
	}
	n.stop()
	n.start()
	n.until("it is found again", func() bool { return n.phase("uid-a") == enroll.PhaseEnrolled && len(f.Pods()) == 1 && f.Synced() })
	find.set("uid-a", nil) // its namespace goes with it
	if err := n.client.Del(within(t), s.key, "uid-a"); err != nil || len(n.attachments()) > 0 {
		t.Errorf("after DEL: %v, %v", err, n.attachments())
	}
	// It may have been on its way to the agent that came anew, and hears so in its snapshot.
	n.until("the proxy has let it go", func() bool { return len(f.Pods()) == 0 })
	n.world.remove("app", "a")
}

func (n *node) reason(uid string) string {
	for _, r := range n.e.Report() {
		if r.UID == uid {
			return r.Reason
		}
	}
	return ""
}

// TestPathOfAFoundPodGoes: the process that it was found by has ended, and there is
// another; the proxy serves the pod all the time.
func TestPathOfAFoundPodGoes(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	find := n.withFinder()
	n.start()
	f, _ := n.proxy()
	s := n.sandbox("app", "a", "uid-a", "c1")
	path := s.path
	s.path = "/proc/999999999/ns/net" // as if it were that of a process
	find.set("uid-a", s)
	n.world.pod("app", "a", "uid-a", address("10.1.2.3"))
	n.until("the pod is in the mesh", func() bool { return n.phase("uid-a") == enroll.PhaseEnrolled })
	n.stop()
	find.set("uid-a", nil)
	n.start()
	n.until("the proxy was told to keep it", func() bool { return slices.Contains(f.Events(), "keep uid-a") && f.Synced() })
	s.path = path
	find.set("uid-a", s)
	n.until("it is found by another process", func() bool {
		return n.e.Report()[0].Netns == path && strings.HasSuffix(strings.Join(f.Events(), " "), "add uid-a")
	})
	if slices.Contains(f.Events(), "del uid-a") || !n.captured(s) {
		t.Errorf("events %v, redirected %t", f.Events(), n.captured(s))
	}
	// Its processes end, and its object goes.
	s.path = "/proc/999999999/ns/net"
	n.stop()
	find.set("uid-a", nil)
	edit(t, n, s)
	n.start()
	n.world.remove("app", "a")
	n.until("it is forgotten", func() bool { return len(n.attachments()) == 0 && len(f.Pods()) == 0 })
}

// TestOneHungPodHoldsUpNobody: the proxy never answers about one of them.
func TestOneHungPodHoldsUpNobody(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	find := n.withFinder()
	n.start()
	f, _ := n.proxy()
	f.OnAdd(func(_ context.Context, uid string, _ zds.Info) error {
		if uid == "uid-bad" {
			return errors.New("no memory for listeners")
		}
		return nil
	})
	names := []string{"bad", "b", "c", "d", "e", "f", "g", "h", "i", "j"}
	for _, name := range names {
		find.set("uid-"+name, n.sandbox("app", name, "uid-"+name, "c-"+name))
		n.world.pod("app", name, "uid-"+name, address("10.1.2.3"))
	}
	n.until("the others are in the mesh", func() bool {
		return !slices.ContainsFunc(names[1:], func(name string) bool { return n.phase("uid-"+name) != enroll.PhaseEnrolled })
	})
	n.until("it is told why the bad one is not", func() bool { return n.notices.about("bad", "no memory for listeners") })
	for _, name := range names {
		n.world.remove("app", name)
	}
}

// TestMarks: what the annotation is to say, phase by phase.
func TestMarks(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	find := n.withFinder()
	n.times.Linger = 1
	n.start()
	n.proxy()
	marks := func() string { m, _ := n.e.Marks(); return fmt.Sprint(m) }
	s := n.outside("p", "uid-p", "c1")
	if marks() != "[]" {
		t.Errorf("of a pod outside: %s", marks())
	}
	n.world.pod("plain", "p", "uid-p", labelled("ambient"))
	n.until("it is to be marked", func() bool { return marks() == "[{plain/p uid-p true}]" })
	n.world.pod("plain", "p", "uid-p", labelled("ambient"), marked)
	n.until("it says so", func() bool { return marks() == "[]" })
	// It leaves: the mark goes first, and until it has gone the pod is served.
	n.world.pod("plain", "p", "uid-p", marked)
	n.until("the mark has to go", func() bool { return marks() == "[{plain/p uid-p false}]" })
	if n.phase("uid-p") != enroll.PhaseLeaving {
		t.Errorf("the pod is %s while others take it for one in the mesh", n.phase("uid-p"))
	}
	n.world.pod("plain", "p", "uid-p")
	n.until("it has left", func() bool { return n.phase("uid-p") == enroll.PhaseLeft && n.clean(s) })
	// A finished pod that nobody knows is no member, and one of another agent's is.
	n.world.pod("plain", "job", "uid-job", marked, phased(corev1.PodSucceeded), address("10.1.2.4"), phased(corev1.PodSucceeded))
	n.until("its mark has to go", func() bool { return marks() == "[{plain/job uid-job false}]" })
	if find.asked > 0 {
		t.Errorf("a finished pod was looked for")
	}
}

// TestLabelsThatWentUnseen: a pod says that it is in the mesh, and no label puts it
// there any more. What is left in it goes.
func TestLabelsThatWentUnseen(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	find := n.withFinder()
	n.start()
	n.proxy()
	s := n.sandbox("plain", "p", "uid-p", "c1")
	if err := n.backend.Apply(s.netns, redirect.Defaults()); err != nil {
		t.Fatal(err)
	}
	find.set("uid-p", s)
	n.world.pod("plain", "p", "uid-p", marked, address("10.1.2.3"))
	n.until("its mark has to go", func() bool { m, _ := n.e.Marks(); return len(m) == 1 && !m[0].Enabled })
	n.world.pod("plain", "p", "uid-p", address("10.1.2.3"))
	n.until("nothing is left", func() bool { return n.phase("uid-p") == enroll.PhaseLeft && n.clean(s) })
}

// TestRival: while Istio's agent runs here, no pod is taken from it; when it has gone,
// they are.
func TestRival(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	find := n.withFinder()
	n.start()
	n.proxy()
	n.world.namespace("istio-system", nil)
	n.world.pod("istio-system", "istio-cni-node-x", "uid-rival", agentOfIstio)
	running := n.sandbox("app", "running", "uid-running", "c1")
	find.set("uid-running", running)
	n.world.pod("app", "running", "uid-running", address("10.1.2.3"))
	n.until("it is said who is in the way", func() bool { return strings.Contains(n.reason("uid-running"), "istio-system/istio-cni-node-x") })
	n.until("it is told as well", func() bool { return n.notices.about("running", "istio-system/istio-cni-node-x") })

	n.world.pod("app", "bare", "uid-bare")
	bare := n.sandbox("app", "bare", "uid-bare", "c2")
	_, err := n.add(bare)
	wantRefusal(t, err, true, "istio-system/istio-cni-node-x")

	n.world.pod("app", "theirs", "uid-theirs", marked)
	theirs := n.sandbox("app", "theirs", "uid-theirs", "c3")
	inPod(t, theirs.netns, "iptables", "-t", "nat", "-N", "ISTIO_OUTPUT")
	if a, err := n.add(theirs); err != nil || a.Action != event.Leave || !strings.Contains(a.Reason, "istio-cni-node-x") {
		t.Errorf("ADD of a pod that Istio has: %+v, %v", a, err)
	}
	if m, _ := n.e.Marks(); len(m) > 0 {
		t.Errorf("marks of Istio's pods are ours: %v", m)
	}
	if !n.notices.about("theirs", "istio-cni-node-x") || !n.notices.about("bare", "istio-cni-node-x") {
		t.Error("nobody was told")
	}
	inPod(t, theirs.netns, "iptables", "-t", "nat", "-X", "ISTIO_OUTPUT")
	n.world.remove("istio-system", "istio-cni-node-x")
	n.until("both are in the mesh", func() bool {
		return n.phase("uid-running") == enroll.PhaseEnrolled && n.phase("uid-theirs") == enroll.PhaseEnrolled
	})
}

// TestNamespaceThatIsNotKnownYet: its pods wait; they do not start outside the mesh,
// and do not leave it.
func TestNamespaceThatIsNotKnownYet(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	n.world.whole = true
	n.start()
	n.proxy()
	n.world.pod("late", "a", "uid-a")
	s := n.sandbox("late", "a", "uid-a", "c1")
	_, err := n.add(s)
	wantRefusal(t, err, true, "namespace late is not known yet")
	n.world.namespace("late", map[string]string{translate.LabelDataplaneMode: "ambient"})
	n.mustAdd(s)
	n.world.change(func(o *translate.Objects) { o.Namespaces = nil })
	n.world.pod("late", "a", "uid-a")
	if n.phase("uid-a") != enroll.PhaseEnrolled {
		t.Errorf("the pod is %s", n.phase("uid-a"))
	}
}

// TestStaticPod: the runtime has another UID than the API server.
func TestStaticPod(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	n.proxy()
	n.world.pod("app", "a-n1", "uid-mirror", func(p *corev1.Pod) {
		p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "hash"}
	})
	n.mustAdd(n.sandbox("app", "a-n1", "hash", "c1"))
	if m, _ := n.e.Marks(); len(m) != 1 || m[0].UID != "uid-mirror" || !m[0].Enabled {
		t.Errorf("marks %v", m)
	}
}

// TestInterfacesThatCannotBe: an annotation must not keep a pod from starting.
func TestInterfacesThatCannotBe(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t).start()
	n.proxy()
	n.world.pod("app", "a", "uid-a", func(p *corev1.Pod) {
		p.Annotations = map[string]string{translate.AnnotationVirtualIface: "tap+, tap0, -j DROP", translate.AnnotationBypass: "perhaps"}
	})
	s := n.sandbox("app", "a", "uid-a", "c1")
	n.mustAdd(s)
	r := n.e.Report()
	if len(r) != 1 || len(r[0].Warnings) < 2 || !slices.Contains(s.programmedWith.VirtualInterfaces, "tap0") {
		t.Errorf("%+v, %+v", r, s.programmedWith)
	}
	n.until("it is told", func() bool { return n.notices.about("a", "perhaps") && n.notices.about("a", "-j DROP") })
}
