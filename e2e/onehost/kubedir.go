package onehost

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

// kubeDir is the folder of Kubernetes YAML that stands in place of the API
// server: one file an object, replaced atomically.
type kubeDir struct {
	path string
	also ControlPlane // is told of everything; nil: nobody
}

func (k kubeDir) file(kind, namespace, name string) string {
	return filepath.Join(k.path, strings.ToLower(kind)+"-"+namespace+"-"+name+".yaml")
}

// write puts one document in place. Its readers see the old file or the new.
func (k kubeDir) write(file string, doc []byte) error {
	tmp := filepath.Join(filepath.Dir(k.path), filepath.Base(file)+".tmp")
	if err := os.WriteFile(tmp, doc, 0o644); err != nil {
		return err
	}
	if err := os.Rename(tmp, file); err != nil || k.also == nil {
		return err
	}
	return k.also.Put(doc)
}

func (k kubeDir) putObject(kind, namespace, name string, obj any) error {
	doc, err := yaml.Marshal(obj)
	if err != nil {
		return fmt.Errorf("%s %s/%s: %w", kind, namespace, name, err)
	}
	return k.write(k.file(kind, namespace, name), doc)
}

func (k kubeDir) remove(kind, namespace, name string) error {
	if err := os.Remove(k.file(kind, namespace, name)); err != nil || k.also == nil {
		return err
	}
	return k.also.Gone(kind, namespace, name)
}

func (k kubeDir) putPod(p *Pod) error {
	pod := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Name: p.Spec.Name, Namespace: p.Spec.Namespace, UID: types.UID(p.UID), Labels: p.Spec.Labels,
			Annotations: p.Spec.Annotations,
		},
		Spec: corev1.PodSpec{
			NodeName: p.node.Name, ServiceAccountName: p.Spec.ServiceAccount,
			Containers: []corev1.Container{{Name: "app", Image: "app"}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodPending},
	}
	if len(p.IPs) > 0 {
		pod.Status.Phase = corev1.PodRunning
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		if p.unready {
			pod.Status.Conditions[0].Status = corev1.ConditionFalse
		}
		pod.Status.PodIP = p.IPs[0].String()
		for _, ip := range p.IPs {
			pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: ip.String()})
		}
	}
	return k.putObject("Pod", p.Spec.Namespace, p.Spec.Name, pod)
}
