//go:build kube

package kube_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/warren-mesh/warren/e2e/kube"
	"github.com/warren-mesh/warren/e2e/kube/app"
)

// The meshes whose rules chains looks for.
const ours, theirs, nobodys = "ours", "Istio's", "nobody's"

// chains waits until a pod has rules of one mesh and none of the other's, in whatever
// form.
func chains(t *testing.T, pod *corev1.Pod, whose string) {
	t.Helper()
	must(t, kube.Until(testContext(t), time.Minute, pod.Name+"'s rules are "+whose, func(ctx context.Context) error {
		found, err := mesh.Chains(ctx, pod)
		if err != nil {
			return err
		}
		tables, err := mesh.Tables(ctx, pod)
		if err != nil {
			return err
		}
		has := nobodys
		for _, c := range append(found, tables...) {
			now := ours
			if strings.Contains(strings.ToLower(c), "istio") {
				now = theirs
			}
			if has != nobodys && has != now {
				return fmt.Errorf("it has %q and %q", found, tables)
			}
			has = now
		}
		if has != whose {
			return fmt.Errorf("they are %s: %q, %q", has, found, tables)
		}
		return nil
	}))
}

// refusedByName waits until the agent says of a pod that it stays out because of
// Istio's agent.
func refusedByName(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	ctx := testContext(t)
	must(t, kube.Until(ctx, time.Minute, pod.Name+" is refused by name", func(ctx context.Context) error {
		st, err := mesh.PodStatus(ctx, pod)
		if err == nil && (st.State == "enrolled" || !strings.Contains(st.Reason+st.Problem, kube.IstioAgent)) {
			err = fmt.Errorf("%+v", st)
		}
		return err
	}))
	must(t, kube.Until(ctx, time.Minute, pod.Name+" has an Event that says so", func(ctx context.Context) error {
		return mesh.EventWith(ctx, pod.Namespace, pod.Name, "MeshRefused", kube.IstioAgent)
	}))
}

func marked(ctx context.Context, pod *corev1.Pod) (string, error) {
	now, err := mesh.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	return now.Annotations["ambient.istio.io/redirection"], nil
}

// TestTakenOverFromIstio: pods that Istio's agent has programmed are left to it while
// it runs, and are ours when it is gone. Here nobody serves them before, so that they
// have no connections; TestBackToIstio has those.
func TestTakenOverFromIstio(t *testing.T) {
	for _, form := range kube.Forms() {
		t.Run(form.Name, func(t *testing.T) {
			ctx := testContext(t)
			ns, istio := namespace(t, nil), namespace(t, nil)
			p := run(t, mesh.WithTools(kube.PodSpec{Namespace: ns, Name: "a", Node: mesh.Nodes[0]}), mesh.WithTools(kube.PodSpec{Namespace: ns, Name: "b", Node: mesh.Nodes[1]}))
			startIstioAgent(t, istio)
			for _, pod := range p {
				must(t, mesh.AsIstio(ctx, pod, form))
			}
			must(t, mesh.Label(ctx, ns, "", in))
			for _, pod := range p {
				refusedByName(t, pod)
				chains(t, pod, theirs)
				if word, err := marked(ctx, pod); err != nil || word != "enabled" {
					t.Errorf("%s: Istio's annotation is %q now, %v", pod.Name, word, err)
				}
			}
			must(t, mesh.StopIstioAgent(ctx, istio))
			awaitCaptured(t, p...)
			began := time.Now().Add(-time.Second)
			mustCall(t, p[0], url("http", p[1], app.HTTPPort))
			must(t, mesh.WaitMutual(ctx, began, p[0], p[1]))
			for _, pod := range p {
				chains(t, pod, ours)
			}
			must(t, mesh.Label(ctx, ns, "", map[string]string{"istio.io/dataplane-mode": ""}))
			awaitLeft(t, p...)
			for _, pod := range p {
				chains(t, pod, nobodys)
			}
			mustCall(t, p[0], url("http", p[1], app.HTTPPort))
		})
	}
}

// startIstioAgent runs what looks like Istio's agent until the test stops it, at its end
// at the latest.
func startIstioAgent(t *testing.T, ns string) {
	t.Helper()
	t.Cleanup(func() { must(t, mesh.StopIstioAgent(context.Background(), ns)) })
	must(t, mesh.StartIstioAgent(testContext(t), ns))
}

