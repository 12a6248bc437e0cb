package enroll_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/nodeagent/enroll"
)

const rivalPod = "istio-cni-node-x"

// rival makes Istio's agent a pod of this node, in some phase; one that runs is ready.
func (n *node) rival(phase corev1.PodPhase) {
	n.t.Helper()
	n.world.pod("istio-system", rivalPod, "uid-rival", agentOfIstio, func(p *corev1.Pod) {
		p.Status.Phase = phase
		if phase != corev1.PodRunning {
			p.Status.Conditions = nil
		}
	})
}

// rivalCrashes makes it one that runs and is not ready, since so long after it came.
func (n *node) rivalCrashes(since time.Duration) {
	n.t.Helper()
	n.world.pod("istio-system", rivalPod, "uid-rival", agentOfIstio, func(p *corev1.Pod) {
		came := metav1.Now()
		p.Status.StartTime = &came
		p.Status.Conditions[0].Status, p.Status.Conditions[0].LastTransitionTime = corev1.ConditionFalse, metav1.NewTime(came.Add(since))
	})
}

func agentOfIstio(p *corev1.Pod) {
	p.Labels = map[string]string{"k8s-app": "istio-cni-node"}
	p.Status.Phase = corev1.PodRunning
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
}

// sweeps waits until the agent has looked at everything a few times.
func (n *node) sweeps() {
	n.t.Helper()
	time.Sleep(5 * n.times.Sweep) // what must not happen cannot be waited for
}

// TestRivalIsReplaced: while Istio's agent is upgraded there is none for a moment. Its
// pods stay its own, and those that start then wait; they are ours when it stays away.
func TestRivalIsReplaced(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	n.times.Rival = time.Minute
	find := n.withFinder()
	n.world.namespace("istio-system", nil)
	n.rival(corev1.PodRunning)
	n.start()
	_, stop := n.proxy()
	s := n.sandbox("app", "a", "uid-a", "c1")
	n.istio(s)
	find.set("uid-a", s)
	n.world.pod("app", "a", "uid-a", marked, address("10.1.2.3"))
	n.world.pod("app", "new", "uid-new")
	fresh := n.sandbox("app", "new", "uid-new", "c2")
	still := func(when string) {
		t.Helper()
		n.sweeps()
		if len(n.foreign(s)) == 0 || n.phase("uid-a") == enroll.PhaseEnrolled {
			t.Errorf("%s: Istio's pod was taken: phase %s", when, n.phase("uid-a"))
		}
		_, err := n.add(fresh)
		wantRefusal(t, err, true, "istio-cni-node")
		if m, _ := n.e.Marks(); len(m) > 0 {
			t.Errorf("%s: marks of Istio's pods are ours: %v", when, m)
		}
	}
	still("at work")
	n.world.remove("istio-system", rivalPod)
	still("its pod is gone")
	n.rival(corev1.PodPending)
	still("its next pod is not running yet")
	n.rival(corev1.PodRunning)
	still("at work again")

	stop()
	n.stop()
	n.times.Rival = 100 * time.Millisecond
	n.start()
	f, _ := n.proxy()
	still("at work, with another agent of ours")
	n.world.remove("istio-system", rivalPod)
	n.until("it is taken over", func() bool { return n.phase("uid-a") == enroll.PhaseEnrolled })
	n.mustAdd(fresh)
	if len(f.Pods()) != 2 {
		t.Errorf("the proxy has %v", f.Pods())
	}
}

// TestRivalThatNeverWas: an agent that was announced and never ran, or crashes whenever it
// does, keeps no pod from starting; what Istio has programmed is left alone all the same.
func TestRivalThatNeverWas(t *testing.T) {
	t.Run("pending", func(t *testing.T) { rivalThatNeverWas(t, func(n *node) { n.rival(corev1.PodPending) }) })
	t.Run("crashing", func(t *testing.T) { rivalThatNeverWas(t, func(n *node) { n.rivalCrashes(0) }) })
}

func rivalThatNeverWas(t *testing.T, rival func(*node)) {
	nstest.LeakCheck(t)
	n := newNode(t)
	find := n.withFinder()
	n.world.namespace("istio-system", nil)
	rival(n)
	n.start()
	n.proxy()
	n.world.pod("app", "new", "uid-new")
	n.mustAdd(n.sandbox("app", "new", "uid-new", "c1"))
	s := n.sandbox("app", "a", "uid-a", "c2")
	n.istio(s)
	find.set("uid-a", s)
	n.world.pod("app", "a", "uid-a", marked, address("10.1.2.3"))
	n.until("it is said who is in the way", func() bool { return strings.Contains(n.reason("uid-a"), rivalPod) })
	n.sweeps()
	if len(n.foreign(s)) == 0 {
		t.Error("Istio's pod was taken")
	}
}

// TestRivalsPlugin: as long as the network configuration runs Istio's plugin, its pods
// are its own; where that plugin comes behind ours, it decides about new ones.
func TestRivalsPlugin(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	n.times.Rival = time.Millisecond
	var file atomic.Value
	var follows atomic.Bool
	file.Store("10-x.conflist")
	n.config = func(c *enroll.Config) {
		c.RivalChained = func() (string, bool) { return file.Load().(string), follows.Load() }
	}
	n.start()
	n.proxy()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	_, err := n.add(s)
	wantRefusal(t, err, true, "10-x.conflist")
	follows.Store(true)
	if a, err := n.add(s); err != nil || a.Action != event.Leave || !strings.Contains(a.Reason, "behind ours") {
		t.Errorf("ADD of a pod that Istio's plugin is to see: %+v, %v", a, err)
	}
	n.sweeps()
	if n.phase("uid-a") != enroll.PhaseLeft || !n.notices.about("a", "10-x.conflist") {
		t.Errorf("the pod is %s", n.phase("uid-a"))
	}
	file.Store("")
	n.until("it is in the mesh", func() bool { return n.phase("uid-a") == enroll.PhaseEnrolled })
}
