package kube

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/warren-mesh/warren/xds/translate"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// within is how long a test waits for what must happen; a machine may be busy.
const within = 60 * time.Second

var (
	authorizations = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}
	oldPeers       = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1beta1", Resource: "peerauthentications"}
)

// cluster is an API server's fakes.
type cluster struct {
	t       *testing.T
	client  *fake.Clientset
	dynamic *dynamicfake.FakeDynamicClient
	log     *lockedBuffer

	mu     sync.Mutex
	kinds  map[schema.GroupVersion][]string
	feeder *Feeder
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newCluster(t *testing.T, objects ...runtime.Object) *cluster {
	lists := map[schema.GroupVersionResource]string{}
	for resource, kind := range map[string]string{"authorizationpolicies.security.istio.io": "AuthorizationPolicyList", "peerauthentications.security.istio.io": "PeerAuthenticationList",
		"serviceentries.networking.istio.io": "ServiceEntryList", "workloadentries.networking.istio.io": "WorkloadEntryList",
		"gateways.gateway.networking.k8s.io": "GatewayList", "gatewayclasses.gateway.networking.k8s.io": "GatewayClassList"} {
		gr := schema.ParseGroupResource(resource)
		lists[gr.WithVersion("v1")], lists[gr.WithVersion("v1beta1")] = kind, kind
	}
	return &cluster{
		t: t, client: fake.NewClientset(objects...), log: &lockedBuffer{},
		dynamic: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists),
		kinds:   map[schema.GroupVersion][]string{},
	}
}

// define makes the API server know exactly these kinds of a version.
func (c *cluster) define(gv schema.GroupVersion, resources ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kinds[gv] = resources
}

// run starts a feeder for the test.
func (c *cluster) run(node string) *Feeder {
	c.t.Helper()
	f, err := New(Config{Client: c.client, Dynamic: c.dynamic, Node: node, Log: slog.New(slog.NewTextHandler(c.log, nil)), Settle: time.Millisecond, Poll: 10 * time.Millisecond})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, k := range f.kinds {
		if k, ok := k.(interface {
			ask(func(context.Context, schema.GroupVersion) ([]string, error))
		}); ok {
			k.ask(func(_ context.Context, gv schema.GroupVersion) ([]string, error) {
				c.mu.Lock()
				defer c.mu.Unlock()
				return c.kinds[gv], nil
			})
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	c.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("Run: %v", err)
		}
	})
	c.feeder = f
	return f
}

func (c *custom[T]) ask(served func(context.Context, schema.GroupVersion) ([]string, error)) {
	c.served = served
}

// await waits until the objects are as wanted.
func await(t *testing.T, f *Feeder, what string, ok func(translate.Objects) bool) translate.Objects {
	t.Helper()
	limit := time.After(within)
	for {
		objects, changed := f.Read()
		if ok(objects) {
			return objects
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("%s: did not come; problems %v, status %+v", what, f.Problems(), f.Status())
		}
	}
}

// eventually waits for something that nobody announces.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: did not come", what)
		}
	}
}

func synced(t *testing.T, f *Feeder) {
	t.Helper()
	select {
	case <-f.Synced():
	case <-time.After(within):
		t.Fatalf("not synced: %v, %+v", f.Problems(), f.Status())
	}
}

// watched waits until a fake's watch is there: it tells of nothing from before.
func watched(t *testing.T, actions func() []clienttesting.Action, resource string) {
	t.Helper()
	eventually(t, "watch of "+resource, func() bool {
		return slices.ContainsFunc(actions(), func(a clienttesting.Action) bool { return a.Matches("watch", resource) })
	})
}

func pod(name, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: name, UID: "uid"},
		Spec:       corev1.PodSpec{NodeName: node, ServiceAccountName: "web"},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}}},
	}
}

func namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func policy(name, action string, more map[string]any) *unstructured.Unstructured {
	spec := map[string]any{"action": action, "rules": []any{map[string]any{"from": []any{map[string]any{"source": map[string]any{"namespaces": []any{"a"}}}}}}}
	for k, v := range more {
		spec[k] = v
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
		"metadata": map[string]any{"namespace": "app", "name": name, "annotations": map[string]any{"kubectl.kubernetes.io/last-applied-configuration": "x", "istio.io/dry-run": "true"}},
		"spec":     spec,
	}}
}

// Everything is there at once, and nothing before it is; changes follow.
func TestCluster(t *testing.T) {
	c := newCluster(t, pod("a", "n1"), namespace("app"),
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: "web"}},
		&discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: "web-1"}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
	c.define(authorizations.GroupVersion(), "authorizationpolicies")
	if err := c.dynamic.Tracker().Create(authorizations, policy("p", "ALLOW", nil), "app"); err != nil {
		t.Fatal(err)
	}
	f := c.run("")
	if o, _ := f.Read(); len(o.Pods) > 0 {
		t.Error("objects before Synced")
	}
	synced(t, f)
	o, _ := f.Read()
	if len(o.Pods) != 1 || len(o.Namespaces) != 1 || len(o.Services) != 1 || len(o.EndpointSlices) != 1 || len(o.Nodes) != 1 || len(o.AuthorizationPolicies) != 1 {
		t.Fatalf("objects = %+v", o)
	}
	if p := o.AuthorizationPolicies[0]; len(p.Spec.GetRules()) != 1 || len(p.Annotations) != 1 || p.Annotations["istio.io/dry-run"] != "true" {
		t.Errorf("policy = %v", p)
	}
	for _, s := range f.Status() {
		if !s.Synced || s.Err != "" {
			t.Errorf("status = %+v", s)
		}
	}
	ctx := t.Context()
	watched(t, c.client.Actions, "pods")
	if _, err := c.client.CoreV1().Pods("app").Create(ctx, pod("b", "n2"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, f, "second pod", func(o translate.Objects) bool { return len(o.Pods) == 2 })
	changed := pod("b", "n2")
	changed.Labels = map[string]string{"app": "web"}
	if _, err := c.client.CoreV1().Pods("app").Update(ctx, changed, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, f, "its label", func(o translate.Objects) bool {
		return slices.ContainsFunc(o.Pods, func(p *corev1.Pod) bool { return p.Name == "b" && p.Labels["app"] == "web" })
	})
	if err := c.client.CoreV1().Pods("app").Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, f, "its end", func(o translate.Objects) bool { return len(o.Pods) == 1 && o.Pods[0].Name == "b" })
}

// The agent of a node asks for its own pods and for namespaces, and for nothing else.
func TestNode(t *testing.T) {
	c := newCluster(t, pod("a", "n1"), namespace("app"))
	f := c.run("n1")
	synced(t, f)
	watched(t, c.client.Actions, "pods")
	watched(t, c.client.Actions, "namespaces")
	for _, a := range c.client.Actions() {
		list, ok := a.(clienttesting.ListAction)
		switch {
		case !ok:
		case a.GetResource().Resource == "pods" && list.GetListRestrictions().Fields.String() != "spec.nodeName=n1":
			t.Errorf("pods are listed by %q", list.GetListRestrictions().Fields)
		case a.GetResource().Resource != "pods" && a.GetResource().Resource != "namespaces":
			t.Errorf("%s are listed", a.GetResource().Resource)
		}
	}
	if n := len(c.dynamic.Actions()); n > 0 {
		t.Errorf("%d requests for kinds of Istio", n)
	}
}

