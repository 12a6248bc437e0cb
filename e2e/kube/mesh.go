package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"

	"github.com/warren-mesh/warren/nodeagent"
)

// The names of the mesh's own objects.
const (
	SystemNamespace  = "warren-system"
	AgentDaemonSet   = "warren-nodeagent"
	ProxyDaemonSet   = "ztunnel"
	ControlPlane     = "warren-controlplane"
	proxyContainer   = "istio-proxy"
	proxyMetricsPort = 15020
)

// Mesh is the mesh on a cluster.
type Mesh struct {
	*Cluster
	Objects Objects // the rendered manifests
}

// Manifests reads what $E2E_MANIFESTS names; nil where it is not set.
func Manifests() (Objects, error) {
	path := os.Getenv("E2E_MANIFESTS")
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	all, err := ParseObjects(text)
	if err != nil {
		return nil, fmt.Errorf("E2E_MANIFESTS=%s: %w", path, err)
	}
	return all, nil
}

// Install applies everything and waits until it is up.
func (m *Mesh) Install(ctx context.Context) error {
	if err := m.Apply(ctx, m.Objects); err != nil {
		return err
	}
	return m.WaitUp(ctx, 3*time.Minute)
}

// Uninstall deletes everything in the order of the manifests turned round and waits
// until it is gone.
func (m *Mesh) Uninstall(ctx context.Context) error {
	if err := m.Delete(ctx, m.Objects.Reversed()); err != nil {
		return err
	}
	return Until(ctx, 2*time.Minute, "the mesh's objects are gone", func(ctx context.Context) error { return m.Gone(ctx, m.Objects) })
}

