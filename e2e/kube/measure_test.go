//go:build kube

package kube_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/warren-mesh/warren/e2e/kube"
)

const agentMetricsPort = 15014

// seen is when a watch told of what one waits for, by pod.
type seen struct {
	mu   sync.Mutex
	when map[string]time.Time // guarded by mu
}

func (s *seen) at(name string) (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, ok := s.when[name]
	return w, ok
}

// watchPods notes when each pod of a namespace is first as it should be. It lasts until
// the test's end, whatever becomes of one watch.
func watchPods(t *testing.T, ns string, as func(*corev1.Pod, bool) bool) *seen {
	t.Helper()
	s := &seen{when: map[string]time.Time{}}
	note := func(pod any, gone bool) {
		p, ok := pod.(*corev1.Pod)
		if !ok || !as(p, gone) {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, was := s.when[p.Name]; !was {
			s.when[p.Name] = time.Now()
		}
	}
	informer := cache.NewSharedInformer(cache.NewListWatchFromClient(mesh.CoreV1().RESTClient(), "pods", ns, fields.Everything()), &corev1.Pod{}, 0)
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(pod any) { note(pod, false) },
		UpdateFunc: func(_, pod any) { note(pod, false) },
		DeleteFunc: func(pod any) {
			if missed, ok := pod.(cache.DeletedFinalStateUnknown); ok { // between two watches
				pod = missed.Obj
			}
			note(pod, true)
		},
	})
	must(t, err)
	ctx, stop := context.WithCancel(testContext(t))
	var wg sync.WaitGroup
	wg.Go(func() { informer.RunWithContext(ctx) })
	t.Cleanup(func() { stop(); wg.Wait() })
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		t.Fatal("the pods of " + ns + " cannot be listed")
	}
	return s
}

// all waits for so many and returns how long each took.
func (s *seen) all(t *testing.T, began map[string]time.Time) []time.Duration {
	t.Helper()
	var took []time.Duration
	must(t, kube.Until(testContext(t), 5*time.Minute, "all pods", func(context.Context) error {
		took = took[:0]
		for name, b := range began {
			w, ok := s.at(name)
			if !ok {
				return fmt.Errorf("not yet %s", name)
			}
			took = append(took, w.Sub(b))
		}
		return nil
	}))
	slices.Sort(took)
	return took
}

func measure(what string, took []time.Duration) {
	n := len(took)
	r := func(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
	fmt.Printf("measure: %s: p50 %s, p99 %s, max %s of %d\n", what, r(took[n/2]), r(took[n*99/100]), r(took[n-1]), n)
}

// TestADD measures from a pod's creation to its readiness, in the mesh and outside,
// one at a time and 20 at once.
func TestADD(t *testing.T) {
	for _, mode := range []struct {
		name   string
		labels map[string]string
	}{{"outside the mesh", nil}, {"in the mesh", in}} {
		for _, atOnce := range []int{1, 20} {
			ns := namespace(t, mode.labels)
			before := addHistogram(t, mesh.Nodes[0])
			s := watchPods(t, ns, func(p *corev1.Pod, gone bool) bool { return kube.PodReady(p) && !gone })
			began := map[string]time.Time{}
			for i := range 20 {
				name := fmt.Sprintf("p%d", i)
				began[name] = time.Now()
				_, err := mesh.Create(testContext(t), kube.PodSpec{Namespace: ns, Name: name, Account: "p", Node: mesh.Nodes[0]})
				must(t, err)
				if (i+1)%atOnce == 0 {
					s.all(t, began)
				}
			}
			measure(fmt.Sprintf("pod created → ready, %d at once, %s", atOnce, mode.name), s.all(t, began))
			if mode.labels != nil {
				printHistogram(t, mesh.Nodes[0], before, fmt.Sprintf("%d at once", atOnce), len(began))
			}
			gone(t, ns)
		}
	}
}

// gone deletes a namespace's pods and waits, so that their end costs nobody else.
func gone(t *testing.T, ns string) {
	t.Helper()
	ctx := testContext(t)
	must(t, mesh.CoreV1().Pods(ns).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}))
	must(t, kube.Until(ctx, 3*time.Minute, "the pods are gone", func(ctx context.Context) error {
		l, err := mesh.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
		if err == nil && len(l.Items) > 0 {
			err = fmt.Errorf("%d are left", len(l.Items))
		}
		return err
	}))
}

const addMetric = "warren_agent_change_seconds"

// addBounds are the upper bounds of the agent's buckets, in seconds, as it writes them.
func addBounds() []string {
	return []string{"0.005", "0.0125", "0.03125", "0.078125", "0.1953125", "0.48828125", "1.220703125", "3.0517578125", "7.62939453125", "+Inf"}
}

