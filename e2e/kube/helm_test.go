//go:build kube

package kube_test

import (
	"context"
	"fmt"
	"os/exec"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/warren-mesh/warren/e2e/kube"
	"github.com/warren-mesh/warren/e2e/kube/app"
)

// TestHelm: helm itself installs the chart, upgrades the release under load, and
// uninstalls it. Pods in the mesh keep their network, and nothing of the release is left.
func TestHelm(t *testing.T) {
	if renderer.Helm == "" {
		t.Fatal("E2E_HELM is not set: name helm, which `make helm` builds, as `make e2e-kube` does")
	}
	ctx := testContext(t)
	hosts := []*kube.Node{host(t, mesh.Nodes[0]), host(t, mesh.Nodes[1])}
	e := newEnds(t)
	back := sync.OnceFunc(func() { must(t, mesh.Install(context.Background())) })
	t.Cleanup(back)
	must(t, mesh.Uninstall(ctx))
	_, err := mesh.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: kube.SystemNamespace, Labels: map[string]string{"pod-security.kubernetes.io/enforce": "privileged"}}}, metav1.CreateOptions{})
	must(t, err)

	helm(t, "installed", renderer.Release("install", "namespace.create=false")...)
	began := time.Now().Add(-time.Second)
	awaitCaptured(t, e.a, e.near, e.far)
	mustCall(t, e.a, url("http", e.far, app.HTTPPort))
	must(t, mesh.WaitMutual(ctx, began, e.a, e.far))

	kept := []flow{{"kept", "a", app.Load{Name: "kept", URL: url("tcp", e.far, app.EchoPort), Workers: 10, Interval: "100ms", Timeout: "20s"}}}
	must(t, mesh.StartLoad(ctx, e.ns, "a", kept[0].load))
	awaitLive(t, e.ns, "a", "kept", 10)
	helm(t, "upgraded", renderer.Release("upgrade", "namespace.create=false", "nodeagent.logLevel=debug", "controlPlane.logLevel=debug")...)
	must(t, mesh.WaitUp(ctx, 3*time.Minute))
	awaitCaptured(t, e.a, e.near, e.far)
	awaitProgress(t, e.ns, kept)
	unharmed(t, e.ns, kept, "helm upgrade")

	helm(t, "uninstalled", "uninstall", kube.HelmRelease, "--namespace", kube.SystemNamespace, "--wait", "--timeout", "5m")
	left := mesh.Objects.Without(mesh.Objects.Named("Namespace"))
	must(t, kube.Until(ctx, 2*time.Minute, "nothing of the release is there", func(ctx context.Context) error { return mesh.Gone(ctx, left) }))
	hooks, err := renderer.Hooks(ctx)
	must(t, err)
	must(t, mesh.Gone(ctx, hooks))
	stays(t, e, "by helm uninstall", hosts)
	awaitUnmarked(t, e)
	must(t, mesh.Uninstall(ctx)) // the namespace, which is ours
	back()
}

// helm runs it.
func helm(t *testing.T, done string, args ...string) {
	t.Helper()
	began := time.Now()
	text, err := exec.CommandContext(testContext(t), renderer.Helm, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("helm %q: %v\n%s", args, err, text)
	}
	fmt.Printf("measure: helm %s the release in %s\n", done, time.Since(began).Round(100*time.Millisecond))
}
