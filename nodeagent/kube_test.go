package nodeagent

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/nodeagent/enroll"
	"github.com/warren-mesh/warren/xds/translate"
)

// clusterWorld is an agent beside an API server.
type clusterWorld struct {
	*world
	client *fake.Clientset
	agent  *Agent
}

// podObject is a pod as an API server has it.
func podObject(name, uid string, edit ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: name, UID: types.UID(uid)},
		Spec:       corev1.PodSpec{NodeName: "n1", ServiceAccountName: "sa"},
	}
	for _, e := range edit {
		e(p)
	}
	return p
}

func namespaceObject(name string, labels map[string]string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
}

func newClusterWorld(t *testing.T, edit ...func(*Config)) *clusterWorld {
	t.Helper()
	w := &clusterWorld{world: newWorld(t), client: fake.NewClientset(namespaceObject("app", map[string]string{translate.LabelDataplaneMode: "ambient"}))}
	w.cfg.Kubernetes, w.cfg.KubeDir, w.cfg.Probes = true, "", ProbesOff
	for _, e := range edit {
		e(&w.cfg)
	}
	return w
}

// toServer is the agent's client.
func (w *clusterWorld) toServer() *client {
	return &client{Interface: w.client, pods: podMetadata{w.client}}
}

// podMetadata is that of a fake API server's pods.
type podMetadata struct{ of kubernetes.Interface }

func (m podMetadata) List(ctx context.Context, o metav1.ListOptions) (*metav1.PartialObjectMetadataList, error) {
	pods, err := m.of.CoreV1().Pods("").List(ctx, o)
	if err != nil {
		return nil, err
	}
	var list metav1.PartialObjectMetadataList
	for _, p := range pods.Items {
		list.Items = append(list.Items, metav1.PartialObjectMetadata{ObjectMeta: p.ObjectMeta})
	}
	return &list, nil
}

func (w *clusterWorld) start() {
	w.t.Helper()
	a, err := newAgent(w.cfg, w.toServer(), slog.New(slog.DiscardHandler))
	if err != nil {
		w.t.Fatal(err)
	}
	w.agent = a
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := a.Run(ctx); err != nil {
			w.t.Errorf("run: %v", err)
		}
	}()
	w.stop = sync.OnceFunc(func() { cancel(); <-done })
	w.t.Cleanup(w.stop)
	w.until("ready", func() bool { return a.ready(w.t.Context()) == nil })
}

