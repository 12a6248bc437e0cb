//go:build kube

package kube_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/warren-mesh/warren/e2e/kube"
	"github.com/warren-mesh/warren/e2e/kube/app"
)

// leaving is a way to take the mesh away.
type leaving struct {
	name string
	// first are objects by kind, or kind/name, that are deleted before all else, each
	// waited for.
	first []string
	// all deletes the rest; nil: the manifests turned round.
	all func(context.Context) error
	// unmarked: the agent can take its annotation off the pods. It cannot where its
	// account or its rights go before it has ended: Kubernetes takes those at once.
	unmarked bool
}

// waysToLeave are in every order that people use, and in those that go wrong.
func waysToLeave() []leaving {
	agent, proxy, control := "DaemonSet/"+kube.AgentDaemonSet, "DaemonSet/"+kube.ProxyDaemonSet, "Deployment/"+kube.ControlPlane
	return []leaving{
		{name: "the agent first", first: []string{agent}, unmarked: true},
		{name: "the proxy first", first: []string{proxy, agent}, unmarked: true},
		{name: "the control plane first", first: []string{control, agent, proxy}, unmarked: true},
		{name: "the proxy and the control plane long before the agent", first: []string{proxy, control}},
		{name: "all at once", all: func(ctx context.Context) error { return mesh.DeleteNow(ctx, mesh.Objects) }},
		{name: "as helm uninstall does", all: helmUninstall, unmarked: true},
		{name: "as helm uninstall does without hooks", all: func(ctx context.Context) error { return mesh.DeleteNow(ctx, mesh.Objects.AsHelmUninstalls()) }},
		{name: "what the agent may do first", first: []string{"ClusterRoleBinding", "ClusterRole"}},
		{name: "the namespace first", first: []string{"Namespace"}},
	}
}

// helmUninstall runs the chart's hooks, each to its end, before it deletes.
func helmUninstall(ctx context.Context) error {
	hooks, err := renderer.Hooks(ctx)
	if err != nil {
		return err
	}
	for _, h := range hooks {
		if h.GetAnnotations()["helm.sh/hook"] != "pre-delete" {
			return fmt.Errorf("%s %s is a hook of another time: %v", h.GetKind(), h.GetName(), h.GetAnnotations())
		}
	}
	if err := mesh.Apply(ctx, hooks); err != nil {
		return err
	}
	began := time.Now()
	for _, h := range hooks.Of("Job") {
		if err := mesh.WaitJob(ctx, h.GetNamespace(), h.GetName(), 4*time.Minute); err != nil {
			return err
		}
	}
	fmt.Printf("measure: before helm deletes, its hook took %s\n", time.Since(began).Round(10*time.Millisecond))
	if err := mesh.DeleteNow(ctx, hooks.Reversed()); err != nil {
		return err
	}
	return mesh.DeleteNow(ctx, mesh.Objects.AsHelmUninstalls())
}

// TestLeave uninstalls the mesh in several orders under the feet of pods in it: they
// keep their network, connections between pods outside go on, new pods start, and
// nothing of ours is left on the nodes. Then it is installed again and takes the same
// pods back.
func TestLeave(t *testing.T) {
	hosts := []*kube.Node{host(t, mesh.Nodes[0]), host(t, mesh.Nodes[1])}
	for _, way := range waysToLeave() {
		t.Run(way.name, func(t *testing.T) {
			ctx := testContext(t)
			e := newEnds(t)
			awaitCaptured(t, e.a, e.near, e.far)
			back := sync.OnceFunc(func() { must(t, mesh.Install(context.Background())) })
			t.Cleanup(back)
			for _, what := range way.first {
				some := mesh.Objects.Named(what)
				if len(some) == 0 {
					t.Fatalf("the manifests have no %s", what)
				}
				must(t, mesh.Delete(ctx, some))
				must(t, kube.Until(ctx, 2*time.Minute, what+" is gone", func(ctx context.Context) error { return mesh.Gone(ctx, some) }))
			}
			if way.all != nil {
				must(t, way.all(ctx))
			}
			must(t, mesh.Uninstall(ctx))
			stays(t, e, way.name, hosts)
			if way.unmarked {
				awaitUnmarked(t, e)
			}
			back()
			began := time.Now().Add(-time.Second)
			awaitCaptured(t, e.a, e.near, e.far)
			mustCall(t, e.a, url("http", e.far, app.HTTPPort))
			must(t, mesh.WaitMutual(ctx, began, e.a, e.far))
		})
	}
}

// stays checks what must be so when the mesh is gone.
func stays(t *testing.T, e ends, what string, hosts []*kube.Node) {
	t.Helper()
	for _, h := range hosts {
		must(t, kube.Until(testContext(t), time.Minute, "the node is clean", h.Clean))
	}
	for _, from := range []*corev1.Pod{e.a, e.near, e.far, e.outside} {
		for _, to := range []*corev1.Pod{e.a, e.far, e.outsideFar} {
			mustCall(t, from, url("http", to, app.HTTPPort))
		}
	}
	ctx := testContext(t)
	began := time.Now()
	fresh := run(t, kube.PodSpec{Namespace: e.ns, Name: fmt.Sprintf("fresh-%d", began.UnixNano()), Account: "a", Node: mesh.Nodes[0]})[0]
	mustCall(t, fresh, url("http", e.far, app.HTTPPort))
	fmt.Printf("measure: left, %s: a new pod was ready after %s\n", what, time.Since(began).Round(10*time.Millisecond))
	must(t, mesh.CoreV1().Pods(e.ns).Delete(ctx, fresh.Name, metav1.DeleteOptions{}))
}

func awaitUnmarked(t *testing.T, e ends) {
	t.Helper()
	ctx := testContext(t)
	must(t, kube.Until(ctx, 30*time.Second, "no pod is annotated", func(ctx context.Context) error {
		l, err := mesh.CoreV1().Pods(e.ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, p := range l.Items {
			if v := p.Annotations["ambient.istio.io/redirection"]; v != "" {
				return fmt.Errorf("%s has ambient.istio.io/redirection=%s", p.Name, v)
			}
		}
		return nil
	}))
}
