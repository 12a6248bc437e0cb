//go:build kube

package kube_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/warren-mesh/warren/e2e/kube"
	"github.com/warren-mesh/warren/e2e/kube/app"
)

// ghost is a pod on a node that does not exist, whose object says whatever the test
// wants: there is no kubelet to correct it.
func ghost(t *testing.T, ns, name, ip string, annotations map[string]string) *corev1.Pod {
	t.Helper()
	ctx := testContext(t)
	node := "ghost-of-" + ns[max(0, len(ns)-40):]
	_, err := mesh.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}, Spec: corev1.NodeSpec{
		Taints: []corev1.Taint{{Key: "e2e/ghost", Effect: corev1.TaintEffectNoSchedule}}}}, metav1.CreateOptions{})
	must(t, err)
	t.Cleanup(func() { _ = mesh.CoreV1().Nodes().Delete(context.Background(), node, metav1.DeleteOptions{}) })
	pod, err := mesh.Create(ctx, kube.PodSpec{Namespace: ns, Name: name, Mutate: func(p *corev1.Pod) { p.Spec.NodeName = node }})
	must(t, err)
	t.Cleanup(func() { bury(t, pod) })
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"annotations": annotations},
		"status": map[string]any{"phase": "Running", "podIP": ip, "podIPs": []any{map[string]any{"ip": ip}},
			"conditions": []any{map[string]any{"type": "Ready", "status": "True"}}},
	})
	must(t, err)
	pod, err = mesh.CoreV1().Pods(ns).Patch(ctx, name, types.MergePatchType, body, metav1.PatchOptions{}, "status")
	must(t, err)
	return pod
}

// bury removes a pod for which there is no kubelet.
func bury(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	zero := int64(0)
	_ = mesh.CoreV1().Pods(pod.Namespace).Delete(context.Background(), pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero}) // it may be gone
}

// TestTwoPodsOneIP: the object of another pod claims the address of a pod. One that is
// not in the mesh takes nothing; one that says it is cannot be had by anybody, and the
// address is the pod's own again when it is gone. Nobody speaks to the wrong one.
func TestTwoPodsOneIP(t *testing.T) {
	e := newEnds(t)
	awaitCaptured(t, e.a, e.near, e.far)
	ctx := testContext(t)
	kept := []flow{{"kept", "a", app.Load{Name: "kept", URL: url("tcp", e.far, app.EchoPort), Workers: 5, Interval: "100ms", Timeout: "20s"}}}
	must(t, mesh.StartLoad(ctx, e.ns, "a", kept[0].load))
	awaitLive(t, e.ns, "a", "kept", 5)
	plain := ghost(t, e.ns, "plain", e.far.Status.PodIP, nil)
	for _, pod := range []*corev1.Pod{plain, e.far} {
		must(t, kube.Until(ctx, time.Minute, pod.Name+" has an Event that says so", func(ctx context.Context) error {
			return mesh.EventWith(ctx, pod.Namespace, pod.Name, "MeshProblem", e.far.Status.PodIP+" is also that of pod")
		}))
	}
	for range 5 {
		mustCall(t, e.a, url("http", e.far, app.HTTPPort))
	}
	began := time.Now().Add(-time.Second)
	mustCall(t, e.a, url("http", e.far, app.HTTPPort))
	must(t, mesh.WaitMutual(ctx, began, e.a, e.far))
	bury(t, plain)

	other := namespace(t, in)
	claims := ghost(t, other, "claims", e.far.Status.PodIP, map[string]string{"ambient.istio.io/redirection": "enabled"})
	seen := 0
	must(t, kube.Until(ctx, 30*time.Second, "calls while two pods of the mesh have one address", func(ctx context.Context) error {
		r, err := mesh.Call(ctx, e.ns, "a", url("http", e.far, app.HTTPPort))
		switch {
		case err != nil:
			return err
		case r.OK && r.Answer.Pod != "far":
			t.Errorf("answered by %s", r.Answer.Pod)
		}
		if seen++; seen < 10 {
			return fmt.Errorf("%d calls", seen)
		}
		return nil
	}))
	mustCall(t, e.a, url("http", e.near, app.HTTPPort)) // others are not concerned
	awaitCaptured(t, e.far)
	bury(t, claims)
	began = time.Now().Add(-time.Second)
	mustCall(t, e.a, url("http", e.far, app.HTTPPort))
	must(t, mesh.WaitMutual(ctx, began, e.a, e.far))
	awaitProgress(t, e.ns, kept)
	unharmed(t, e.ns, kept, "two pods with one address")
}

// TestLyingPod: the object of a running pod claims the addresses of others until
// kubelet sets it right. The agent goes by what the pod's namespace has.
func TestLyingPod(t *testing.T) {
	e := newEnds(t)
	awaitCaptured(t, e.a, e.near, e.far)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	lie := fmt.Appendf(nil, `{"status":{"podIPs":[{"ip":%q},{"ip":"fd00:dead::1"}],"podIP":%q}}`, e.near.Status.PodIP, e.near.Status.PodIP)
	var wg sync.WaitGroup
	wg.Go(func() { // kubelet corrects it again and again
		for ctx.Err() == nil {
			_, _ = mesh.CoreV1().Pods(e.ns).Patch(ctx, "outside", types.MergePatchType, lie, metav1.PatchOptions{}, "status") // the next one may succeed
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond): // between two lies
			}
		}
	})
	must(t, kube.Until(ctx, 30*time.Second, "the lie is believed", func(ctx context.Context) error {
		now, err := mesh.CoreV1().Pods(e.ns).Get(ctx, "outside", metav1.GetOptions{})
		if err == nil && now.Status.PodIP != e.near.Status.PodIP {
			err = fmt.Errorf("it says %s", now.Status.PodIP)
		}
		return err
	}))
	must(t, mesh.Label(ctx, e.ns, "outside", in)) // it is looked for by what its object says
	for _, p := range []*corev1.Pod{e.near, e.far} {
		mustCall(t, e.a, url("http", p, app.HTTPPort))
	}
	st, err := mesh.PodStatus(ctx, e.outside)
	if err == nil && slices.Contains(st.IPs, e.near.Status.PodIP) {
		t.Errorf("the agent takes the lie for its address: %+v", st)
	}
	awaitCaptured(t, e.near)
	cancel()
	wg.Wait()
	awaitCaptured(t, e.outside, e.near)
	began := time.Now().Add(-time.Second)
	mustCall(t, e.outside, url("http", e.far, app.HTTPPort))
	must(t, mesh.WaitMutual(testContext(t), began, e.outside, e.far))
}

// TestOddLabels: objects with labels that mean nothing put nobody in the mesh
// and nobody out.
func TestOddLabels(t *testing.T) {
	ns := namespace(t, in)
	p := run(t,
		kube.PodSpec{Namespace: ns, Name: "odd", Node: mesh.Nodes[0], Labels: map[string]string{"istio.io/dataplane-mode": "perhaps"}},
		kube.PodSpec{Namespace: ns, Name: "empty", Node: mesh.Nodes[0], Labels: map[string]string{"istio.io/dataplane-mode": ""}},
		kube.PodSpec{Namespace: ns, Name: "out", Node: mesh.Nodes[0], Labels: out})
	awaitCaptured(t, p[0], p[1])
	awaitLeft(t, p[2])
}
