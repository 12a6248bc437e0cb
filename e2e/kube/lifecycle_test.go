//go:build kube

package kube_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/warren-mesh/warren/e2e/kube"
	"github.com/warren-mesh/warren/e2e/kube/app"
)

// TestStatefulSet: a pod that comes back under its name, with another address and
// UID, is reached and captured as before.
func TestStatefulSet(t *testing.T) {
	e := newEnds(t)
	ctx := testContext(t)
	service(t, e.ns, "db", map[string]string{"app": "db"}, true)
	pod := kube.PodSpec{Namespace: e.ns, Name: "db", Node: mesh.Nodes[1]}.Pod()
	must(t, mesh.Account(ctx, e.ns, "db"))
	one := int32(1)
	_, err := mesh.AppsV1().StatefulSets(e.ns).Create(ctx, &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: "db"},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &one, ServiceName: "db", Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels}, Spec: pod.Spec},
		},
	}, metav1.CreateOptions{})
	must(t, err)
	var last *corev1.Pod
	for range 3 {
		var now *corev1.Pod
		must(t, kube.Until(ctx, 2*time.Minute, "a new db-0", func(ctx context.Context) (err error) {
			now, err = mesh.CoreV1().Pods(e.ns).Get(ctx, "db-0", metav1.GetOptions{})
			if err == nil && (!kube.PodReady(now) || last != nil && last.UID == now.UID) {
				err = fmt.Errorf("it is %s", now.Status.Phase)
			}
			return err
		}))
		began := time.Now().Add(-time.Second)
		awaitCaptured(t, now)
		mustCall(t, e.a, url("http", now, app.HTTPPort))
		must(t, mesh.WaitMutual(ctx, began, e.a, now))
		last = now
		must(t, mesh.CoreV1().Pods(e.ns).Delete(ctx, "db-0", metav1.DeleteOptions{}))
	}
}

// TestJob: it calls out, ends, and is out of the mesh then.
func TestJob(t *testing.T) {
	e := newEnds(t)
	ctx := testContext(t)
	pod := kube.PodSpec{Namespace: e.ns, Name: "job", Node: mesh.Nodes[0]}.Pod()
	must(t, mesh.Account(ctx, e.ns, "job"))
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	pod.Spec.Containers[0].Command = []string{kube.AppPath, "once", url("http", e.far, app.HTTPPort), "60"}
	began := time.Now().Add(-time.Second)
	_, err := mesh.BatchV1().Jobs(e.ns).Create(ctx, &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: "job"},
		Spec:       batchv1.JobSpec{Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels}, Spec: pod.Spec}},
	}, metav1.CreateOptions{})
	must(t, err)
	must(t, kube.Until(ctx, 2*time.Minute, "the job is done", func(ctx context.Context) error {
		j, err := mesh.BatchV1().Jobs(e.ns).Get(ctx, "job", metav1.GetOptions{})
		if err == nil && j.Status.Succeeded == 0 {
			err = fmt.Errorf("%+v", j.Status)
		}
		return err
	}))
	l, err := mesh.CoreV1().Pods(e.ns).List(ctx, metav1.ListOptions{LabelSelector: "app=job"})
	must(t, err)
	done := &l.Items[0]
	must(t, mesh.WaitMutual(ctx, began, done, e.far))
	awaitLeft(t, done)
	must(t, kube.Until(ctx, time.Minute, "the annotation goes", func(ctx context.Context) error {
		now, err := mesh.CoreV1().Pods(e.ns).Get(ctx, done.Name, metav1.GetOptions{})
		if err == nil && now.Annotations["ambient.istio.io/redirection"] != "" {
			err = fmt.Errorf("%v", now.Annotations)
		}
		return err
	}))
}

// TestLabelLive: a namespace's label takes its running pods in and out.
func TestLabelLive(t *testing.T) {
	ns := namespace(t, nil)
	p := run(t, kube.PodSpec{Namespace: ns, Name: "a", Node: mesh.Nodes[0]}, kube.PodSpec{Namespace: ns, Name: "b", Node: mesh.Nodes[1]})
	ctx := testContext(t)
	for range 3 {
		must(t, mesh.Label(ctx, ns, "", in))
		awaitCaptured(t, p...)
		began := time.Now().Add(-time.Second)
		mustCall(t, p[0], url("http", p[1], app.HTTPPort))
		must(t, mesh.WaitMutual(ctx, began, p[0], p[1]))
		must(t, mesh.Label(ctx, ns, "", map[string]string{"istio.io/dataplane-mode": ""}))
		awaitLeft(t, p...)
		mustCall(t, p[0], url("http", p[1], app.HTTPPort))
	}
	must(t, mesh.Label(ctx, ns, "a", in)) // the pod's own label
	awaitCaptured(t, p[0])
	awaitLeft(t, p[1])
}

