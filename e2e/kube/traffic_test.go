//go:build kube

package kube_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/warren-mesh/warren/e2e/kube"
	"github.com/warren-mesh/warren/e2e/kube/app"
)

// ends are pods on two nodes, in the mesh and outside.
type ends struct {
	ns                  string
	a, near, far        *corev1.Pod // in the mesh; near is on a's node
	outside, outsideFar *corev1.Pod
}

func newEnds(t *testing.T) ends {
	t.Helper()
	ns := namespace(t, in)
	n := mesh.Nodes
	p := run(t,
		kube.PodSpec{Namespace: ns, Name: "a", Node: n[0]},
		kube.PodSpec{Namespace: ns, Name: "near", Node: n[0], Labels: map[string]string{"serves": "yes"}},
		kube.PodSpec{Namespace: ns, Name: "far", Node: n[1], Labels: map[string]string{"serves": "yes"}},
		kube.PodSpec{Namespace: ns, Name: "outside", Node: n[0], Labels: out},
		kube.PodSpec{Namespace: ns, Name: "outside-far", Node: n[1], Labels: out},
	)
	return ends{ns: ns, a: p[0], near: p[1], far: p[2], outside: p[3], outsideFar: p[4]}
}

// service makes a Service for pods of the namespace and returns it.
func service(t *testing.T, ns, name string, selector map[string]string, headless bool) *corev1.Service {
	t.Helper()
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: corev1.ServiceSpec{
		Selector: selector,
		Ports: []corev1.ServicePort{
			{Name: "http", Port: 80, TargetPort: intstr.FromInt32(app.HTTPPort)},
			{Name: "tcp", Port: 90, TargetPort: intstr.FromInt32(app.EchoPort)},
			{Name: "first", Port: 91, TargetPort: intstr.FromInt32(app.ServerFirstPort)},
			{Name: "loop", Port: 84, TargetPort: intstr.FromInt32(app.HTTPLoopback)},
		},
	}}
	if headless {
		s.Spec.ClusterIP = corev1.ClusterIPNone
	}
	s, err := mesh.CoreV1().Services(ns).Create(testContext(t), s, metav1.CreateOptions{})
	must(t, err)
	return s
}

