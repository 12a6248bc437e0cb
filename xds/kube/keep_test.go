package kube

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// A field that only a newer API has never makes a policy allow more.
func TestUnknownFields(t *testing.T) {
	from := func(field string) map[string]any {
		return map[string]any{"from": []any{map[string]any{"source": map[string]any{"namespaces": []any{"a"}, field: []any{"b"}}}}}
	}
	for _, c := range []struct {
		name, action string
		rules        []any
		kept         int
		problem      string
	}{
		{"known", "ALLOW", []any{from("principals")}, 1, ""},
		{"none", "ALLOW", nil, 0, ""},
		{"unknown in one of two", "ALLOW", []any{from("principals"), from("planets")}, 1, "planets"},
		{"unknown in a DENY rule", "DENY", []any{from("planets")}, 1, "planets"},
	} {
		p, err := keepAuthorization(policy("p", c.action, map[string]any{"rules": c.rules}))
		if p == nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if len(p.Spec.GetRules()) != c.kept || (err != nil) != (c.problem != "") || err != nil && !strings.Contains(err.Error(), c.problem) {
			t.Errorf("%s: %d rules, err %v", c.name, len(p.Spec.GetRules()), err)
		}
	}
	peer := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
		"metadata": map[string]any{"namespace": "app", "name": "strict"}, "spec": map[string]any{"mtls": map[string]any{"mode": "STRICT"}, "moon": 1}}}
	if p, err := keepPeerAuthentication(peer); p == nil || p.Spec.GetMtls().GetMode().String() != "STRICT" || err == nil || !strings.Contains(err.Error(), "moon") {
		t.Errorf("peer = %v, err = %v", p, err)
	}
	// Without the selector that it has, either would be for the whole namespace.
	newer := map[string]any{"matchExpressions": []any{map[string]any{"key": "app", "operator": "Exists"}}}
	for action, rules := range map[string]int{"ALLOW": 0, "DENY": 1} {
		p, err := keepAuthorization(policy("p", action, map[string]any{"selector": newer}))
		if p == nil || len(p.Spec.GetRules()) != rules || err == nil || !strings.Contains(err.Error(), "matchExpressions") {
			t.Errorf("%s with a selector that we do not know: %v, %v", action, p, err)
		}
	}
	peer.Object["spec"] = map[string]any{"mtls": map[string]any{"mode": "DISABLE"}, "selector": newer}
	if p, err := keepPeerAuthentication(peer); p == nil || p.Spec.GetMtls().GetMode().String() != "STRICT" || err == nil || !strings.Contains(err.Error(), "mTLS only") {
		t.Errorf("peer = %v, err = %v", p, err)
	}
	// What narrows need not be called so.
	peer.Object["spec"] = map[string]any{"mtls": map[string]any{"mode": "PERMISSIVE"}, "targetRefs": []any{map[string]any{"kind": "Service", "name": "web"}},
		"portLevelMtls": map[string]any{"80": map[string]any{"mode": "DISABLE"}}}
	if p, err := keepPeerAuthentication(peer); p == nil || p.Spec.GetMtls().GetMode().String() != "STRICT" || len(p.Spec.GetPortLevelMtls()) > 0 || err == nil || !strings.Contains(err.Error(), "targetRefs") {
		t.Errorf("peer = %v, err = %v", p, err)
	}
	peer.Object["spec"] = map[string]any{"mtls": map[string]any{"mode": "PERMISSIVE", "moon": 1}}
	if p, err := keepPeerAuthentication(peer); p == nil || p.Spec.GetMtls().GetMode().String() != "PERMISSIVE" || err == nil {
		t.Errorf("peer = %v, err = %v", p, err)
	}
	odd := policy("p", "DENY", nil)
	odd.Object["status"] = map[string]any{"conditions": "none"}
	if p, err := keepAuthorization(odd); p == nil || err != nil || len(p.Spec.GetRules()) != 1 {
		t.Errorf("with a status that makes no sense: %v, %v", p, err)
	}
	noSpec := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": map[string]any{"name": "p"}}}
	if p, err := keepAuthorization(noSpec); p == nil || err != nil {
		t.Errorf("without a spec: %v, %v", p, err)
	}
}

