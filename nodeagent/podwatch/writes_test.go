package podwatch

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/warren-mesh/warren/nodeagent/enroll"
	"github.com/warren-mesh/warren/xds/translate"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came to be that %s", what)
		}
	}
}

// running runs something of the package until the test ends.
func running(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// still is a world that never changes.
type still struct{ never chan struct{} }

func (s still) View() (*enroll.View, <-chan struct{}) { return nil, s.never }

// wanted are marks that the test sets.
type wanted struct {
	mu      sync.Mutex
	marks   []enroll.Mark
	changed chan struct{}
}

func (w *wanted) get() ([]enroll.Mark, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.marks, w.changed
}

func (w *wanted) set(marks ...enroll.Mark) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.marks = marks
	if w.changed != nil {
		close(w.changed)
	}
	w.changed = make(chan struct{})
}

func aPod(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: name, UID: "uid-x", ResourceVersion: "1"}}
}

func pods() schema.GroupResource { return schema.GroupResource{Resource: "pods"} }

// failing makes the first n writes of a kind fail.
func failing(c *fake.Clientset, verb, resource string, n int, err error) (tries func() int) {
	var mu sync.Mutex
	count := 0
	c.PrependReactor(verb, resource, func(k8stesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		count++
		return count <= n, nil, err
	})
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return count
	}
}

func TestMarkerTriesAgain(t *testing.T) {
	for name, err := range map[string]error{
		"conflict": apierrors.NewConflict(pods(), "a", errors.New("changed")),
		"429":      apierrors.NewTooManyRequests("slow down", 0),
		"gone":     errors.New("connection refused"),
	} {
		t.Run(name, func(t *testing.T) {
			c := fake.NewClientset(aPod("a"))
			tries := failing(c, "patch", "pods", 2, err)
			w := new(wanted)
			w.set()
			m := NewMarker(c, w.get, still{}, quiet())
			running(t, m.Run)
			w.set(enroll.Mark{Pod: enroll.PodName{Namespace: "app", Name: "a"}, UID: "uid-x", Enabled: true})
			until(t, "there is a problem", func() bool { return m.Problem() != nil && strings.Contains(m.Problem().Error(), "app/a") })
			until(t, "it is marked", func() bool { return mark(t, c) == "enabled" })
			if tries() != 3 {
				t.Errorf("%d tries", tries())
			}
			w.set()
			until(t, "all is well", func() bool { return m.Problem() == nil })
		})
	}
}