// TestEnrolledAtADD: pods made in a labelled namespace are in the mesh before they run.
func TestEnrolledAtADD(t *testing.T) {
	e := newEnds(t)
	awaitCaptured(t, e.a, e.near, e.far)
	awaitLeft(t, e.outside, e.outsideFar)
	ctx := testContext(t)
	for _, p := range []*corev1.Pod{e.a, e.far} {
		must(t, kube.Until(ctx, 20*time.Second, "the annotation", func(ctx context.Context) error {
			now, err := mesh.CoreV1().Pods(e.ns).Get(ctx, p.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if got := now.Annotations["ambient.istio.io/redirection"]; got != "enabled" {
				return fmt.Errorf("%s has ambient.istio.io/redirection=%q", p.Name, got)
			}
			return nil
		}))
	}
}

// TestPaths: every kind of way, who saw whom, and whether it was mutual TLS.
func TestPaths(t *testing.T) {
	e := newEnds(t)
	svc := service(t, e.ns, "web", map[string]string{"serves": "yes"}, false)
	for _, tc := range []struct {
		name     string
		from, to *corev1.Pod
		mutual   bool
	}{
		{"across nodes", e.a, e.far, true},
		{"on one node", e.a, e.near, true},
		{"out of the mesh across nodes", e.a, e.outsideFar, false},
		{"out of the mesh on one node", e.a, e.outside, false},
		{"into the mesh across nodes", e.outside, e.far, false},
		{"into the mesh on one node", e.outside, e.near, false},
		{"past the mesh", e.outside, e.outsideFar, false},
		{"to itself", e.a, e.a, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx := testContext(t)
			began := time.Now().Add(-time.Second) // the API server counts whole seconds
			for _, target := range []string{url("http", tc.to, app.HTTPPort), url("http", tc.to, app.HTTPPodIPPort),
				url("tcp", tc.to, app.EchoPort), url("first", tc.to, app.ServerFirstPort)} {
				mustCall(t, tc.from, target)
			}
			r, err := mesh.Call(ctx, e.ns, tc.from.Name, url("http", tc.to, app.HTTPPort))
			must(t, err)
			if r.Answer.Pod != tc.to.Name || !hasIP(r.Answer.Remote, tc.from.Status.PodIP) {
				t.Errorf("answered %+v, want pod %s that saw %s", r, tc.to.Name, tc.from.Status.PodIP)
			}
			if tc.mutual {
				must(t, mesh.WaitMutual(ctx, began, tc.from, tc.to))
			}
			// Only the pod itself reaches what listens on its loopback.
			if r, err := mesh.Call(ctx, e.ns, tc.from.Name, url("http", tc.to, app.HTTPLoopback)); err != nil || r.OK {
				t.Errorf("a port on loopback was reached from outside: %+v, %v", r, err)
			}
		})
	}
	t.Run("service", func(t *testing.T) {
		ctx := testContext(t)
		for _, from := range []*corev1.Pod{e.a, e.outside} {
			seen := map[string]int{}
			must(t, kube.Until(ctx, time.Minute, from.Name+" reaches both endpoints", func(ctx context.Context) error {
				r, err := mesh.Call(ctx, e.ns, from.Name, fmt.Sprintf("http://%s:80", svc.Spec.ClusterIP))
				if err != nil || !r.OK {
					return fmt.Errorf("%v %s", err, r.Err)
				}
				if seen[r.Answer.Pod]++; len(seen) < 2 {
					return fmt.Errorf("only %v", seen)
				}
				return nil
			}))
			mustCall(t, from, fmt.Sprintf("tcp://%s:90", svc.Spec.ClusterIP))
			mustCall(t, from, fmt.Sprintf("first://%s:91", svc.Spec.ClusterIP))
			if r, err := mesh.Call(ctx, e.ns, from.Name, fmt.Sprintf("http://%s:84", svc.Spec.ClusterIP)); err != nil || r.OK {
				t.Errorf("%s: a port on loopback was reached through the service: %+v, %v", from.Name, r, err)
			}
		}
	})
}

func hasIP(addr, ip string) bool { return len(addr) > len(ip) && addr[:len(ip)+1] == ip+":" }

// TestTelemetry: the destination's proxy counts connections by who they are between.
func TestTelemetry(t *testing.T) {
	e := newEnds(t)
	svc := service(t, e.ns, "web", map[string]string{"app": "far"}, false)
	mustCall(t, e.a, fmt.Sprintf("http://%s:80", svc.Spec.ClusterIP))
	must(t, kube.Until(testContext(t), 30*time.Second, "the metric", func(ctx context.Context) error {
		n, err := mesh.Metric(ctx, "istio_tcp_connections_opened_total", map[string]string{
			"reporter": "destination", "connection_security_policy": "mutual_tls",
			"source_principal": kube.Identity(e.a), "destination_principal": kube.Identity(e.far),
			"destination_workload_namespace": e.ns, "destination_service": "web." + e.ns + ".svc.cluster.local",
			"destination_service_name": "web", "destination_service_namespace": e.ns,
		})
		if err == nil && n < 1 {
			err = fmt.Errorf("istio_tcp_connections_opened_total is %v", n)
		}
		return err
	}))
}

// TestHostNetwork: such pods are never captured, reach the mesh and are reached.
func TestHostNetwork(t *testing.T) {
	e := newEnds(t)
	host := run(t, kube.PodSpec{Namespace: e.ns, Name: "host", Node: mesh.Nodes[1], Mutate: func(p *corev1.Pod) {
		p.Spec.HostNetwork = true
		p.Spec.Containers[0].Command = []string{kube.AppPath, "sleep", "3600"}
	}})[0]
	ctx := testContext(t)
	for _, to := range []*corev1.Pod{e.near, e.far, e.outside} {
		text, err := mesh.Exec(ctx, e.ns, host.Name, "app", kube.AppPath, "once", url("http", to, app.HTTPPort), "30")
		if err != nil {
			t.Errorf("%v %s", err, text)
		}
	}
	st, err := mesh.PodStatus(ctx, host)
	if err == nil && st.State != "absent" && st.State != "left" {
		t.Errorf("a pod on the host's network is %+v", st)
	}
}