func TestPrune(t *testing.T) {
	yes := true
	full := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "web-abc-1", GenerateName: "web-abc-", Namespace: "app", UID: "1", ResourceVersion: "7",
			Labels: map[string]string{"app": "web"},
			Annotations: map[string]string{
				"ambient.istio.io/redirection": "enabled", "kubectl.kubernetes.io/last-applied-configuration": strings.Repeat("x", 5000),
				"sidecar.istio.io/status": strings.Repeat("y", 5000),
			},
			ManagedFields:   []metav1.ManagedFieldsEntry{{Manager: "kubelet"}},
			OwnerReferences: []metav1.OwnerReference{{Kind: "Other", Name: "o"}, {Kind: "ReplicaSet", Name: "web-abc", Controller: &yes}},
		},
		Spec: corev1.PodSpec{
			NodeName: "n1", ServiceAccountName: "web", HostNetwork: true, Volumes: []corev1.Volume{{Name: "v"}},
			Containers: []corev1.Container{
				{Name: "main", Image: "i", Env: []corev1.EnvVar{{Name: "SECRET"}}, Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80, Protocol: "TCP"}}, LivenessProbe: &corev1.Probe{PeriodSeconds: 3}},
				{Name: "side"},
			},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}},
			Conditions:        []corev1.PodCondition{{Type: corev1.PodScheduled, Status: "True"}, {Type: corev1.PodReady, Status: "True", Message: "m"}},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "main", ContainerID: "containerd://abc", Image: "i"}},
		},
	}
	meta := metav1.ObjectMeta{
		Name: "web-abc-1", GenerateName: "web-abc-", Namespace: "app", UID: "1", ResourceVersion: "7", Labels: map[string]string{"app": "web"},
		Annotations:     map[string]string{"ambient.istio.io/redirection": "enabled", "sidecar.istio.io/status": strings.Repeat("y", maxAnnotation)},
		OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "web-abc", Controller: &yes}},
	}
	port := []corev1.ContainerPort{{Name: "http", ContainerPort: 80, Protocol: "TCP"}}
	want := &corev1.Pod{
		ObjectMeta: meta,
		Spec:       corev1.PodSpec{NodeName: "n1", ServiceAccountName: "web", HostNetwork: true, Containers: []corev1.Container{{Name: "main", Ports: port}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: "True"}},
		},
	}
	once := podOf(full, false)
	if diff := cmp.Diff(want, once); diff != "" {
		t.Errorf("for the control plane (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(once, podOf(once, false)); diff != "" {
		t.Errorf("pruned again it is another pod:\n%s", diff)
	}
	want.Spec.Containers = []corev1.Container{{Name: "main", Ports: port, LivenessProbe: &corev1.Probe{PeriodSeconds: 3}}, {Name: "side"}}
	want.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: "True"}, {Type: corev1.PodReady, Status: "True"}}
	want.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", ContainerID: "containerd://abc"}}
	if diff := cmp.Diff(want, podOf(full, true)); diff != "" {
		t.Errorf("for its node (-want +got):\n%s", diff)
	}
}

// What is not kept of an object does not make a change of it.
func TestChangesThatCount(t *testing.T) {
	changes := 0
	pods := newTable(func(raw metav1.Object) (*corev1.Pod, error) { return podOf(raw.(*corev1.Pod), false), nil }, samePod, func() { changes++ })
	count := func(what string, want int, do func(*corev1.Pod)) {
		t.Helper()
		p := pod("a", "n1")
		do(p)
		before := changes
		if err := pods.Update(p); err != nil {
			t.Fatal(err)
		}
		if changes-before != want {
			t.Errorf("%s: %d changes, want %d", what, changes-before, want)
		}
	}
	count("new", 1, func(*corev1.Pod) {})
	count("the same", 0, func(p *corev1.Pod) { p.ResourceVersion = "8" })
	count("heartbeat", 0, func(p *corev1.Pod) {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.ContainersReady, Status: "True", LastProbeTime: metav1.Now()}}
	})
	count("ready", 1, func(p *corev1.Pod) {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: "True"}}
	})
	count("another pod of that name", 1, func(p *corev1.Pod) { p.UID = "other" })
	if err := pods.Replace([]any{pod("b", "n1"), pod("c", "n1")}, ""); err != nil {
		t.Fatal(err)
	}
	if n, synced := pods.count(); n != 2 || !synced || len(pods.all()) != 2 {
		t.Errorf("%d objects, synced %v, after the replacement", n, synced)
	}
}

func TestConnect(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := Connect(""); err == nil || !strings.Contains(err.Error(), "kubeconfig") {
		t.Errorf("outside of a cluster: %v", err)
	}
	missing := filepath.Join(t.TempDir(), "none")
	if _, err := Connect(missing); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("no file: %v", err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := `{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"k"}}],"clusters":[{"name":"k","cluster":{"server":"https://127.0.0.1:1"}}]}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := Connect(path)
	if err != nil || cfg.Host != "https://127.0.0.1:1" || cfg.QPS < 10 || !strings.HasPrefix(cfg.UserAgent, "warren-") {
		t.Errorf("config = %+v, err = %v", cfg, err)
	}
}

// Pods of one owner share what is the same, and nothing else.
func TestSiblings(t *testing.T) {
	yes := true
	make := func(name, version string, owner types.UID) *corev1.Pod {
		p := pod(name, "n1")
		p.Labels = map[string]string{"version": version}
		p.Spec.Containers = []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{{ContainerPort: 80}}}}
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "r", UID: owner, Controller: &yes}}
		return podOf(p, false)
	}
	s := newSiblings()
	a, b, c, d := s.share(make("a", "1", "r")), s.share(make("b", "1", "r")), s.share(make("c", "2", "r")), s.share(make("d", "1", "other"))
	a.Labels["probe"] = "a" // only a test may
	if b.Labels["probe"] == "" || &a.Spec.Containers[0] != &b.Spec.Containers[0] || &b.Spec.Containers[0] != &c.Spec.Containers[0] {
		t.Error("the same is there twice")
	}
	if c.Labels["version"] != "2" || c.Labels["probe"] != "" || d.Labels["probe"] != "" || b.Name != "b" {
		t.Errorf("labels %v of another version, %v of another owner", c.Labels, d.Labels)
	}
	for i := range 3 * maxSiblings {
		s.share(make("x", "1", types.UID(fmt.Sprint(i))))
	}
	if len(s.last) > maxSiblings {
		t.Errorf("%d owners are remembered", len(s.last))
	}
}