func mark(t *testing.T, c *fake.Clientset) string {
	t.Helper()
	p, err := c.CoreV1().Pods("app").Get(t.Context(), "a", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return p.Annotations[translate.AnnotationRedirection]
}

// TestMarkerPatch: it names the pod's UID, so that a later pod of that name is not
// meant, goes by way of the status, and removes what it put there.
func TestMarkerPatch(t *testing.T) {
	c := fake.NewClientset(aPod("a"))
	w := new(wanted)
	pod := enroll.PodName{Namespace: "app", Name: "a"}
	w.set(enroll.Mark{Pod: pod, UID: "uid-x", Enabled: true})
	running(t, NewMarker(c, w.get, still{}, quiet()).Run)
	until(t, "it is marked", func() bool { return mark(t, c) == "enabled" })
	w.set(enroll.Mark{Pod: pod, UID: "uid-x"})
	until(t, "the mark is gone", func() bool { return mark(t, c) == "" })
	var patches []k8stesting.PatchAction
	for _, a := range c.Actions() {
		if p, ok := a.(k8stesting.PatchAction); ok {
			patches = append(patches, p)
		}
	}
	if len(patches) != 2 {
		t.Fatalf("%d patches", len(patches))
	}
	for _, p := range patches {
		var body struct{ Metadata struct{ UID string } }
		if err := json.Unmarshal(p.GetPatch(), &body); err != nil || p.GetSubresource() != "status" || body.Metadata.UID != "uid-x" {
			t.Errorf("patch of %q: %s, %v", p.GetSubresource(), p.GetPatch(), err)
		}
	}
}

// TestMarkerIsNotHeldUp: one pod that cannot be written leaves the others alone.
func TestMarkerIsNotHeldUp(t *testing.T) {
	bad := aPod("bad")
	bad.UID = "uid-bad"
	c := fake.NewClientset(aPod("a"), bad)
	c.PrependReactor("patch", "pods", func(a k8stesting.Action) (bool, runtime.Object, error) {
		return a.(k8stesting.PatchAction).GetName() == "bad", nil, errors.New("no")
	})
	w := new(wanted)
	w.set(
		enroll.Mark{Pod: enroll.PodName{Namespace: "app", Name: "bad"}, UID: "uid-bad", Enabled: true},
		enroll.Mark{Pod: enroll.PodName{Namespace: "app", Name: "a"}, UID: "uid-x", Enabled: true},
		enroll.Mark{Pod: enroll.PodName{Namespace: "app", Name: "gone"}, UID: "uid-gone", Enabled: true},
	)
	running(t, NewMarker(c, w.get, still{}, quiet()).Run)
	until(t, "the other is marked", func() bool { return mark(t, c) == "enabled" })
}

func events(t *testing.T, c *fake.Clientset) []corev1.Event {
	t.Helper()
	list, err := c.CoreV1().Events("app").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func TestEventsSayEachThingOnce(t *testing.T) {
	c := fake.NewClientset()
	tries := failing(c, "create", "events", 1, apierrors.NewTooManyRequests("slow down", 0))
	e := NewEvents(c, "n1", quiet())
	running(t, e.Run)
	n := enroll.Notice{Pod: enroll.PodName{Namespace: "app", Name: "a"}, UID: "uid-a", Kind: enroll.NoticeRefused, Text: "no\x1b[31m\nproxy"}
	for range 100 {
		e.Tell(n)
	}
	until(t, "it is said", func() bool { return len(events(t, c)) == 1 })
	for range 100 {
		e.Tell(n)
	}
	got := events(t, c)[0]
	if tries() != 2 || got.Message != "no?[31m proxy" || got.Reason != "MeshRefused" || got.Type != "Warning" || got.InvolvedObject.UID != "uid-a" || got.Source.Host != "n1" {
		t.Errorf("%d tries, %+v", tries(), got)
	}
}

// TestEventsOfASuccessor: the same thing is one Event, also when another agent has
// said it.
func TestEventsOfASuccessor(t *testing.T) {
	c := fake.NewClientset()
	n := enroll.Notice{Pod: enroll.PodName{Namespace: "app", Name: "a"}, UID: "uid-a", Kind: enroll.NoticeRefused, Text: "no proxy"}
	for i := range 2 {
		t.Run("agent", func(t *testing.T) {
			e := NewEvents(c, "n1", quiet())
			running(t, e.Run)
			e.Tell(n)
			until(t, "it is said", func() bool { l := events(t, c); return len(l) == 1 && int(l[0].Count) == i+1 })
		})
	}
}

func TestEventsAreBounded(t *testing.T) {
	e := NewEvents(fake.NewClientset(), "n1", quiet())
	now := time.Now()
	key := enroll.Notice{Pod: enroll.PodName{Namespace: "app", Name: "a"}, Kind: enroll.NoticeRefused}
	written := 0
	for i := range 100 { // a text that is another one each time, ten times a second
		key.Text = strconv.Itoa(i) + strings.Repeat("x", 1000)
		e.takeLocked(key, now)
		due, _ := e.due(now)
		written += len(due)
		for k := range due {
			s := e.said[k]
			s.done(now, nil, 0)
			s.written = now
			if len(due[k].Message) > maxText+len("…") {
				t.Fatalf("%d bytes", len(due[k].Message))
			}
		}
		now = now.Add(100 * time.Millisecond)
	}
	if written != 2 {
		t.Errorf("%d Events in ten seconds", written)
	}
	for i := range maxEvents + 10 {
		key.UID = strings.Repeat("u", i)
		e.takeLocked(key, now)
	}
	if len(e.said) > maxEvents {
		t.Errorf("%d are remembered", len(e.said))
	}
	for k := range e.said {
		e.said[k].unsaid = false
	}
	e.due(now.Add(2 * forget))
	if len(e.said) > 0 {
		t.Errorf("%d are remembered for ever", len(e.said))
	}
}

func TestTaints(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", ResourceVersion: "1"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{
		{Key: "cni.istio.io/not-ready", Effect: corev1.TaintEffectNoSchedule}, {Key: "theirs", Effect: corev1.TaintEffectNoExecute},
	}}}
	c := fake.NewClientset(node)
	var mu sync.Mutex
	ready := errors.New("not yet")
	asked := 0
	failing(c, "patch", "nodes", 1, apierrors.NewConflict(schema.GroupResource{Resource: "nodes"}, "n1", errors.New("changed")))
	running(t, Taints{Client: c, Node: "n1", Keys: []string{"cni.istio.io/not-ready"}, Log: quiet(), Ready: func(context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		asked++
		return ready
	}}.Run)
	left := func() (keys []string) {
		n, err := c.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, taint := range n.Spec.Taints {
			keys = append(keys, taint.Key)
		}
		return keys
	}
	until(t, "it was asked", func() bool { mu.Lock(); defer mu.Unlock(); return asked > 0 })
	if len(left()) != 2 {
		t.Fatalf("before the agent is ready: %v", left())
	}
	mu.Lock()
	ready = nil
	mu.Unlock()
	until(t, "only theirs is left", func() bool { l := left(); return len(l) == 1 && l[0] == "theirs" })
}

