//go:build kube

package kube_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/warren-mesh/warren/e2e/kube"
)

// mesh is installed once; a test that takes it away brings it back.
var (
	mesh     *kube.Mesh
	renderer *kube.Renderer
)

// leftOut are the tests that could not run for want of a command.
var leftOut []string

// command is what an environment variable says to do with the cluster. The test fails
// where it is not set, or is left out where that is allowed.
func command(t *testing.T, variable, does string) func(ctx context.Context, args ...string) error {
	t.Helper()
	line := os.Getenv(variable)
	if line == "" {
		why := fmt.Sprintf("%s is not set: name a command that %s; how depends on the cluster", variable, does)
		if os.Getenv("E2E_PARTIAL") != "yes" {
			t.Fatal(why + ". E2E_PARTIAL=yes leaves such tests out")
		}
		leftOut = append(leftOut, t.Name()+": "+why)
		t.Skip(why)
	}
	return func(ctx context.Context, args ...string) error {
		text, err := exec.CommandContext(ctx, "sh", append([]string{"-c", line + ` "$@"`, line}, args...)...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s: %s %s: %w: %s", variable, line, strings.Join(args, " "), err, text)
		}
		return err
	}
}

func TestMain(m *testing.M) {
	if err := setUp(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "e2e/kube:", err)
		os.Exit(1)
	}
	code := m.Run()
	for _, l := range leftOut {
		fmt.Println("e2e/kube: left out, because of E2E_PARTIAL:", l)
	}
	if err := tearDown(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "e2e/kube:", err)
		code = 1
	}
	os.Exit(code)
}

func setUp(ctx context.Context) error {
	c, err := kube.Connect(ctx)
	if err != nil {
		return err
	}
	if kube.AppImage() == "" {
		return fmt.Errorf("E2E_APP_IMAGE is not set: name the image with the tests' application, as `make e2e-kube` does")
	}
	if renderer, err = kube.NewRenderer(); err != nil {
		return err
	}
	objects, err := kube.Manifests()
	if err == nil && objects == nil {
		objects, err = renderer.Chart(ctx)
	}
	if err != nil {
		return err
	}
	mesh = &kube.Mesh{Cluster: c, Objects: objects}
	if err := removeNamespaces(ctx); err != nil {
		return err
	}
	if err := c.ForeignKinds(ctx); err != nil {
		return err
	}
	began := time.Now()
	if err := mesh.Install(ctx); err != nil {
		return err
	}
	fmt.Printf("measure: the mesh was installed and ready after %s\n", time.Since(began).Round(100*time.Millisecond))
	return nil
}

func tearDown(ctx context.Context) error {
	if os.Getenv("E2E_KEEP") != "" {
		return nil
	}
	if err := removeNamespaces(ctx); err != nil {
		return err
	}
	return mesh.Uninstall(ctx)
}

// testLabel marks the namespaces that tests made.
const testLabel = "warren-e2e"

func removeNamespaces(ctx context.Context) error {
	for {
		l, err := mesh.CoreV1().Namespaces().List(ctx, metav1.ListOptions{LabelSelector: testLabel})
		if err != nil || len(l.Items) == 0 {
			return err
		}
		for _, n := range l.Items {
			_ = mesh.CoreV1().Namespaces().Delete(ctx, n.Name, metav1.DeleteOptions{}) // the next list tells
		}
		time.Sleep(500 * time.Millisecond) // a poll's interval
	}
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// in are the labels of a namespace or pod in the mesh; out those of a pod that is not.
var (
	in  = map[string]string{"istio.io/dataplane-mode": "ambient"}
	out = map[string]string{"istio.io/dataplane-mode": "none"}
)

// namespace makes a namespace for the test alone.
func namespace(t *testing.T, labels map[string]string) string {
	t.Helper()
	ctx := testContext(t)
	set := map[string]string{testLabel: "yes"}
	maps.Copy(set, labels)
	base := strings.ToLower(strings.NewReplacer("/", "-", "_", "-", ",", "").Replace(t.Name()))
	ns, err := mesh.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: strings.TrimRight(base[:min(len(base), 40)], "-") + "-", Labels: set}}, metav1.CreateOptions{})
	must(t, err)
	t.Cleanup(func() {
		if os.Getenv("E2E_KEEP") == "" || !t.Failed() {
			_ = mesh.CoreV1().Namespaces().Delete(context.Background(), ns.Name, metav1.DeleteOptions{}) // and at the next start
		}
	})
	return ns.Name
}

// run starts pods and waits until all are ready.
func run(t *testing.T, specs ...kube.PodSpec) []*corev1.Pod {
	t.Helper()
	ctx := testContext(t)
	var pods []*corev1.Pod
	for _, s := range specs {
		p, err := mesh.Create(ctx, s)
		must(t, err)
		pods = append(pods, p)
	}
	for i, p := range pods {
		ready, err := mesh.WaitReady(ctx, p.Namespace, p.Name, 2*time.Minute)
		must(t, err)
		pods[i] = ready
	}
	return pods
}

// awaitCaptured waits until the agent and the proxy have the pod.
func awaitCaptured(t *testing.T, pods ...*corev1.Pod) {
	t.Helper()
	ctx := testContext(t)
	for _, p := range pods {
		must(t, kube.Until(ctx, time.Minute, p.Name+" is captured", func(ctx context.Context) error {
			st, err := mesh.PodStatus(ctx, p)
			switch {
			case err != nil:
				return err
			case st.State != "enrolled" || st.Redirection != "verified" || len(st.Listeners) == 0 || st.Problem != "":
				return fmt.Errorf("%+v", st)
			}
			return nil
		}))
	}
}

// awaitLeft waits until the agent has let the pod go.
func awaitLeft(t *testing.T, pods ...*corev1.Pod) {
	t.Helper()
	ctx := testContext(t)
	for _, p := range pods {
		must(t, kube.Until(ctx, time.Minute, p.Name+" has left", func(ctx context.Context) error {
			st, err := mesh.NodeStatus(ctx, p.Spec.NodeName)
			if err != nil {
				return err
			}
			for _, s := range st.Pods {
				if s.UID == string(p.UID) && s.State != "left" && s.State != "absent" {
					return fmt.Errorf("%+v", s)
				}
			}
			return nil
		}))
	}
}

// url is an address of a pod.
func url(scheme string, p *corev1.Pod, port int) string {
	return fmt.Sprintf("%s://%s:%d", scheme, p.Status.PodIP, port)
}

// mustCall makes calls until one succeeds: policies and endpoints take a moment.
func mustCall(t *testing.T, from *corev1.Pod, target string) {
	t.Helper()
	must(t, kube.Until(testContext(t), 45*time.Second, from.Name+" reaches "+target, func(ctx context.Context) error {
		r, err := mesh.Call(ctx, from.Namespace, from.Name, target)
		if err == nil && !r.OK {
			err = fmt.Errorf("%s", r.Err)
		}
		return err
	}))
}

// mustNotCall makes calls until one fails, and then some more that all must.
func mustNotCall(t *testing.T, from *corev1.Pod, target string) {
	t.Helper()
	refused := func(ctx context.Context) error {
		r, err := mesh.Call(ctx, from.Namespace, from.Name, target)
		if err == nil && r.OK {
			err = fmt.Errorf("it was carried")
		}
		return err
	}
	ctx := testContext(t)
	must(t, kube.Until(ctx, 45*time.Second, from.Name+" is kept from "+target, refused))
	for range 5 {
		must(t, refused(ctx))
	}
}
