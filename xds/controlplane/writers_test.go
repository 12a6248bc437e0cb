package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	metav1alpha1 "istio.io/api/meta/v1alpha1"
	apisecurity "istio.io/api/security/v1beta1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"github.com/warren-mesh/warren/xds/kube"
	"github.com/warren-mesh/warren/xds/server"
	"github.com/warren-mesh/warren/xds/translate"
)

// namespaces is a feed of namespaces alone.
type namespaces struct {
	mu      sync.Mutex
	objects translate.Objects
	changed chan struct{}
}

func (n *namespaces) read() (translate.Objects, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.objects, n.changed
}

func (n *namespaces) set(list ...*corev1.Namespace) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.objects.Namespaces = list
	if n.changed != nil {
		close(n.changed)
	}
	n.changed = make(chan struct{})
}

// begin runs a duty for the test.
func begin(t *testing.T, duty func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { duty(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
}

// Every namespace has the root, whatever happens to it there; one that refuses it does
// not hold up others.
func TestRootMaps(t *testing.T) {
	w := newWorld(t)
	var refused atomic.Bool
	refused.Store(true)
	w.client.PrependReactor("create", "configmaps", func(a clienttesting.Action) (bool, runtime.Object, error) {
		return a.GetNamespace() == "refuses" && refused.Load(), nil, errors.New("quota exceeded")
	})
	going := ns("going", nil)
	going.Status.Phase = corev1.NamespaceTerminating
	all := &namespaces{}
	all.set(ns("a", nil), ns("b", nil), ns("refuses", nil), ns("kube-node-lease", nil), going)
	log := &lockedBuffer{}
	r := &rootMaps{client: w.client, name: "istio-ca-root-cert", roots: func() string { return "ROOT" }, world: all.read, log: slog.New(slog.NewTextHandler(log, nil))}
	begin(t, r.run)
	has := func(namespace string) func() bool { return func() bool { return w.rootOf(namespace) == "ROOT" } }
	eventually(t, "a", has("a"))
	eventually(t, "b", has("b"))
	eventually(t, "complaint", func() bool { return r.writes.failed.Load() > 0 && strings.Contains(log.String(), "quota exceeded") })
	refused.Store(false)
	eventually(t, "the one that refused", has("refuses"))

	maps := w.client.CoreV1().ConfigMaps("a")
	change := func(data map[string]string) {
		t.Helper()
		m, err := maps.Get(t.Context(), r.name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if m.Labels[labelConfig] != "true" {
			t.Errorf("labels = %v", m.Labels)
		}
		m.Data = data
		if _, err := maps.Update(t.Context(), m, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	change(map[string]string{rootKey: "FORGED", "other": "kept"})
	eventually(t, "repair", has("a"))
	if m, err := maps.Get(t.Context(), r.name, metav1.GetOptions{}); err != nil || m.Data["other"] != "kept" {
		t.Errorf("data = %v, %v", m.Data, err)
	}
	if err := maps.Delete(t.Context(), r.name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "return", has("a"))
	all.set(ns("a", nil), ns("new", nil))
	eventually(t, "new namespace", has("new"))
	for _, namespace := range []string{"kube-node-lease", "going"} {
		if w.rootOf(namespace) != "" {
			t.Errorf("%s has a root", namespace)
		}
	}
	// Another who writes it as often is left alone after a while.
	for range 2 * freeWrites {
		change(map[string]string{rootKey: "THEIRS"})
		eventually(t, "answer to it", func() bool { return has("a")() || strings.Contains(log.String(), "somebody else writes") })
		if strings.Contains(log.String(), "somebody else writes") {
			return
		}
	}
	t.Error("two writers go on for ever")
}

func TestRestraint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r restraint
		var waits []time.Duration
		for range freeWrites + 12 {
			wait := r.wait("x", time.Now())
			waits = append(waits, wait)
			time.Sleep(wait)
			r.wrote("x", time.Now())
		}
		for i, wait := range waits {
			if i < freeWrites && wait != 0 || i >= freeWrites && (wait < waits[i-1] || wait == 0) || wait > longestStop {
				t.Fatalf("waits %v", waits)
			}
		}
		if r.wait("y", time.Now()) != 0 {
			t.Error("one thing holds up another")
		}
		time.Sleep(forgotten + time.Minute)
		r.wrote("x", time.Now())
		if wait := r.wait("x", time.Now()); wait != 0 {
			t.Errorf("not forgotten: %s", wait)
		}
		r.forget("x")
	})
}

func typedPolicy(name string, change func(*securityv1.AuthorizationPolicy)) *securityv1.AuthorizationPolicy {
	p := &securityv1.AuthorizationPolicy{TypeMeta: metav1.TypeMeta{APIVersion: "security.istio.io/v1"}, ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: name, Generation: 1}}
	p.Spec.Rules = []*apisecurity.Rule{{From: []*apisecurity.Rule_From{{Source: &apisecurity.Source{Namespaces: []string{"a"}}}}}}
	if change != nil {
		change(p)
	}
	return p
}

func TestConditions(t *testing.T) {
	methods := []*apisecurity.Rule{{To: []*apisecurity.Rule_To{{Operation: &apisecurity.Operation{Methods: []string{"GET"}}}}}}
	for name, c := range map[string]struct {
		policy  *securityv1.AuthorizationPolicy
		unread  []kube.Problem
		status  string // empty: no condition
		reason  string
		message string
	}{
		"enforced":     {typedPolicy("p", nil), nil, "True", reasonAccepted, "attached to ztunnel"},
		"layer 7":      {typedPolicy("p", func(p *securityv1.AuthorizationPolicy) { p.Spec.Rules = methods }), nil, "True", reasonUnsupported, "spec.rules[0].to[0].operation.methods: cannot be checked at layer 4"},
		"CUSTOM":       {typedPolicy("p", func(p *securityv1.AuthorizationPolicy) { p.Spec.Action = apisecurity.AuthorizationPolicy_CUSTOM }), nil, "False", reasonUnsupported, "CUSTOM"},
		"dry run":      {typedPolicy("p", func(p *securityv1.AuthorizationPolicy) { p.Annotations = map[string]string{"istio.io/dry-run": "true"} }), nil, "False", reasonUnsupported, "istio.io/dry-run"},
		"for waypoint": {typedPolicy("p", func(p *securityv1.AuthorizationPolicy) { p.Spec.TargetRefs = append(p.Spec.TargetRefs, nil) }), nil, "", "", ""},
		"not readable": {typedPolicy("p", nil), []kube.Problem{{Kind: policyKind, Namespace: "app", Name: "p", Reason: "newer"}, {Kind: policyKind, Reason: "API server gone"}}, "True", reasonUnsupported, "newer"},
		"not read":     {typedPolicy("p", nil), []kube.Problem{{Kind: policyKind, Namespace: "app", Name: "p", Reason: "newer", Unread: true}}, "False", reasonUnsupported, "newer"},
		"very wrong":   {typedPolicy("p", nil), []kube.Problem{{Kind: policyKind, Namespace: "app", Name: "p", Reason: strings.Repeat("ö", maxMessage)}}, "True", reasonUnsupported, "..."},
	} {
		t.Run(name, func(t *testing.T) {
			objects := translate.Objects{AuthorizationPolicies: []*securityv1.AuthorizationPolicy{c.policy}}
			result, err := translate.All(objects, translate.Options{})
			if err != nil {
				t.Fatal(err)
			}
			got, ok := conditionsOf(objects, result, c.unread)["app/p"]
			if ok != (c.status != "") || ok && (statusText(got.accepted) != c.status || got.reason != c.reason || !strings.Contains(got.message, c.message) || len(got.message) > maxMessage) {
				t.Errorf("condition = %+v (%v), want %s %s %q", got, ok, c.status, c.reason, c.message)
			}
			if strings.Contains(got.message, "API server") {
				t.Errorf("message = %q", got.message)
			}
		})
	}
}

// A condition is put beside those of others, and not written again.
func TestWithCondition(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	good := condition{accepted: true, reason: reasonAccepted, message: messageAccepted}
	p := authorizationPolicy("p", "DENY")
	theirs := map[string]any{"type": "WaypointAccepted", "status": "True"}
	set := func(list []any) {
		if err := unstructured.SetNestedSlice(p.Object, list, "status", "conditions"); err != nil {
			t.Fatal(err)
		}
	}
	set([]any{theirs})
	list, changed := withCondition(p, conditionType, good, now)
	want := []any{theirs, map[string]any{"type": conditionType, "status": "True", "reason": "Accepted", "message": "attached to ztunnel", "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": "1"}}
	if !changed || !reflect.DeepEqual(list, want) {
		t.Errorf("conditions = %v", list)
	}
	set(list)
	if _, changed := withCondition(p, conditionType, good, now.Add(time.Hour)); changed {
		t.Error("written again")
	}
	// Another reason is no transition; another status is.
	list, changed = withCondition(p, conditionType, condition{accepted: true, reason: reasonUnsupported, message: "m"}, now.Add(time.Hour))
	if c := list[1].(map[string]any); !changed || len(list) != 2 || c["lastTransitionTime"] != "2026-01-01T00:00:00Z" || c["message"] != "m" {
		t.Errorf("conditions = %v", list)
	}
	list, _ = withCondition(p, conditionType, condition{reason: reasonUnsupported, message: "m"}, now.Add(time.Hour))
	if c := list[1].(map[string]any); c["lastTransitionTime"] != "2026-01-01T01:00:00Z" || c["status"] != "False" {
		t.Errorf("conditions = %v", list)
	}
	p.SetGeneration(2)
	if _, changed := withCondition(p, conditionType, good, now); !changed {
		t.Error("a new generation is not observed")
	}
	if list, changed := withCondition(p, conditionType, condition{}, now); !changed || len(list) != 1 {
		t.Errorf("conditions = %v, want theirs alone", list)
	}
}

// The status that is written is what a reader of typed objects finds said.
func TestSaid(t *testing.T) {
	good := condition{accepted: true, reason: reasonAccepted, message: messageAccepted}
	p := typedPolicy("p", nil)
	if said(p.Status.Conditions, conditionType, p.Generation, good) || !said(p.Status.Conditions, conditionType, p.Generation, condition{}) {
		t.Error("said without conditions")
	}
	p.Status.Conditions = []*metav1alpha1.IstioCondition{{Type: conditionType, Status: "True", Reason: reasonAccepted, Message: messageAccepted, ObservedGeneration: 1}}
	if !said(p.Status.Conditions, conditionType, p.Generation, good) || said(p.Status.Conditions, conditionType, p.Generation, condition{}) {
		t.Error("not said")
	}
	p.Generation = 2
	if said(p.Status.Conditions, conditionType, p.Generation, good) {
		t.Error("said of an older generation")
	}
}

// Policies are told of once, and by others' hands in vain only so often.
func TestPolicyStatus(t *testing.T) {
	w := newWorld(t)
	for name, action := range map[string]string{"deny": "DENY", "audit": "AUDIT"} {
		if err := w.dynamic.Tracker().Create(policyGVR, authorizationPolicy(name, action), "app"); err != nil {
			t.Fatal(err)
		}
	}
	feeder, err := kube.New(kube.Config{Client: w.client, Dynamic: w.dynamic, Settle: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	m := newModel(translate.Options{}, func(*server.Snapshot) {}, slog.New(slog.DiscardHandler))
	s := policyStatus(w.dynamic, m, feeder.Problems, slog.New(slog.DiscardHandler))
	begin(t, func(ctx context.Context) { _ = feeder.Run(ctx) })
	<-feeder.Synced()
	begin(t, func(ctx context.Context) { _ = m.run(ctx, kubeFeed{feeder}) })
	begin(t, s.run)
	eventually(t, "acceptance", func() bool { return conditionOf(w, "deny")["status"] == "True" })
	eventually(t, "refusal", func() bool { return conditionOf(w, "audit")["status"] == "False" })
	patches := func() (n int) {
		for _, a := range w.dynamic.Actions() {
			if a.GetVerb() == "patch" {
				n++
				if a.GetSubresource() != "status" {
					t.Errorf("patch of %q", a.GetSubresource())
				}
			}
		}
		return n
	}
	// Something else changes: nothing is written.
	before := patches()
	p, err := w.dynamic.Resource(policyGVR).Namespace("app").Get(t.Context(), "deny", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p.SetLabels(map[string]string{"x": "y"})
	if _, err := w.dynamic.Resource(policyGVR).Namespace("app").Update(t.Context(), p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the label", func() bool {
		o, _, _ := m.policies()
		for _, p := range o.AuthorizationPolicies {
			if p.Labels["x"] == "y" {
				return true
			}
		}
		return false
	})
	if n := patches(); before != 2 || n != 2 {
		t.Errorf("%d patches, then %d, want 2 in all", before, n)
	}
}

// Two pods with one address are told of each other by Events, once for as long as it
// lasts, whoever else is refused.
func TestPodEvents(t *testing.T) {
	w := newWorld(t)
	var refused atomic.Bool
	refused.Store(true)
	w.client.PrependReactor("create", "events", func(a clienttesting.Action) (bool, runtime.Object, error) {
		return a.GetNamespace() == "other" && refused.Load(), nil, errors.New("quota exceeded")
	})
	m := newModel(translate.Options{}, func(*server.Snapshot) {}, slog.New(slog.DiscardHandler))
	p := &objectEvents{client: w.client, world: m.policies, log: slog.New(slog.DiscardHandler)}
	begin(t, p.run)
	set := func(pods ...*corev1.Pod) {
		t.Helper()
		if err := m.update(translate.Objects{Pods: pods}); err != nil {
			t.Fatal(err)
		}
	}
	told := func(namespace, pod, words string) func() bool {
		return func() bool {
			l, err := w.client.CoreV1().Events(namespace).List(t.Context(), metav1.ListOptions{})
			return err == nil && slices.ContainsFunc(l.Items, func(e corev1.Event) bool {
				return e.InvolvedObject.Name == pod && e.InvolvedObject.UID == "uid-x" && e.Reason == meshProblem && strings.Contains(e.Message, words)
			})
		}
	}
	a, b, c := podOn("n1", "app", "a", "a", "10.0.0.1"), podOn("n2", "other", "b", "b", "10.0.0.1"), podOn("n1", "app", "c", "c", "10.0.0.3")
	set(a, b, c)
	eventually(t, "a's", told("app", "a", "10.0.0.1 is also that of pod other/b"))
	eventually(t, "a failure", func() bool { return p.writes.failed.Load() > 0 })
	refused.Store(false)
	eventually(t, "b's", told("other", "b", "10.0.0.1 is also that of pod app/a"))
	if told("app", "c", "")() {
		t.Error("c has an Event")
	}
	for _, label := range []string{"x", "y", "z"} { // what changes beside it is no news
		c = c.DeepCopy()
		c.Labels[label] = label
		set(a, b, c)
	}
	c = podOn("n1", "app", "c", "c", "10.0.0.9")
	d := podOn("n2", "app", "d", "d", "10.0.0.9")
	set(a, b, c, d)
	eventually(t, "d's", told("app", "d", "10.0.0.9"))
	written := 0
	for _, act := range w.client.Actions() {
		if act.Matches("create", "events") && act.GetNamespace() == "app" || act.Matches("patch", "events") {
			written++
		}
	}
	if written > 3 {
		t.Errorf("%d Events were written in app, want one on each of a, c, d", written)
	}
}

// What goes on is told again after a while, what is over is forgotten, and only so much
// is remembered.
func TestPodEventsAreDue(t *testing.T) {
	p := &objectEventRun{told: make(map[string]*toldObject), in: make(map[string]int)}
	now := time.Now()
	some := map[string]*corev1.Event{"app/a.1": {}, "app/b.1": {}}
	for i, step := range []struct {
		events map[string]*corev1.Event
		after  time.Duration
		due    int
	}{
		{some, 0, 2}, {some, time.Minute, 0}, {some, eventAgain, 2}, {nil, eventAgain, 0}, {some, eventAgain, 2},
	} {
		if due := p.take(step.events, now.Add(step.after)); len(due) != step.due {
			t.Errorf("step %d: %v are due, want %d", i, due, step.due)
		}
	}
	many := make(map[string]*corev1.Event)
	for i := range 2 * maxEvents {
		many[fmt.Sprint(i)] = &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprint(i % 16)}}
	}
	if due := p.take(many, now); len(due) != maxEvents || len(p.told) != maxEvents {
		t.Errorf("%d of %d are due, %d remembered", len(due), len(many), len(p.told))
	}
}

// What is wrong with any object is told on it: on one that was read, on one that could not
// be, and by a list that the API server never sees. One namespace takes no other's place.
func TestEventsOf(t *testing.T) {
	objects := translate.Objects{
		PeerAuthentications: []*securityv1.PeerAuthentication{{TypeMeta: metav1.TypeMeta{APIVersion: "security.istio.io/v1"}, ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: "p", UID: "u1"}}},
		Namespaces:          []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "app", UID: "u2"}}},
	}
	got := eventsOf(objects, []translate.Problem{
		{Kind: "PeerAuthentication", Namespace: "app", Name: "p", Field: "spec", Reason: "has no effect"},
		{Kind: "PeerAuthentication", Namespace: "app", Name: "p", Reason: "twice"},
		{Kind: "PeerAuthentication", Namespace: "app", Name: "gone", Reason: "is not there any more"},
		{Kind: "Namespace", Name: "app", Field: "metadata.labels", Reason: "bad"},
	}, []kube.Problem{
		{Kind: "WorkloadEntry", Namespace: "app", Name: "w", Reason: "cannot be read", APIVersion: "networking.istio.io/v1", UID: "u3", Unread: true},
		{Kind: "Gateway", Reason: "the API server is away"},
	})
	texts := map[string]string{}
	for key, e := range got {
		if e.Namespace+"/"+e.Name != key || e.Reason != meshProblem {
			t.Errorf("%s: %v", key, e)
		}
		o := e.InvolvedObject
		texts[strings.Join([]string{e.Namespace, o.APIVersion, o.Kind, o.Namespace, o.Name, string(o.UID)}, " ")] = e.Message
	}
	want := map[string]string{
		"app security.istio.io/v1 PeerAuthentication app p u1": "spec: has no effect; twice",
		"app networking.istio.io/v1 WorkloadEntry app w u3":    "cannot be read",
		"default v1 Namespace  app u2":                         "metadata.labels: bad",
	}
	if !reflect.DeepEqual(texts, want) {
		t.Errorf("%q", texts)
	}
	p := &objectEventRun{told: make(map[string]*toldObject), in: make(map[string]int)}
	many := make(map[string]*corev1.Event)
	for i := range maxEvents {
		many[fmt.Sprint(i)] = &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "one"}}
	}
	if due := p.take(many, time.Now()); len(due) != maxEventsIn {
		t.Errorf("one namespace has %d", len(due))
	}
	many["other"] = &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "other"}}
	if due := p.take(many, time.Now()); !slices.Contains(due, "other") {
		t.Error("another has none")
	}
}