// A kind's definition comes, in an old version first, and goes; what went wrong for a
// moment is not believed.
func TestDefinitions(t *testing.T) {
	c := newCluster(t)
	peer := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "security.istio.io/v1beta1", "kind": "PeerAuthentication",
		"metadata": map[string]any{"namespace": "app", "name": "strict"}, "spec": map[string]any{"mtls": map[string]any{"mode": "STRICT"}}}}
	if err := c.dynamic.Tracker().Create(oldPeers, peer, "app"); err != nil {
		t.Fatal(err)
	}
	watches := make(chan *watch.FakeWatcher, 10)
	c.dynamic.PrependWatchReactor("peerauthentications", func(clienttesting.Action) (bool, watch.Interface, error) {
		w := watch.NewFake()
		watches <- w
		return true, w, nil
	})
	f := c.run("")
	synced(t, f) // without any
	c.define(oldPeers.GroupVersion(), "peerauthentications")
	o := await(t, f, "peer authentication", func(o translate.Objects) bool { return len(o.PeerAuthentications) == 1 })
	if mode := o.PeerAuthentications[0].Spec.GetMtls().GetMode().String(); mode != "STRICT" {
		t.Errorf("mode = %s", mode)
	}
	absent := func(kind string) bool {
		return slices.ContainsFunc(f.Status(), func(s Status) bool { return s.Kind == kind && s.Absent })
	}
	if absent("PeerAuthentication") || !absent("AuthorizationPolicy") {
		t.Errorf("status = %+v", f.Status())
	}
	// The definition is deleted: the watch ends, and then there is no such thing.
	first := <-watches
	var lists atomic.Int32
	gone := apierrors.NewNotFound(oldPeers.GroupResource(), "")
	c.dynamic.PrependReactor("list", "peerauthentications", func(clienttesting.Action) (bool, runtime.Object, error) {
		lists.Add(1)
		return true, nil, gone
	})
	c.dynamic.PrependWatchReactor("peerauthentications", clienttesting.DefaultWatchReactor(nil, gone))
	first.Stop()
	eventually(t, "another try", func() bool { return lists.Load() > 3 })
	if o, _ := f.Read(); len(o.PeerAuthentications) != 1 {
		t.Error("an API server that still defines the kind is believed to have none of it")
	}
	c.define(oldPeers.GroupVersion())
	await(t, f, "no peer authentication", func(o translate.Objects) bool { return len(o.PeerAuthentications) == 0 })
	eventually(t, "absence", func() bool { return absent("PeerAuthentication") })
	if p := f.Problems(); len(p) > 0 {
		t.Errorf("problems = %v", p)
	}
}

// What an API server does not answer leaves what was read; it is said, and over when it is.
func TestAway(t *testing.T) {
	c := newCluster(t, pod("a", "n1"), namespace("app"))
	var away atomic.Bool
	c.client.PrependReactor("list", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
		if away.Load() {
			return true, nil, apierrors.NewTooManyRequests("not now", 1)
		}
		return false, nil, nil
	})
	away.Store(true)
	f := c.run("n1")
	eventually(t, "problem", func() bool { return len(f.Problems()) == 2 })
	for _, p := range f.Problems() {
		if !strings.Contains(p.String(), "not now") {
			t.Errorf("problem = %s", p)
		}
	}
	select {
	case <-f.Synced():
		t.Fatal("synced without having read anything")
	default:
	}
	away.Store(false)
	synced(t, f)
	eventually(t, "end of the problem", func() bool { return len(f.Problems()) == 0 })
	for _, line := range []string{"cannot read from the API server", "the API server answers again"} {
		if n := strings.Count(c.log.String(), line); n != 2 {
			t.Errorf("%q is in the log %d times, want once a kind:\n%s", line, n, c.log)
		}
	}
}