// WaitUp waits until the control plane and both DaemonSets are up to date and ready.
func (m *Mesh) WaitUp(ctx context.Context, within time.Duration) error {
	return Until(ctx, within, "the mesh is up", func(ctx context.Context) error {
		d, err := m.AppsV1().Deployments(SystemNamespace).Get(ctx, ControlPlane, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if err := deploymentUp(d); err != nil {
			return m.explain(ctx, err, "app="+ControlPlane)
		}
		for _, name := range []string{AgentDaemonSet, ProxyDaemonSet} {
			ds, err := m.AppsV1().DaemonSets(SystemNamespace).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if err := daemonSetUp(ds); err != nil {
				return m.explain(ctx, err, metav1.FormatLabelSelector(ds.Spec.Selector))
			}
		}
		return nil
	})
}

func deploymentUp(d *appsv1.Deployment) error {
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	if s := d.Status; s.ObservedGeneration < d.Generation || s.UpdatedReplicas != want || s.ReadyReplicas != want || s.Replicas != want {
		return fmt.Errorf("deployment %s: %d of %d ready, %d up to date", d.Name, s.ReadyReplicas, want, s.UpdatedReplicas)
	}
	return nil
}

func daemonSetUp(d *appsv1.DaemonSet) error {
	if s := d.Status; s.ObservedGeneration < d.Generation || s.DesiredNumberScheduled == 0 || s.NumberReady != s.DesiredNumberScheduled ||
		s.UpdatedNumberScheduled != s.DesiredNumberScheduled {
		return fmt.Errorf("DaemonSet %s: %d of %d ready, %d up to date", d.Name, s.NumberReady, s.DesiredNumberScheduled, s.UpdatedNumberScheduled)
	}
	return nil
}

// explain adds why the first pod that is not ready is not.
func (m *Mesh) explain(ctx context.Context, err error, selector string) error {
	pods, listErr := m.CoreV1().Pods(SystemNamespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if listErr != nil {
		return err
	}
	for i := range pods.Items {
		if p := &pods.Items[i]; !PodReady(p) {
			return fmt.Errorf("%w: pod %s on %s: %s", err, p.Name, p.Spec.NodeName, m.why(ctx, p))
		}
	}
	return err
}

// Rollout restarts a DaemonSet or the Deployment as kubectl rollout restart does, and
// waits for its end.
func (m *Mesh) Rollout(ctx context.Context, name string) error {
	patch := fmt.Appendf(nil, `{"spec":{"template":{"metadata":{"annotations":{"e2e/restarted":%q}}}}}`, time.Now().Format(time.RFC3339Nano))
	var err error
	if name == ControlPlane {
		_, err = m.AppsV1().Deployments(SystemNamespace).Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	} else {
		_, err = m.AppsV1().DaemonSets(SystemNamespace).Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil {
		return err
	}
	return m.WaitUp(ctx, 5*time.Minute)
}

// Scale sets the control plane's replicas and waits until they are so many.
func (m *Mesh) Scale(ctx context.Context, replicas int) error {
	patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas)
	_, err := m.AppsV1().Deployments(SystemNamespace).Patch(ctx, ControlPlane, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return err
	}
	return Until(ctx, 2*time.Minute, fmt.Sprintf("the control plane has %d replicas", replicas), func(ctx context.Context) error {
		pods, err := m.CoreV1().Pods(SystemNamespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + ControlPlane})
		if err != nil {
			return err
		}
		n := 0
		for i := range pods.Items {
			if replicas == 0 || PodReady(&pods.Items[i]) {
				n++
			}
		}
		if n != replicas {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
}

// PodsOn are the mesh's own pods of one DaemonSet on a node, newest last.
func (m *Mesh) PodsOn(ctx context.Context, daemonSet, node string) ([]corev1.Pod, error) {
	ds, err := m.AppsV1().DaemonSets(SystemNamespace).Get(ctx, daemonSet, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	pods, err := m.CoreV1().Pods(SystemNamespace).List(ctx, metav1.ListOptions{
		LabelSelector: metav1.FormatLabelSelector(ds.Spec.Selector),
		FieldSelector: fields.OneTermEqualSelector("spec.nodeName", node).String(),
	})
	if err != nil {
		return nil, err
	}
	var live []corev1.Pod
	for _, p := range pods.Items {
		if p.DeletionTimestamp == nil {
			live = append(live, p)
		}
	}
	if len(live) == 0 {
		return nil, fmt.Errorf("no pod of %s on %s", daemonSet, node)
	}
	return live, nil
}

// NodeStatus is what `nodeagent status` says on a node.
func (m *Mesh) NodeStatus(ctx context.Context, node string) (nodeagent.Status, error) {
	var st nodeagent.Status
	pods, err := m.PodsOn(ctx, AgentDaemonSet, node)
	if err != nil {
		return st, err
	}
	// It exits with 1 on a degraded node, and says all the same what is wrong.
	text, err := m.Exec(ctx, SystemNamespace, pods[0].Name, "", "nodeagent", "status", "-o", "json")
	if jsonErr := json.Unmarshal([]byte(text), &st); jsonErr != nil {
		return st, errors.Join(err, jsonErr)
	}
	return st, nil
}

// PodStatus is what the agent of its node says of a pod.
func (m *Mesh) PodStatus(ctx context.Context, pod *corev1.Pod) (nodeagent.PodStatus, error) {
	st, err := m.NodeStatus(ctx, pod.Spec.NodeName)
	if err != nil {
		return nodeagent.PodStatus{}, err
	}
	for _, p := range st.Pods {
		if p.UID == string(pod.UID) {
			return p, nil
		}
	}
	return nodeagent.PodStatus{}, fmt.Errorf("nodeagent status on %s does not know %s/%s", pod.Spec.NodeName, pod.Namespace, pod.Name)
}

// WaitJob waits until a Job has succeeded.
func (m *Mesh) WaitJob(ctx context.Context, namespace, name string, within time.Duration) error {
	return Until(ctx, within, "job "+name+" succeeds", func(ctx context.Context) error {
		j, err := m.BatchV1().Jobs(namespace).Get(ctx, name, metav1.GetOptions{})
		if err == nil && j.Status.Succeeded == 0 {
			err = fmt.Errorf("%d active, %d failed", j.Status.Active, j.Status.Failed)
		}
		return err
	})
}