// A host that gets no address, or a block that leaves none, is told of without a change of
// any object.
func TestUnaddressedIsTold(t *testing.T) {
	w := newWorld(t)
	m := newModel(translate.Options{}, func(*server.Snapshot) {}, slog.New(slog.DiscardHandler))
	p := &objectEvents{client: w.client, world: m.policies, log: slog.New(slog.DiscardHandler), again: make(chan struct{}, 1)}
	begin(t, p.run)
	se := &networkingv1.ServiceEntry{TypeMeta: metav1.TypeMeta{APIVersion: "networking.istio.io/v1"}, ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: "e", UID: "uid-x"}}
	se.Spec.Hosts = []string{"e.example"}
	if err := m.update(translate.Objects{ServiceEntries: []*networkingv1.ServiceEntry{se}}); err != nil {
		t.Fatal(err)
	}
	p.setUnaddressed([]translate.Problem{{Kind: "ServiceEntry", Namespace: "app", Name: "e", Field: "spec.hosts", Reason: "all are given out"}})
	eventually(t, "its Event", func() bool {
		l, err := w.client.CoreV1().Events("app").List(t.Context(), metav1.ListOptions{})
		return err == nil && slices.ContainsFunc(l.Items, func(e corev1.Event) bool {
			return e.InvolvedObject.UID == "uid-x" && e.InvolvedObject.Kind == "ServiceEntry" && e.Message == "spec.hosts: all are given out"
		})
	})
}