func TestOwner(t *testing.T) {
	now := metav1.Now()
	ds := func(edit func(*appsv1.DaemonSet)) *appsv1.DaemonSet {
		d := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "warren-system", Name: "agent"}}
		if edit != nil {
			edit(d)
		}
		return d
	}
	affinity := func(terms ...corev1.NodeSelectorTerm) func(*appsv1.DaemonSet) {
		return func(d *appsv1.DaemonSet) {
			d.Spec.Template.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
				RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: terms}}}
		}
	}
	term := func(key string, op corev1.NodeSelectorOperator, values ...string) corev1.NodeSelectorTerm {
		return corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: op, Values: values}}}
	}
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "daemonsets"}, "agent", errors.New("no"))
	for _, c := range []struct {
		name    string
		objects []runtime.Object
		err     error
		seen    bool
		gone    bool
		unknown bool
	}{
		{name: "an upgrade", objects: []runtime.Object{ds(nil)}},
		{name: "deleted", gone: true},
		{name: "being deleted", objects: []runtime.Object{ds(func(d *appsv1.DaemonSet) { d.DeletionTimestamp, d.Finalizers = &now, []string{"x"} })}, gone: true},
		{name: "its namespace is being deleted", objects: []runtime.Object{ds(nil), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name: "warren-system", DeletionTimestamp: &now, Finalizers: []string{"x"}}}}, gone: true},
		{name: "another namespace is", objects: []runtime.Object{ds(nil), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name: "other", DeletionTimestamp: &now, Finalizers: []string{"x"}}}}},
		{name: "for other nodes", objects: []runtime.Object{ds(func(d *appsv1.DaemonSet) { d.Spec.Template.Spec.NodeSelector = map[string]string{"zone": "b"} })}, gone: true},
		{name: "for this node", objects: []runtime.Object{ds(func(d *appsv1.DaemonSet) { d.Spec.Template.Spec.NodeSelector = map[string]string{"zone": "a"} })}},
		{name: "affinity to others", objects: []runtime.Object{ds(affinity(term("zone", corev1.NodeSelectorOpNotIn, "a"), term("none", corev1.NodeSelectorOpExists)))}, gone: true},
		{name: "affinity to it", objects: []runtime.Object{ds(affinity(term("none", corev1.NodeSelectorOpExists), term("zone", corev1.NodeSelectorOpIn, "a")))}},
		{name: "affinity that nobody understands", objects: []runtime.Object{ds(affinity(term("zone", "Near", "a")))}, unknown: true},
		{name: "the right was taken away", err: forbidden, seen: true, gone: true},
		{name: "the right was never there", err: forbidden, unknown: true},
		{name: "no API server", err: errors.New("connection refused"), seen: true, unknown: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := fake.NewClientset(append(c.objects, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"zone": "a"}}})...)
			if c.err != nil {
				failing(client, "get", "daemonsets", 100, c.err)
			}
			o := &Owner{Client: client, Namespace: "warren-system", Name: "agent", Node: "n1"}
			o.seen.Store(c.seen)
			gone, why, err := o.Gone(t.Context())
			if gone != c.gone || (err != nil) != c.unknown || err == nil && why == "" {
				t.Errorf("gone %t (%s), %v", gone, why, err)
			}
		})
	}
}

// An agent that starts while the API server is away asks until it has seen its DaemonSet:
// that the right is taken away later says that the mesh leaves.
func TestOwnerIsLookedForUntilItIsSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(&appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "warren-system", Name: "agent"}})
		failing(client, "get", "daemonsets", 3, errors.New("connection refused"))
		o := &Owner{Client: client, Namespace: "warren-system", Name: "agent", Node: "n1"}
		told := 0
		o.Look(t.Context(), func(error) { told++ })
		if !o.seen.Load() || told != 1 {
			t.Errorf("seen %t, told %d times", o.seen.Load(), told)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		failing(client, "get", "daemonsets", 100, errors.New("connection refused"))
		o.Look(ended, func(err error) { t.Errorf("told at the agent's end: %v", err) })
	})
}
