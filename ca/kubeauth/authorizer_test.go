package kubeauth

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
)

// world is a source of news.
type world struct {
	mu      sync.Mutex
	cluster Cluster
	changed chan struct{}
}

func newWorld(c Cluster) *world { return &world{cluster: c, changed: make(chan struct{})} }

func (w *world) Read() (Cluster, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cluster, w.changed
}

func (w *world) set(c Cluster) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cluster = c
	close(w.changed)
	w.changed = make(chan struct{})
}

var (
	alice   = spiffeid.RequireFromPath(td, "/ns/app/sa/alice")
	proxyID = spiffeid.RequireFromPath(td, "/ns/warren-system/sa/ztunnel")
	proxyN1 = Caller{Node: "n1", Identity: proxyID, Pod: "warren-system/ztunnel-x", PodUID: "uid-x"}
)

func pod(change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "warren-system", Name: "ztunnel-x", UID: types.UID("uid-x")},
		Spec:       corev1.PodSpec{ServiceAccountName: "ztunnel", NodeName: "n1"},
	}
	if change != nil {
		change(p)
	}
	return p
}

// aliceOn is a cluster with one pod and alice on a node.
func aliceOn(node string, p *corev1.Pod) Cluster {
	var pods []*corev1.Pod
	if p != nil {
		pods = append(pods, p)
	}
	return Index(pods, func(n string, id spiffeid.ID) bool { return n == node && id == alice })
}

func authorizer(t testing.TB, w Source) *Authorizer {
	t.Helper()
	a, err := New(Config{Client: fake.NewClientset(), TrustDomain: td})
	if err != nil {
		t.Fatal(err)
	}
	return a.Authorizer(w)
}

func TestAllowed(t *testing.T) {
	but := func(change func(*Caller)) Caller {
		c := proxyN1
		change(&c)
		return c
	}
	for name, c := range map[string]struct {
		cluster Cluster
		caller  Caller
		id      spiffeid.ID
		err     string
		waits   bool
	}{
		"pod on its node": {aliceOn("n1", pod(nil)), proxyN1, alice, "", false},
		"itself":          {aliceOn("n2", pod(nil)), proxyN1, proxyID, "", false},
		"token without a node, which is that of the pod": {aliceOn("n1", pod(nil)), but(func(c *Caller) { c.Node = "" }), alice, "", false},
		"Istio's": {aliceOn("n1", pod(func(p *corev1.Pod) { p.Namespace = "istio-system" })),
			Caller{Identity: spiffeid.RequireFromPath(td, "/ns/istio-system/sa/ztunnel"), Pod: "istio-system/ztunnel-x", PodUID: "uid-x"}, alice, "", false},

		"pod on another node":                  {aliceOn("n2", pod(nil)), proxyN1, alice, "is on node n1", true},
		"token without a node, pod on another": {aliceOn("n2", pod(nil)), but(func(c *Caller) { c.Node = "" }), alice, "is on node n1", true},
		"nobody's":                             {aliceOn("n1", pod(nil)), proxyN1, spiffeid.RequireFromPath(td, "/ns/app/sa/bob"), "is on node n1", true},
		"other trust domain":                   {aliceOn("n1", pod(nil)), proxyN1, spiffeid.RequireFromString("spiffe://other.test/ns/app/sa/alice"), "the trust domain is td.test", false},
		"not trusted":                          {aliceOn("n1", pod(nil)), but(func(c *Caller) { c.Identity = alice }), alice, "app/alice is not the account of a node's proxy", false},
		"same name elsewhere":                  {aliceOn("n1", pod(nil)), but(func(c *Caller) { c.Identity = spiffeid.RequireFromPath(td, "/ns/app/sa/ztunnel") }), alice, "not the account", false},
		"only a node":                          {aliceOn("n1", pod(nil)), Caller{Node: "n1"}, alice, "not the account", false},
		"not bound to a pod":                   {aliceOn("n1", pod(nil)), but(func(c *Caller) { c.Pod, c.PodUID = "", "" }), alice, "not bound to a pod", false},
		"bound to one without a UID":           {aliceOn("n1", pod(func(p *corev1.Pod) { p.UID = "" })), but(func(c *Caller) { c.PodUID = "" }), alice, "not bound to a pod", false},
		"unknown pod":                          {aliceOn("n1", nil), proxyN1, alice, "ztunnel-x is not known", true},
		"another pod of that name":             {aliceOn("n1", pod(func(p *corev1.Pod) { p.UID = "uid-y" })), proxyN1, alice, `has UID "uid-y"`, true},
		"of another account":                   {aliceOn("n1", pod(func(p *corev1.Pod) { p.Spec.ServiceAccountName = "" })), proxyN1, alice, "service account default", false},
		"finished":                             {aliceOn("n1", pod(func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })), proxyN1, alice, "has finished", false},
		"on no node yet":                       {aliceOn("", pod(func(p *corev1.Pod) { p.Spec.NodeName = "" })), but(func(c *Caller) { c.Node = "" }), alice, "on no node", true},
		"moved":                                {aliceOn("n1", pod(nil)), but(func(c *Caller) { c.Node = "n2" }), alice, "the token names n2", false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				err := authorizer(t, newWorld(c.cluster)).Allowed(c.caller, c.id)
				if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) || status.Code(err) == codes.Unavailable {
					t.Errorf("%v, want %q", err, c.err)
				}
				if waited := time.Since(start); waited != 0 && !c.waits || c.waits && waited != patience {
					t.Errorf("took %s", waited)
				}
			})
		})
	}
}

// News that are on their way are waited for, whichever comes last.
func TestNewsAreAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(nil)
		done := make(chan error, 1)
		go func() { done <- authorizer(t, w).Allowed(proxyN1, alice) }()
		for _, c := range []Cluster{aliceOn("", nil), aliceOn("", pod(func(p *corev1.Pod) { p.UID = "before" })), aliceOn("", pod(nil)), aliceOn("n2", pod(nil)), aliceOn("n1", pod(nil))} {
			synctest.Wait()
			if len(done) > 0 {
				t.Fatalf("too early: %v", <-done)
			}
			time.Sleep(patience / 10)
			w.set(c)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}

		// Bad news end it.
		w.set(aliceOn("n1", nil))
		go func() { done <- authorizer(t, w).Allowed(proxyN1, alice) }()
		synctest.Wait()
		start := time.Now()
		w.set(aliceOn("n1", pod(func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })))
		if err := <-done; err == nil || !strings.Contains(err.Error(), "has finished") || time.Since(start) != 0 {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}

// Before the pods were read nothing can be said of the caller.
func TestNotReadYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		err := authorizer(t, newWorld(nil)).Allowed(proxyN1, alice)
		if st, ok := status.FromError(err); !ok || st.Code() != codes.Unavailable || strings.Contains(st.Message(), "pods") || !strings.Contains(err.Error(), "have not been read") {
			t.Errorf("%v", err)
		}
	})
}

func TestWaitingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := authorizer(t, newWorld(aliceOn("n2", pod(nil))))
		var all sync.WaitGroup
		var busy atomic.Int64
		for range maxPatient + 10 {
			all.Go(func() {
				if status.Code(a.Allowed(proxyN1, alice)) == codes.Unavailable {
					busy.Add(1)
				}
			})
		}
		all.Wait()
		if busy.Load() != 10 || len(a.waiting) != 0 {
			t.Errorf("%d refused, %d slots left behind", busy.Load(), len(a.waiting))
		}
	})
}