// addHistogram is how many ADDs the agent has answered within each bound.
func addHistogram(t *testing.T, node string) (counts []float64) {
	t.Helper()
	pods, err := mesh.PodsOn(testContext(t), kube.AgentDaemonSet, node)
	must(t, err)
	for _, b := range addBounds() {
		counts = append(counts, agentMetric(t, pods[0].Name, addMetric+"_bucket", map[string]string{"type": "add", "le": b}))
	}
	return counts
}

// printHistogram shows what the agent itself took for ADDs since before. They are no
// fewer than the pods: one without started outside of the mesh.
func printHistogram(t *testing.T, node string, before []float64, what string, pods int) {
	t.Helper()
	now := addHistogram(t, node)
	all := now[len(now)-1] - before[len(now)-1]
	if all < float64(pods) {
		t.Errorf("%d pods were made, and the agent was asked for %.0f", pods, all)
	}
	within := func(part float64) string {
		for i, b := range addBounds() {
			if now[i]-before[i] >= part*all {
				return b + " s"
			}
		}
		return "?"
	}
	fmt.Printf("measure: the agent's part of an ADD, %s: p50 within %s, p99 within %s, of %.0f\n", what, within(0.5), within(0.99), all)
}

func agentMetric(t *testing.T, pod, name string, labels map[string]string) float64 {
	t.Helper()
	return podMetric(t, pod, agentMetricsPort, name, labels)
}

func podMetric(t *testing.T, pod string, port int, name string, labels map[string]string) float64 {
	t.Helper()
	text, err := mesh.Proxied(testContext(t), kube.SystemNamespace, pod, port, "metrics")
	must(t, err)
	return kube.SumMetric(text, name, labels)
}

// TestLabelToCaptured measures from the label to the annotation that says the pod is
// captured, from its removal to the annotation's, and from deletion to the agent's
// having forgotten.
func TestLabelToCaptured(t *testing.T) {
	ns := namespace(t, nil)
	ctx := testContext(t)
	run(t, kube.PodSpec{Namespace: ns, Name: "a", Node: mesh.Nodes[0]})
	var there, left, forgotten []time.Duration
	for range 10 {
		s := watchPods(t, ns, func(p *corev1.Pod, _ bool) bool { return p.Annotations["ambient.istio.io/redirection"] == "enabled" })
		began := time.Now()
		must(t, mesh.Label(ctx, ns, "a", in))
		there = append(there, s.all(t, map[string]time.Time{"a": began})...)
		s = watchPods(t, ns, func(p *corev1.Pod, _ bool) bool { return p.Annotations["ambient.istio.io/redirection"] == "" })
		began = time.Now()
		must(t, mesh.Label(ctx, ns, "a", map[string]string{"istio.io/dataplane-mode": ""}))
		left = append(left, s.all(t, map[string]time.Time{"a": began})...)
	}
	slices.Sort(there)
	slices.Sort(left)
	measure("label → captured", there)
	measure("label removed → left", left)

	must(t, mesh.Label(ctx, ns, "", in))
	for i := range 5 {
		p := run(t, kube.PodSpec{Namespace: ns, Name: fmt.Sprintf("del-%d", i), Account: "a", Node: mesh.Nodes[0]})[0]
		awaitCaptured(t, p)
		s := watchPods(t, ns, func(p *corev1.Pod, deleted bool) bool { return deleted })
		began := time.Now()
		zero := int64(0)
		must(t, mesh.CoreV1().Pods(ns).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero}))
		s.all(t, map[string]time.Time{p.Name: began})
		must(t, kube.Until(ctx, time.Minute, "the agent forgets it", func(ctx context.Context) error {
			if st, err := mesh.PodStatus(ctx, p); err == nil {
				return fmt.Errorf("%+v", st)
			}
			return nil
		}))
		forgotten = append(forgotten, time.Since(began))
	}
	slices.Sort(forgotten)
	measure("deleted at once → the agent has forgotten (polled)", forgotten)
}

