package kube

import (
	"context"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// IstioAgent is the name of the DaemonSet of Istio's CNI, by which it is known.
const IstioAgent = "istio-cni-node"

// The containers that WithTools adds, and what lies in the agent's image.
const (
	toolsContainer = "tools"
	toolsFolder    = "/e2e-tools"
)

// Form is a way in which Istio's agent programs a pod.
type Form struct {
	Name     string
	programs map[string]string // by family, the multi-call binary's; none: without any
}

// Forms are those that the tests write themselves.
func Forms() []Form {
	return []Form{{Name: "iptables-nft", programs: map[string]string{"4": "iptables-nft", "6": "ip6tables-nft"}},
		{Name: "iptables-legacy", programs: map[string]string{"4": "iptables-legacy", "6": "ip6tables-legacy"}}, {Name: "nftables"}}
}

// WithTools makes a pod that can program its own network namespace as Istio's agent
// does: beside the application there are iptables, out of the image of our agent.
func (m *Mesh) WithTools(s PodSpec) PodSpec {
	image := ""
	for _, o := range m.Objects.Named("DaemonSet/" + AgentDaemonSet) {
		image = firstImage(o.Object)
	}
	before := s.Mutate
	s.Mutate = func(p *corev1.Pod) {
		if before != nil {
			before(p)
		}
		mount := []corev1.VolumeMount{{Name: "tools", MountPath: toolsFolder}}
		root := int64(0)
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "tools", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
		p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{
			Name: "lend", Image: AppImage(), ImagePullPolicy: corev1.PullNever, Command: []string{AppPath, "lend", toolsFolder + "/meshapp"}, VolumeMounts: mount,
		})
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{
			Name: toolsContainer, Image: image, ImagePullPolicy: corev1.PullNever, Command: []string{toolsFolder + "/meshapp", "sleep", "36000"}, VolumeMounts: mount,
			Env:             []corev1.EnvVar{{Name: "XTABLES_LOCKFILE", Value: toolsFolder + "/xtables.lock"}},
			SecurityContext: &corev1.SecurityContext{RunAsUser: &root, Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN", "NET_RAW"}}},
		})
	}
	return s
}

func firstImage(object map[string]any) string {
	spec, _ := object["spec"].(map[string]any)
	template, _ := spec["template"].(map[string]any)
	pod, _ := template["spec"].(map[string]any)
	containers, _ := pod["containers"].([]any)
	if len(containers) == 0 {
		return ""
	}
	first, _ := containers[0].(map[string]any)
	image, _ := first["image"].(string)
	return image
}

// AsIstio programs a pod as Istio's agent does, and says so on its object.
func (m *Mesh) AsIstio(ctx context.Context, pod *corev1.Pod, form Form) error {
	for family, program := range form.programs {
		if _, err := m.tool(ctx, pod, "feed", istioDocument(family), program+"-restore", "--noflush"); err != nil {
			return err
		}
	}
	if len(form.programs) == 0 {
		if _, err := m.tool(ctx, pod, "istio-tables"); err != nil {
			return err
		}
	}
	if _, err := m.tool(ctx, pod, "istio-routes"); err != nil {
		return err
	}
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{"ambient.istio.io/redirection":"enabled"}}}`)
	_, err := m.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

func (m *Mesh) tool(ctx context.Context, pod *corev1.Pod, args ...string) (string, error) {
	return m.Exec(ctx, pod.Namespace, pod.Name, toolsContainer, append([]string{toolsFolder + "/meshapp"}, args...)...)
}

// Chains are the names of all chains of either mesh in a pod, with the variant of
// iptables that has them.
func (m *Mesh) Chains(ctx context.Context, pod *corev1.Pod) (found []string, err error) {
	for _, program := range []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"} {
		text, err := m.tool(ctx, pod, "feed", "", program+"-save")
		if err != nil {
			return nil, err
		}
		table := ""
		for l := range strings.Lines(text) {
			switch name, _, _ := strings.Cut(strings.TrimSpace(l), " "); {
			case strings.HasPrefix(l, "*"):
				table = strings.TrimSpace(l[1:])
			case strings.HasPrefix(l, ":ISTIO_"), strings.HasPrefix(l, ":WARREN_"):
				found = append(found, program+" "+table+" "+name[1:])
			}
		}
	}
	return found, nil
}

// Tables are the nftables tables of either mesh in a pod, made without iptables.
func (m *Mesh) Tables(ctx context.Context, pod *corev1.Pod) (found []string, err error) {
	text, err := m.tool(ctx, pod, "tables")
	for _, name := range strings.Fields(text) {
		if strings.HasPrefix(name, "istio-ambient-") || strings.HasPrefix(name, "warren") {
			found = append(found, name)
		}
	}
	return found, err
}

// istioDocument is what Istio's agent feeds to iptables-restore for a pod.
func istioDocument(family string) string {
	probe, loopback := "169.254.7.127", "127.0.0.1/32"
	if family == "6" {
		probe, loopback = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff", "::1/128"
	}
	return strings.NewReplacer("PROBE", probe, "LOOPBACK", loopback).Replace(`*mangle
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
COMMIT
*nat
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A OUTPUT -j ISTIO_OUTPUT
-A PREROUTING -j ISTIO_PRERT
-A ISTIO_PRERT -s PROBE -p tcp -m tcp -j ACCEPT
-A ISTIO_OUTPUT -d PROBE -p tcp -m tcp -j ACCEPT
-A ISTIO_PRERT ! -d LOOPBACK -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
-A ISTIO_OUTPUT ! -d LOOPBACK -o lo -j ACCEPT
-A ISTIO_OUTPUT ! -d LOOPBACK -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
COMMIT
`)
}

// StartIstioAgent runs what looks like Istio's agent on every node. It does nothing.
func (m *Mesh) StartIstioAgent(ctx context.Context, namespace string) error {
	pod := PodSpec{Namespace: namespace, Name: IstioAgent, Account: "istio-cni", Labels: map[string]string{"k8s-app": IstioAgent, "istio.io/dataplane-mode": "none"}}.Pod()
	pod.Spec.Containers[0].Command = []string{AppPath, "sleep", "36000"}
	if err := m.Account(ctx, namespace, "istio-cni"); err != nil {
		return err
	}
	_, err := m.AppsV1().DaemonSets(namespace).Create(ctx, &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: IstioAgent},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"k8s-app": IstioAgent}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels}, Spec: pod.Spec},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	return Until(ctx, 2*time.Minute, IstioAgent+" is up", func(ctx context.Context) error {
		ds, err := m.AppsV1().DaemonSets(namespace).Get(ctx, IstioAgent, metav1.GetOptions{})
		if err != nil {
			return err
		}
		return daemonSetUp(ds)
	})
}

// StopIstioAgent takes it away, if it is there.
func (m *Mesh) StopIstioAgent(ctx context.Context, namespace string) error {
	how := metav1.DeletePropagationForeground
	if err := m.AppsV1().DaemonSets(namespace).Delete(ctx, IstioAgent, metav1.DeleteOptions{PropagationPolicy: &how}); err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	return Until(ctx, 2*time.Minute, IstioAgent+" is gone", func(ctx context.Context) error {
		l, err := m.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "k8s-app=" + IstioAgent})
		if err == nil && len(l.Items) > 0 {
			err = fmt.Errorf("%d pods are left", len(l.Items))
		}
		return err
	})
}