// TestLabelUnderLoad: enrolling and removing a pod breaks none of the connections
// that are alive.
func TestLabelUnderLoad(t *testing.T) {
	cycles := 50
	if v := os.Getenv("E2E_CYCLES"); v != "" {
		n, err := strconv.Atoi(v)
		must(t, err)
		cycles = n
	}
	ns := namespace(t, nil)
	p := run(t, kube.PodSpec{Namespace: ns, Name: "a", Node: mesh.Nodes[0]}, kube.PodSpec{Namespace: ns, Name: "b", Node: mesh.Nodes[1]})
	all := []flow{
		{"kept", "a", app.Load{Name: "kept", URL: url("tcp", p[1], app.EchoPort), Workers: 200, Interval: "500ms", Timeout: "30s"}},
		{"new", "a", app.Load{Name: "new", URL: url("http", p[1], app.HTTPPort), Workers: 4, Interval: "100ms", Timeout: "30s"}},
	}
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Minute)
	defer cancel()
	for _, f := range all {
		must(t, mesh.StartLoad(ctx, ns, f.pod, f.load))
	}
	awaitLive(t, ns, "a", "kept", 200)
	began := time.Now()
	for range cycles {
		must(t, mesh.Label(ctx, ns, "", in))
		awaitCaptured(t, p...)
		must(t, mesh.Label(ctx, ns, "", map[string]string{"istio.io/dataplane-mode": ""}))
		awaitLeft(t, p...)
	}
	took := time.Since(began).Round(time.Second)
	awaitProgress(t, ns, all) // every connection is used once more
	for _, f := range all {
		s, err := mesh.StopLoad(ctx, ns, f.pod, f.load.Name)
		must(t, err)
		fmt.Printf("measure: %d times into the mesh and out in %s, %s connections: %d requests, %d failed %v\n", cycles, took, f.name, s.Sent, s.Failed, s.Errors)
		if s.Failed > 0 {
			t.Errorf("%s connections: %+v", f.name, s)
		}
	}
}

// awaitLive waits until a load keeps so many connections.
func awaitLive(t *testing.T, ns, pod, load string, want int) {
	t.Helper()
	must(t, kube.Until(testContext(t), time.Minute, fmt.Sprintf("%d connections", want), func(ctx context.Context) error {
		s, err := mesh.LookLoad(ctx, ns, pod, load)
		if err == nil && (s.Live < want || s.Sent < want) {
			err = fmt.Errorf("%d, and %d requests", s.Live, s.Sent)
		}
		return err
	}))
}

// TestPostStart: a pod whose hook calls out starts while there is no control plane;
// kubelet publishes no address before the hook's end.
func TestPostStart(t *testing.T) {
	e := newEnds(t)
	mustCall(t, e.a, url("http", e.far, app.HTTPPort))
	ctx := testContext(t)
	must(t, mesh.Scale(ctx, 0))
	t.Cleanup(func() {
		must(t, mesh.Scale(context.Background(), 1))
		must(t, mesh.WaitUp(context.Background(), 3*time.Minute))
	})
	for _, to := range []struct {
		name string
		pod  *corev1.Pod
	}{{"mesh", e.far}, {"plain", e.outsideFar}} {
		began := time.Now()
		run(t, kube.PodSpec{Namespace: e.ns, Name: "hook-" + to.name, Account: "a", Node: mesh.Nodes[0], Mutate: func(p *corev1.Pod) {
			p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{
				Command: []string{kube.AppPath, "once", url("http", to.pod, app.HTTPPort), "60"}}}}
		}})
		fmt.Printf("measure: a pod whose hook calls a pod (%s) was ready after %s, with no control plane\n", to.name, time.Since(began).Round(time.Millisecond))
	}
}

// TestBadAnnotations: they are told as an Event and in the status, and the pod is in
// the mesh on the safe side.
func TestBadAnnotations(t *testing.T) {
	ns := namespace(t, in)
	p := run(t, kube.PodSpec{Namespace: ns, Name: "bad", Node: mesh.Nodes[0], Annotations: map[string]string{
		"ambient.istio.io/bypass-inbound-capture": "perhaps",
		"ambient.istio.io/dns-capture":            "🐇",
		"istio.io/reroute-virtual-interfaces":     "eth0; rm -rf /, -A, " + strings.Repeat("x", 300),
	}})[0]
	awaitCaptured(t, p)
	ctx := testContext(t)
	must(t, kube.Until(ctx, 30*time.Second, "an Event about each", func(ctx context.Context) error {
		told := ""
		for _, e := range mesh.Events(ctx, ns, p.Name) {
			told += e.Reason + ": " + e.Message + "\n"
		}
		for _, want := range []string{"bypass-inbound-capture", "dns-capture", "reroute-virtual-interfaces"} {
			if !strings.Contains(told, want) {
				return fmt.Errorf("no word of %s in %q", want, told)
			}
		}
		return nil
	}))
}

// TestManyAppearAndGo: a namespace that is deleted while its pods are being enrolled
// leaves nothing behind.
func TestManyAppearAndGo(t *testing.T) {
	ns := namespace(t, in)
	ctx := testContext(t)
	for i := range 10 {
		_, err := mesh.Create(ctx, kube.PodSpec{Namespace: ns, Name: fmt.Sprintf("p%d", i), Account: "p", Node: mesh.Nodes[i%2]})
		must(t, err)
	}
	must(t, mesh.CoreV1().Namespaces().Delete(ctx, ns, metav1.DeleteOptions{}))
	must(t, kube.Until(ctx, 2*time.Minute, "the namespace is gone", func(ctx context.Context) error {
		_, err := mesh.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it is there: %v", err)
	}))
	for _, node := range mesh.Nodes {
		must(t, kube.Until(ctx, time.Minute, "the agent knows none of its pods", func(ctx context.Context) error {
			st, err := mesh.NodeStatus(ctx, node)
			if err != nil {
				return err
			}
			for _, p := range st.Pods {
				if p.Namespace == ns {
					return fmt.Errorf("%s: %+v", node, p)
				}
			}
			return nil
		}))
	}
}