// One policy that cannot be read is reported and keeps what it was, or forbids; the others go on.
func TestBadObject(t *testing.T) {
	c := newCluster(t)
	c.define(authorizations.GroupVersion(), "authorizationpolicies")
	for _, p := range []*unstructured.Unstructured{policy("good", "DENY", nil), policy("bad", "DENY", map[string]any{"rules": "none"}), policy("later", "DENY", nil)} {
		if err := c.dynamic.Tracker().Create(authorizations, p, "app"); err != nil {
			t.Fatal(err)
		}
	}
	f := c.run("")
	synced(t, f)
	if o, _ := f.Read(); len(o.AuthorizationPolicies) != 3 {
		t.Errorf("policies = %v", o.AuthorizationPolicies)
	}
	if p := f.Problems(); len(p) != 1 || p[0].Name != "bad" || !strings.Contains(p[0].String(), "AuthorizationPolicy app/bad: cannot be read") {
		t.Errorf("problems = %v", p)
	}
	if n := strings.Count(c.log.String(), "not read as it is"); n != 1 {
		t.Errorf("the log tells of it %d times", n)
	}
	watched(t, c.dynamic.Actions, "authorizationpolicies")
	policies := c.dynamic.Resource(authorizations).Namespace("app")
	if _, err := policies.Update(t.Context(), policy("later", "DENY", map[string]any{"action": 7.5}), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "second problem", func() bool { return len(f.Problems()) == 2 })
	if o, _ := f.Read(); len(o.AuthorizationPolicies) != 3 {
		t.Errorf("policies = %v, want the last that could be read", o.AuthorizationPolicies)
	}
	if err := policies.Delete(t.Context(), "later", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, f, "its end", func(o translate.Objects) bool { return len(o.AuthorizationPolicies) == 2 && len(f.Problems()) == 1 })
	if _, err := policies.Update(t.Context(), policy("bad", "DENY", nil), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, f, "its mending", func(o translate.Objects) bool { return len(o.AuthorizationPolicies) == 2 && len(f.Problems()) == 0 })
}

func TestNewWantsAClient(t *testing.T) {
	if _, err := New(Config{Node: "n"}); !errors.Is(err, errNoClient) {
		t.Errorf("err = %v", err)
	}
	if _, err := New(Config{Node: "n", Client: fake.NewClientset()}); err != nil {
		t.Errorf("a node needs no dynamic client: %v", err)
	}
}

// Contact that is bad without an error is bad, too.
func TestContact(t *testing.T) {
	c := &contact{kind: "Pod", log: slog.New(slog.DiscardHandler)}
	now := time.Now()
	says := func(when string, at time.Time, want string) {
		t.Helper()
		if got := c.status(at).Err; (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", when, got, want)
		}
	}
	says("nothing was tried", now, "")
	answered := c.asks(now)
	says("just asked", now.Add(time.Second), "")
	says("asked long ago", now.Add(2*slow), "not answered")
	answered()
	c.whole(now)
	says("answered", now.Add(time.Minute), "")
	says("then silence", now.Add(silent+time.Minute), "said nothing")
	c.broken(errors.New("refused"))
	says("refused", now, "refused")
	c.whole(now)
	c.exists(false)
	says("a kind that is not there", now.Add(silent+time.Minute), "")
}

// A reflector asks a busy API server for a streamed list again and again, without a
// word. That it cannot stream one is nothing to tell: it is asked for a list then.
func TestBusyIsTold(t *testing.T) {
	yes := true
	for _, tt := range []struct {
		err  error
		told bool
	}{
		{apierrors.NewTooManyRequests("come again", 1), true},
		{syscall.ECONNREFUSED, true},
		{apierrors.NewInvalid(schema.GroupKind{Kind: "ListOptions"}, "", nil), false},
	} {
		c := &contact{kind: "Pod", log: slog.New(slog.DiscardHandler)}
		src := source{watch: func(context.Context, metav1.ListOptions) (watch.Interface, error) { return nil, tt.err }}
		_, _ = src.watched(c)(t.Context(), metav1.ListOptions{SendInitialEvents: &yes})
		if got := c.status(time.Now()).Err; (got != "") != tt.told {
			t.Errorf("%v: the contact says %q", tt.err, got)
		}
	}
}