// TestIdlePods measures what many idle pods of a node cost, how fast a new agent has them,
// and how fast one takes them in that comes to a node where they run already.
func TestIdlePods(t *testing.T) {
	n := 80
	if v := os.Getenv("E2E_IDLE_PODS"); v != "" {
		var err error
		n, err = strconv.Atoi(v)
		must(t, err)
	}
	ns, node := namespace(t, in), mesh.Nodes[0]
	var specs []kube.PodSpec
	for i := range n {
		specs = append(specs, kube.PodSpec{Namespace: ns, Name: fmt.Sprintf("idle-%d", i), Account: fmt.Sprintf("idle-%d", i%20), Node: node})
	}
	began := time.Now()
	pods := run(t, specs...)
	fmt.Printf("measure: %d pods of the mesh on %s were ready after %s\n", len(pods), node, time.Since(began).Round(100*time.Millisecond))
	awaitAllCaptured(t, ns, len(pods))
	costs(t, fmt.Sprintf("with %d idle pods on %s", n, node))

	pod, err := mesh.PodsOn(testContext(t), kube.AgentDaemonSet, node)
	must(t, err)
	must(t, mesh.CoreV1().Pods(kube.SystemNamespace).Delete(testContext(t), pod[0].Name, metav1.DeleteOptions{}))
	must(t, awaitAgent(t, node, pod[0].UID))
	began = time.Now()
	awaitAllCaptured(t, ns, len(pods))
	fmt.Printf("measure: a new agent that was ready had all pods of its node verified after %s more\n", time.Since(began).Round(10*time.Millisecond))

	// The mesh leaves the node, and comes to it again.
	must(t, mesh.NodesWith(testContext(t), kube.AgentDaemonSet, map[string]string{"e2e/no": "node"}))
	t.Cleanup(func() {
		must(t, mesh.NodesWith(context.Background(), kube.AgentDaemonSet, nil))
		must(t, mesh.WaitUp(context.Background(), 3*time.Minute))
	})
	must(t, kube.Until(testContext(t), 3*time.Minute, "no agent is left", func(ctx context.Context) error {
		if left, err := mesh.PodsOn(ctx, kube.AgentDaemonSet, node); err == nil {
			return fmt.Errorf("%s", left[0].Name)
		}
		l, err := mesh.CoreV1().Pods(kube.SystemNamespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + kube.AgentDaemonSet})
		if err == nil && len(l.Items) > 0 {
			err = fmt.Errorf("%d are ending", len(l.Items))
		}
		return err
	}))
	must(t, mesh.NodesWith(testContext(t), kube.AgentDaemonSet, nil))
	must(t, awaitAgent(t, node, ""))
	began = time.Now()
	awaitAllCaptured(t, ns, len(pods))
	fmt.Printf("measure: an agent that came to %d running pods of the mesh and was ready had taken them all in after %s more\n", n, time.Since(began).Round(10*time.Millisecond))
}

// awaitAgent waits until a node has an agent that is ready and not the one of before.
func awaitAgent(t *testing.T, node string, before types.UID) error {
	t.Helper()
	return kube.Until(testContext(t), 2*time.Minute, "a new agent", func(ctx context.Context) error {
		now, err := mesh.PodsOn(ctx, kube.AgentDaemonSet, node)
		if err == nil && (now[0].UID == before || !kube.PodReady(&now[0])) {
			err = fmt.Errorf("not yet")
		}
		return err
	})
}

// awaitAllCaptured waits until the agents of all nodes have so many pods of the
// namespace in the mesh.
func awaitAllCaptured(t *testing.T, ns string, want int) {
	t.Helper()
	must(t, kube.Until(testContext(t), 3*time.Minute, "all are captured", func(ctx context.Context) error {
		n, wrong := 0, ""
		for _, node := range mesh.Nodes {
			st, err := mesh.NodeStatus(ctx, node)
			if err != nil {
				return err
			}
			for _, p := range st.Pods {
				switch {
				case p.Namespace != ns:
				case p.State == "enrolled" && p.Redirection == "verified" && p.Problem == "":
					n++
				default:
					wrong = fmt.Sprintf("%+v", p)
				}
			}
		}
		if n != want {
			return fmt.Errorf("%d of %d; %s", n, want, wrong)
		}
		return nil
	}))
}

// costs prints CPU over half a minute and memory of every part of the mesh.
func costs(t *testing.T, when string) {
	t.Helper()
	type one struct {
		pod  string
		port int
		cpu  float64
	}
	var parts []one
	for _, node := range mesh.Nodes {
		for ds, port := range map[string]int{kube.AgentDaemonSet: agentMetricsPort, kube.ProxyDaemonSet: 15020} {
			pods, err := mesh.PodsOn(testContext(t), ds, node)
			must(t, err)
			parts = append(parts, one{pod: pods[0].Name, port: port})
		}
	}
	l, err := mesh.CoreV1().Pods(kube.SystemNamespace).List(testContext(t), metav1.ListOptions{LabelSelector: "app=" + kube.ControlPlane})
	must(t, err)
	for _, p := range l.Items {
		parts = append(parts, one{pod: p.Name, port: agentMetricsPort})
	}
	for i, p := range parts {
		parts[i].cpu = podMetric(t, p.pod, p.port, "process_cpu_seconds_total", nil)
	}
	const window = 30 * time.Second
	time.Sleep(window)
	for _, p := range parts {
		used := podMetric(t, p.pod, p.port, "process_cpu_seconds_total", nil) - p.cpu
		rss := podMetric(t, p.pod, p.port, "process_resident_memory_bytes", nil)
		fmt.Printf("measure: %s %s: %.2f %% of a CPU, %.1f MiB resident\n", p.pod, when, 100*used/window.Seconds(), rss/(1<<20))
	}
}