func (w *clusterWorld) create(p *corev1.Pod) {
	w.t.Helper()
	if _, err := w.client.CoreV1().Pods(p.Namespace).Create(w.t.Context(), p, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

// change patches a pod's or a namespace's metadata.
func (w *clusterWorld) change(namespace, pod string, metadata map[string]any) {
	w.t.Helper()
	body, err := json.Marshal(map[string]any{"metadata": metadata})
	if err == nil && pod == "" {
		_, err = w.client.CoreV1().Namespaces().Patch(w.t.Context(), namespace, types.MergePatchType, body, metav1.PatchOptions{})
	} else if err == nil {
		_, err = w.client.CoreV1().Pods(namespace).Patch(w.t.Context(), pod, types.MergePatchType, body, metav1.PatchOptions{})
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *clusterWorld) mark(pod string) string {
	w.t.Helper()
	p, err := w.client.CoreV1().Pods("app").Get(w.t.Context(), pod, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return p.Annotations[translate.AnnotationRedirection]
}

func (w *clusterWorld) phase(uid string) enroll.Phase {
	for _, r := range w.agent.enroll.Report() {
		if r.UID == uid {
			return r.Phase
		}
	}
	return enroll.PhaseAbsent
}

// add is the plugin's ADD.
func (w *clusterWorld) add(name, uid, container string) (event.Answer, error) {
	w.t.Helper()
	_, a, err := w.addPod(name, uid, container)
	return a, err
}

func (w *clusterWorld) addPod(name, uid, container string) (*netns.NS, event.Answer, error) {
	w.t.Helper()
	ns, path := nstest.NewNS(w.t, container)
	w.t.Cleanup(w.stop)
	c := &event.Client{Path: filepath.Join(w.cfg.RunDir, event.SocketName)}
	a, err := c.Add(w.t.Context(), event.Add{
		Key: event.Key{ContainerID: container, IfName: "eth0"}, Network: "net", PodName: name, PodNamespace: "app", PodUID: uid, Netns: path,
	}, ns.File(), func(event.Redirect) (string, error) { return event.ByAgent, nil })
	return ns, a, err
}

func (w *clusterWorld) events() (all []string) {
	w.t.Helper()
	list, err := w.client.CoreV1().Events("").List(w.t.Context(), metav1.ListOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range list.Items {
		all = append(all, e.InvolvedObject.Name+" "+string(e.InvolvedObject.UID)+" "+e.Reason+" "+e.Message)
	}
	return all
}

// TestClusterFromAddToLabel: an ADD, the annotation, a label that takes the pod out and
// one that takes it in again.
func TestClusterFromAddToLabel(t *testing.T) {
	nstest.LeakCheck(t)
	w := newClusterWorld(t, func(c *Config) { c.Linger = 0 })
	w.start()
	f := w.proxy()
	w.create(podObject("a", "uid-a"))
	if a, err := w.add("a", "uid-a", "c1"); err != nil || a.Action != event.RedirectSo {
		t.Fatalf("ADD: %+v, %v", a, err)
	}
	if f.Pods()["uid-a"].Info.ServiceAccount != "sa" {
		t.Errorf("the proxy serves %v", f.Pods())
	}
	w.until("marked", func() bool { return w.mark("a") == "enabled" })
	w.change("app", "a", map[string]any{"labels": map[string]any{translate.LabelDataplaneMode: "none"}})
	w.until("outside", func() bool { return w.phase("uid-a") == enroll.PhaseLeft && w.mark("a") == "" })
	w.change("app", "", map[string]any{"labels": map[string]any{translate.LabelDataplaneMode: nil}})
	w.change("app", "a", map[string]any{"labels": map[string]any{translate.LabelDataplaneMode: "ambient"}})
	w.until("in again", func() bool { return w.phase("uid-a") == enroll.PhaseEnrolled && w.mark("a") == "enabled" })
}

func TestClusterEventForARefusal(t *testing.T) {
	nstest.LeakCheck(t)
	w := newClusterWorld(t)
	w.start()
	w.create(podObject("a", "uid-a"))
	if _, err := w.add("a", "uid-a", "c1"); err == nil {
		t.Fatal("a pod was admitted without a proxy")
	}
	w.until("told", func() bool {
		all := w.events()
		return len(all) == 1 && strings.HasPrefix(all[0], "a uid-a MeshRefused") && strings.Contains(all[0], "no proxy is connected")
	})
	if out, code := runStatus(t, "--run-dir", w.cfg.RunDir); code != exitDegraded || !strings.Contains(out, "no proxy is connected to the node agent") {
		t.Errorf("exit status %d\n%s", code, out)
	}
}

// byNode makes the API server tell of one node's pods who asks for those; a fake one
// knows no fields.
func (w *clusterWorld) byNode() {
	pods := corev1.SchemeGroupVersion.WithResource("pods")
	of := func(p *corev1.Pod, f fields.Selector) bool {
		node, asked := f.RequiresExactMatch("spec.nodeName")
		return !asked || p.Spec.NodeName == node
	}
	w.client.PrependReactor("list", "pods", func(a k8stesting.Action) (bool, runtime.Object, error) {
		restricted := a.(k8stesting.ListAction).GetListRestrictions()
		all, err := w.client.Tracker().List(pods, corev1.SchemeGroupVersion.WithKind("Pod"), a.GetNamespace())
		if err != nil {
			return true, nil, err
		}
		list := all.(*corev1.PodList)
		list.Items = slices.DeleteFunc(list.Items, func(p corev1.Pod) bool {
			return !of(&p, restricted.Fields) || !restricted.Labels.Matches(labels.Set(p.Labels))
		})
		return true, list, nil
	})
	w.client.PrependWatchReactor("pods", func(a k8stesting.Action) (bool, watch.Interface, error) {
		all, err := w.client.Tracker().Watch(pods, a.GetNamespace())
		if err != nil {
			return true, nil, err
		}
		f := a.(k8stesting.WatchAction).GetWatchRestrictions().Fields
		return true, watch.Filter(all, func(in watch.Event) (watch.Event, bool) {
			p, ok := in.Object.(*corev1.Pod)
			return in, !ok || of(p, f)
		}), nil
	})
}

// TestOtherNodesPods: what the plugin goes by while the agent is away counts pods of any
// node that are in the mesh by their own labels, those that came last as well.
func TestOtherNodesPods(t *testing.T) {
	nstest.LeakCheck(t)
	w := newClusterWorld(t)
	w.byNode()
	elsewhere := func(namespace, mode string) {
		t.Helper()
		if _, err := w.client.CoreV1().Namespaces().Create(t.Context(), namespaceObject(namespace, nil), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.create(podObject("x", "uid-"+namespace, func(p *corev1.Pod) {
			p.Namespace, p.Spec.NodeName, p.Labels = namespace, "n2", map[string]string{translate.LabelDataplaneMode: mode}
		}))
	}
	elsewhere("early", "ambient")
	elsewhere("other", "none")
	w.start()
	away := func(namespace string) string {
		a, err := event.ReadAway(filepath.Join(w.cfg.StateDir, event.AwayName))
		if err != nil && !errors.Is(err, os.ErrNotExist) { // it may not be written yet
			t.Error(err)
		}
		return a.Namespaces[namespace]
	}
	w.until("the file has the namespace", func() bool { return away("early") == event.NSMixed })
	elsewhere("late", "ambient")
	w.until("the file has the next one", func() bool { return away("late") != "" })
	w.stop()
	if early, late, other, app := away("early"), away("late"), away("other"), away("app"); early != event.NSMixed || late != event.NSMixed || other != event.NSOut || app != event.NSIn {
		t.Errorf("early %s, late %s, other %s, app %s", early, late, other, app)
	}
}