// One replica leads; another does when it is gone.
func TestLeader(t *testing.T) {
	w := newWorld(t)
	var duties atomic.Int32
	stand := func() (*leader, func()) {
		l := newLeader(w.client, ownNS, slog.New(slog.DiscardHandler), func(ctx context.Context) {
			duties.Add(1)
			<-ctx.Done()
			duties.Add(-1)
		})
		l.lease, l.renew, l.retry = 3*time.Second, 2*time.Second, 50*time.Millisecond
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- l.run(ctx) }()
		stop := sync.OnceFunc(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		t.Cleanup(stop)
		return l, stop
	}
	first, stop := stand()
	eventually(t, "a leader", func() bool { return first.leads.Load() && duties.Load() == 1 })
	second, _ := stand()
	for range 10 {
		time.Sleep(20 * time.Millisecond)
		if second.leads.Load() || duties.Load() != 1 {
			t.Fatal("two leaders")
		}
	}
	stop()
	eventually(t, "another leader", func() bool { return second.leads.Load() && duties.Load() == 1 })
	if first.leads.Load() {
		t.Error("the first still leads")
	}
	lease, err := w.client.CoordinationV1().Leases(ownNS).Get(t.Context(), leaseName, metav1.GetOptions{})
	if err != nil || lease.Spec.HolderIdentity == nil {
		t.Fatal(fmt.Errorf("lease: %w", err))
	}
}
