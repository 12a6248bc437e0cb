//go:build kube

package kube_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/warren-mesh/warren/e2e/kube"
	"github.com/warren-mesh/warren/e2e/kube/app"
)

// flow is one load of the restart tests.
type flow struct {
	name, pod string
	load      app.Load
}

// flows are loads of new and of kept connections over every kind of path. Of those
// that come in from outside, the kept are another pod's: where a client has a
// connection to one port of a pod, a second from the same port of its own to another
// port of that pod hangs, because all are redirected to one and the kernel gives the
// packet to the first connection before it has given the second another port.
func flows(e ends) []flow {
	var all []flow
	for _, w := range []struct{ name, newFrom, keptFrom, ip string }{
		{"mesh", "a", "a", e.far.Status.PodIP}, {"same node", "a", "a", e.near.Status.PodIP},
		{"in", "outside", "outside-far", e.far.Status.PodIP}, {"out", "a", "a", e.outsideFar.Status.PodIP},
	} {
		all = append(all,
			flow{w.name + ", new", w.newFrom, app.Load{Name: w.name + " new", URL: fmt.Sprintf("http://%s:%d", w.ip, app.HTTPPort), Workers: 2, Interval: "50ms", Timeout: "10s"}},
			flow{w.name + ", kept", w.keptFrom, app.Load{Name: w.name + " kept", URL: fmt.Sprintf("tcp://%s:%d", w.ip, app.EchoPort), Workers: 10, Interval: "500ms", Timeout: "10s"}})
	}
	return all
}

// under runs an upheaval under load, prints how each flow went, and returns the
// failures of new and of kept connections.
func under(t *testing.T, e ends, what string, upheaval func(context.Context) error) (failedNew, failedKept int) {
	t.Helper()
	ctx := testContext(t)
	all := flows(e)
	for _, f := range all {
		must(t, mesh.StartLoad(ctx, e.ns, f.pod, f.load))
	}
	awaitProgress(t, e.ns, all) // a load before
	began := time.Now()
	err := upheaval(ctx)
	took := time.Since(began).Round(time.Second)
	awaitProgress(t, e.ns, all) // and after
	for _, f := range all {
		s, stopErr := mesh.StopLoad(ctx, e.ns, f.pod, f.load.Name)
		must(t, stopErr)
		fmt.Printf("measure: %s under load, %s: %s: %d requests, %d failed, p50 %.1f ms, p99 %.1f ms, longest gap %.0f ms %v %v\n",
			what, took, f.name, s.Sent, s.Failed, s.P50MS, s.P99MS, s.GapMS, s.Errors, s.FirstFailures)
		if strings.HasSuffix(f.name, "new") {
			failedNew += s.Failed
		} else {
			failedKept += s.Failed
		}
	}
	must(t, err)
	return failedNew, failedKept
}

// awaitProgress waits until every worker of each flow has asked twice more.
func awaitProgress(t *testing.T, ns string, all []flow) {
	t.Helper()
	ctx := testContext(t)
	began := make([]int, len(all))
	for i, f := range all {
		s, err := mesh.LookLoad(ctx, ns, f.pod, f.load.Name)
		must(t, err)
		began[i] = s.Sent
	}
	for i, f := range all {
		must(t, kube.Until(ctx, 2*time.Minute, f.name+" goes on", func(ctx context.Context) error {
			s, err := mesh.LookLoad(ctx, ns, f.pod, f.load.Name)
			if err == nil && s.Sent < began[i]+2*f.load.Workers {
				err = fmt.Errorf("%d requests, %d before", s.Sent, began[i])
			}
			return err
		}))
	}
}

// TestRollingRestarts restarts the mesh's own parts under load.
func TestRollingRestarts(t *testing.T) {
	e := newEnds(t)
	awaitCaptured(t, e.a, e.near, e.far)
	for _, part := range []struct {
		name string
		kept bool // connections that live must go on
	}{{kube.ControlPlane, true}, {kube.AgentDaemonSet, true}, {kube.ProxyDaemonSet, false}} {
		t.Run(part.name, func(t *testing.T) {
			failedNew, failedKept := under(t, e, "rolling restart of "+part.name, func(ctx context.Context) error { return mesh.Rollout(ctx, part.name) })
			if failedNew > 0 {
				t.Errorf("%d new connections failed", failedNew)
			}
			if part.kept && failedKept > 0 {
				t.Errorf("%d kept connections broke", failedKept)
			}
			awaitCaptured(t, e.a, e.near, e.far)
		})
	}
}