// unharmed ends loads of which no request may have failed.
func unharmed(t *testing.T, ns string, all []flow, what string) {
	t.Helper()
	for _, f := range all {
		s, err := mesh.StopLoad(testContext(t), ns, f.pod, f.load.Name)
		must(t, err)
		fmt.Printf("measure: %s: %s: %d requests, %d failed, longest gap %.0f ms %v %v\n", what, f.name, s.Sent, s.Failed, s.GapMS, s.Errors, s.FirstFailures)
		if s.Failed > 0 {
			t.Errorf("%s: %+v", f.name, s)
		}
	}
}

// TestBackToIstio: our agent leaves while Istio's runs, and gives it the pods as it
// would have made them; when ours is back and Istio's gone they are ours again. Our
// proxy stands for Istio's meanwhile: the two agree on everything in a pod. No request
// fails, and no connection is reset, on any way.
func TestBackToIstio(t *testing.T) {
	ctx := testContext(t)
	ns, istio := namespace(t, in), namespace(t, nil)
	p := run(t, mesh.WithTools(kube.PodSpec{Namespace: ns, Name: "a", Node: mesh.Nodes[0]}), mesh.WithTools(kube.PodSpec{Namespace: ns, Name: "b", Node: mesh.Nodes[1]}))
	awaitCaptured(t, p...)
	all := []flow{
		{"kept", "a", app.Load{Name: "kept", URL: url("tcp", p[1], app.EchoPort), Workers: 20, Interval: "200ms", Timeout: "30s"}},
		{"new", "a", app.Load{Name: "new", URL: url("http", p[1], app.HTTPPort), Workers: 4, Interval: "100ms", Timeout: "30s"}},
	}
	for _, f := range all {
		must(t, mesh.StartLoad(ctx, ns, f.pod, f.load))
	}
	awaitLive(t, ns, "a", "kept", 20)
	startIstioAgent(t, istio)
	waits, err := mesh.Create(ctx, kube.PodSpec{Namespace: ns, Name: "waits", Node: mesh.Nodes[0]})
	must(t, err)
	must(t, kube.Until(ctx, time.Minute, "a new pod of ours waits, by name", func(ctx context.Context) error {
		return mesh.EventWith(ctx, ns, waits.Name, "FailedCreatePodSandBox", kube.IstioAgent)
	}))
	t.Cleanup(func() { must(t, mesh.Install(context.Background())) })
	agent := mesh.Objects.Named("DaemonSet/" + kube.AgentDaemonSet)
	must(t, mesh.Delete(ctx, agent))
	must(t, kube.Until(ctx, 2*time.Minute, "the agent is gone", func(ctx context.Context) error { return mesh.Gone(ctx, agent) }))
	for _, pod := range p {
		chains(t, pod, theirs)
		if word, err := marked(ctx, pod); err != nil || word != "enabled" {
			t.Errorf("%s: the annotation is %q now, %v", pod.Name, word, err)
		}
	}
	awaitProgress(t, ns, all)
	must(t, mesh.StopIstioAgent(ctx, istio))
	must(t, mesh.Install(ctx))
	awaitCaptured(t, p...)
	for _, pod := range p {
		chains(t, pod, ours)
	}
	awaitProgress(t, ns, all)
	unharmed(t, ns, all, "ours to Istio's and back")
	waits, err = mesh.WaitReady(ctx, ns, waits.Name, 3*time.Minute)
	must(t, err)
	awaitCaptured(t, waits)
}

// TestTaint: a node that is not ready for the mesh is told so, and the taint goes when
// the agent is.
func TestTaint(t *testing.T) {
	const taint = "cni.istio.io/not-ready"
	ctx := testContext(t)
	variant(t, kube.Set("nodeagent.removeTaints[0]="+taint)...)
	node := mesh.Nodes[1]
	must(t, mesh.Taint(ctx, node, taint))
	began := time.Now()
	must(t, kube.Until(ctx, 2*time.Minute, "the taint goes", func(ctx context.Context) error {
		n, err := mesh.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, have := range n.Spec.Taints {
			if have.Key == taint {
				return fmt.Errorf("it is there")
			}
		}
		return nil
	}))
	fmt.Printf("measure: the taint %s was gone after %s\n", taint, time.Since(began).Round(time.Millisecond))
}

// variant installs the mesh with other values for the time of a test.
func variant(t *testing.T, args ...string) {
	t.Helper()
	ctx := testContext(t)
	others, err := renderer.Chart(ctx, args...)
	must(t, err)
	t.Cleanup(func() {
		must(t, mesh.Delete(context.Background(), others.Without(mesh.Objects)))
		must(t, mesh.Install(context.Background()))
	})
	must(t, mesh.Apply(ctx, others))
	must(t, mesh.WaitUp(ctx, 3*time.Minute))
}
