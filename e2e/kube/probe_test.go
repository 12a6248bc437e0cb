//go:build kube

package kube_test

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/warren-mesh/warren/e2e/kube"
	"github.com/warren-mesh/warren/e2e/kube/app"
)

// TestProbes: kubelet's probes pass where plaintext is forbidden.
func TestProbes(t *testing.T) {
	ns := namespace(t, in)
	apply(t, ns, strict)
	handlers := map[string]corev1.ProbeHandler{
		"http": {HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(app.HTTPPort)}},
		"tcp":  {TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(app.EchoPort)}},
		"exec": {Exec: &corev1.ExecAction{Command: []string{kube.AppPath, "once", "http://127.0.0.1:8084", "1"}}},
	}
	var specs []kube.PodSpec
	for name, h := range handlers {
		for _, node := range mesh.Nodes {
			specs = append(specs, kube.PodSpec{Namespace: ns, Name: name + "-" + node, Node: node, Mutate: func(p *corev1.Pod) {
				c := &p.Spec.Containers[0]
				c.StartupProbe = &corev1.Probe{ProbeHandler: h, PeriodSeconds: 1, TimeoutSeconds: 2, FailureThreshold: 60}
				c.ReadinessProbe = &corev1.Probe{ProbeHandler: h, PeriodSeconds: 1, TimeoutSeconds: 2}
				c.LivenessProbe = &corev1.Probe{ProbeHandler: h, PeriodSeconds: 1, TimeoutSeconds: 2, FailureThreshold: 3}
			}})
		}
	}
	pods := run(t, specs...)
	awaitCaptured(t, pods...)
	outside := run(t, kube.PodSpec{Namespace: ns, Name: "outside", Node: mesh.Nodes[0], Labels: out})[0]
	mustNotCall(t, outside, url("http", pods[0], app.HTTPPort)) // strict it is

	// Probes went on meanwhile; those of a running pod must as well while the agent restarts.
	must(t, mesh.Rollout(testContext(t), kube.AgentDaemonSet))
	// No event tells of a probe that passed: these are more periods than any threshold.
	time.Sleep(8 * time.Second)
	for _, p := range pods {
		now, err := mesh.CoreV1().Pods(ns).Get(testContext(t), p.Name, metav1.GetOptions{})
		must(t, err)
		if !kube.PodReady(now) || now.Status.ContainerStatuses[0].RestartCount > 0 {
			t.Errorf("%s: ready %v, %d restarts", p.Name, kube.PodReady(now), now.Status.ContainerStatuses[0].RestartCount)
		}
		for _, e := range mesh.Events(testContext(t), ns, p.Name) {
			if e.Reason == "Unhealthy" {
				t.Logf("%s: %d times: %s", p.Name, e.Count, e.Message)
			}
		}
	}
}