// TestKubeletRestart: pods go on while kubelet is away, and after.
func TestKubeletRestart(t *testing.T) {
	restart := command(t, "E2E_RESTART_KUBELET", "restarts the kubelet of the node that it is called with")
	e := newEnds(t)
	awaitCaptured(t, e.a, e.near, e.far)
	failedNew, failedKept := under(t, e, "restart of kubelet", func(ctx context.Context) error {
		for _, node := range mesh.Nodes {
			began := time.Now().Add(-time.Second) // the API counts whole seconds
			if err := restart(ctx, node); err != nil {
				return err
			}
			if err := mesh.NodeHeard(ctx, node, began, 2*time.Minute); err != nil {
				return err
			}
		}
		return kube.Until(ctx, 2*time.Minute, "the agents answer", func(ctx context.Context) error {
			_, err := mesh.PodStatus(ctx, e.far)
			return err
		})
	})
	if failedNew+failedKept > 0 {
		t.Errorf("%d new and %d kept connections failed", failedNew, failedKept)
	}
	p := run(t, kube.PodSpec{Namespace: e.ns, Name: "later", Node: mesh.Nodes[0]})
	awaitCaptured(t, p...)
}

// TestServiceRestart: a rolling restart of the destination fails no request of those
// that open a connection each.
func TestServiceRestart(t *testing.T) {
	e := newEnds(t)
	ctx := testContext(t)
	d := deployment(t, e.ns, "web", 2)
	svc := service(t, e.ns, "web", map[string]string{"app": "web"}, false)
	target := fmt.Sprintf("http://%s:80", svc.Spec.ClusterIP)
	for from, pod := range map[string]*corev1.Pod{"a": e.a, "outside": e.outside} {
		mustCall(t, pod, target)
		must(t, mesh.StartLoad(ctx, e.ns, from, app.Load{Name: "web", URL: target, Workers: 2, Interval: "40ms", Timeout: "10s"}))
	}
	for range 2 {
		restart(t, e.ns, d.Name)
	}
	for _, from := range []string{"a", "outside"} {
		s, err := mesh.StopLoad(ctx, e.ns, from, "web")
		must(t, err)
		fmt.Printf("measure: rolling restart of a service, from %s: %d requests, %d failed, p99 %.1f ms, %v %v\n", from, s.Sent, s.Failed, s.P99MS, s.Errors, s.FirstFailures)
		if s.Failed > 0 {
			t.Errorf("from %s: %d of %d failed: %v", from, s.Failed, s.Sent, s.Errors)
		}
	}
}

// deployment runs servers that go on for a while after they are told to end, as
// those do that want no failures outside of a mesh either.
func deployment(t *testing.T, ns, name string, replicas int32) *appsv1.Deployment {
	t.Helper()
	ctx := testContext(t)
	must(t, mesh.Account(ctx, ns, name))
	pod := kube.PodSpec{Namespace: ns, Name: name}.Pod()
	grace := int64(20)
	pod.Spec.TerminationGracePeriodSeconds = &grace
	c := &pod.Spec.Containers[0]
	c.Env = append(c.Env, corev1.EnvVar{Name: "LAME_DUCK", Value: "5s"})
	c.ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(app.HTTPPort)}}, PeriodSeconds: 1}
	d, err := mesh.AppsV1().Deployments(ns).Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels}, Spec: pod.Spec},
		},
	}, metav1.CreateOptions{})
	must(t, err)
	awaitDeployment(t, ns, name)
	return d
}

func awaitDeployment(t *testing.T, ns, name string) {
	t.Helper()
	must(t, kube.Until(testContext(t), 3*time.Minute, name+" is up", func(ctx context.Context) error {
		d, err := mesh.AppsV1().Deployments(ns).Get(ctx, name, metav1.GetOptions{})
		if err == nil && (d.Status.ObservedGeneration < d.Generation || d.Status.ReadyReplicas != *d.Spec.Replicas ||
			d.Status.UpdatedReplicas != *d.Spec.Replicas || d.Status.Replicas != *d.Spec.Replicas) {
			err = fmt.Errorf("%+v", d.Status)
		}
		return err
	}))
}

// restart rolls a Deployment and waits for the end of its old pods.
func restart(t *testing.T, ns, name string) {
	t.Helper()
	patch := fmt.Appendf(nil, `{"spec":{"template":{"metadata":{"annotations":{"e2e/restarted":%q}}}}}`, time.Now().Format(time.RFC3339Nano))
	_, err := mesh.AppsV1().Deployments(ns).Patch(testContext(t), name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	must(t, err)
	awaitDeployment(t, ns, name)
}
