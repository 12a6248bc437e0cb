package kube

import (
	"maps"
	"strings"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What is kept of an object is made anew, so that nothing holds on to the rest of it,
// and strings that many objects share are kept once.

// maxAnnotation bounds the annotations that are kept, which are words and short lists.
const maxAnnotation = 1024

// once returns a string's only copy.
func once(s string) string {
	if s == "" {
		return ""
	}
	return unique.Make(s).Value()
}

func labels(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[once(k)] = once(v)
	}
	return out
}

// annotations keeps those of the mesh, and that by which a static pod is known. Of one
// that is longer than any of ours the beginning is kept, which is no good value and is
// said to be none.
func annotations(m map[string]string) map[string]string {
	var out map[string]string
	for k, v := range m {
		if !strings.Contains(k, "istio.io/") && k != corev1.MirrorPodAnnotationKey {
			continue
		}
		if out == nil {
			out = make(map[string]string)
		}
		out[once(k)] = once(v[:min(len(v), maxAnnotation)])
	}
	return out
}

// metadata is the part of an object's metadata that is read.
func metadata(m *metav1.ObjectMeta) metav1.ObjectMeta {
	out := metav1.ObjectMeta{
		Name: m.Name, GenerateName: once(m.GenerateName), Namespace: once(m.Namespace), UID: m.UID,
		ResourceVersion: m.ResourceVersion, Generation: m.Generation,
		CreationTimestamp: m.CreationTimestamp, DeletionTimestamp: m.DeletionTimestamp,
		Labels: labels(m.Labels), Annotations: annotations(m.Annotations),
	}
	for _, o := range m.OwnerReferences {
		if o.Controller != nil && *o.Controller {
			out.OwnerReferences = []metav1.OwnerReference{{APIVersion: once(o.APIVersion), Kind: once(o.Kind), Name: once(o.Name), UID: o.UID, Controller: o.Controller}}
		}
	}
	return out
}

// podOf keeps what decides who is in the mesh and where traffic to it goes. For the
// node that the pod is on, also what tells its containers and their probes.
func podOf(p *corev1.Pod, onNode bool) *corev1.Pod {
	out := &corev1.Pod{
		ObjectMeta: metadata(&p.ObjectMeta),
		Spec: corev1.PodSpec{
			NodeName: once(p.Spec.NodeName), ServiceAccountName: once(p.Spec.ServiceAccountName), HostNetwork: p.Spec.HostNetwork,
			Containers: containers(p.Spec.Containers, onNode), InitContainers: containers(p.Spec.InitContainers, onNode),
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodPhase(once(string(p.Status.Phase))), PodIP: p.Status.PodIP,
		},
	}
	if len(p.Status.PodIPs) > 0 {
		out.Status.PodIPs = append(make([]corev1.PodIP, 0, len(p.Status.PodIPs)), p.Status.PodIPs...)
		if out.Status.PodIPs[0].IP == out.Status.PodIP {
			out.Status.PodIPs[0].IP = out.Status.PodIP
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady || onNode {
			out.Status.Conditions = append(out.Status.Conditions, corev1.PodCondition{Type: corev1.PodConditionType(once(string(c.Type))), Status: corev1.ConditionStatus(once(string(c.Status)))})
		}
	}
	if onNode {
		out.Spec.RestartPolicy, out.Status.QOSClass, out.Status.StartTime = p.Spec.RestartPolicy, p.Status.QOSClass, p.Status.StartTime
		out.Status.ContainerStatuses = containerStatuses(p.Status.ContainerStatuses)
		out.Status.InitContainerStatuses = containerStatuses(p.Status.InitContainerStatuses)
		out.Status.EphemeralContainerStatuses = containerStatuses(p.Status.EphemeralContainerStatuses)
	}
	return out
}

// containers keeps ports, which services name; containers without are of interest on
// their own node only.
func containers(list []corev1.Container, onNode bool) []corev1.Container {
	var out []corev1.Container
	for i := range list {
		c := &list[i]
		if len(c.Ports) == 0 && !onNode {
			continue
		}
		kept := corev1.Container{Name: once(c.Name), RestartPolicy: c.RestartPolicy}
		for _, p := range c.Ports {
			kept.Ports = append(kept.Ports, corev1.ContainerPort{Name: once(p.Name), ContainerPort: p.ContainerPort, Protocol: corev1.Protocol(once(string(p.Protocol)))})
		}
		if onNode {
			kept.LivenessProbe, kept.ReadinessProbe, kept.StartupProbe = c.LivenessProbe, c.ReadinessProbe, c.StartupProbe
		}
		out = append(out, kept)
	}
	return out
}

func containerStatuses(list []corev1.ContainerStatus) []corev1.ContainerStatus {
	var out []corev1.ContainerStatus
	for i := range list {
		s := &list[i]
		out = append(out, corev1.ContainerStatus{Name: once(s.Name), ContainerID: s.ContainerID, Ready: s.Ready, Started: s.Started, RestartCount: s.RestartCount})
	}
	return out
}

func namespaceOf(n *corev1.Namespace) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metadata(&n.ObjectMeta), Status: corev1.NamespaceStatus{Phase: n.Status.Phase}}
}

// nodeOf keeps labels, which say where a node is.
func nodeOf(n *corev1.Node) *corev1.Node { return &corev1.Node{ObjectMeta: metadata(&n.ObjectMeta)} }

// serviceOf keeps of the status what somebody made of the mesh's labels.
func serviceOf(s *corev1.Service) *corev1.Service {
	out := &corev1.Service{ObjectMeta: metadata(&s.ObjectMeta), Spec: s.Spec}
	for _, c := range s.Status.Conditions {
		if strings.HasPrefix(c.Type, "istio.io/") {
			out.Status.Conditions = append(out.Status.Conditions, c)
		}
	}
	return out
}

// sliceOf keeps who is behind a service and whether they are ready.
func sliceOf(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{ObjectMeta: metadata(&s.ObjectMeta), AddressType: s.AddressType, Ports: s.Ports}
	if len(s.Endpoints) > 0 {
		out.Endpoints = make([]discoveryv1.Endpoint, 0, len(s.Endpoints))
	}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		kept := discoveryv1.Endpoint{Addresses: e.Addresses, Conditions: e.Conditions, Hostname: e.Hostname}
		if r := e.TargetRef; r != nil {
			kept.TargetRef = &corev1.ObjectReference{Kind: once(r.Kind), Namespace: once(r.Namespace), Name: r.Name, UID: r.UID}
		}
		out.Endpoints = append(out.Endpoints, kept)
	}
	return out
}

// sameMeta compares what metadata keeps, but for the version: many a new version of an
// object is the same to us.
func sameMeta(a, b *metav1.ObjectMeta) bool {
	return a.UID == b.UID && a.DeletionTimestamp.Equal(b.DeletionTimestamp) &&
		maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Annotations, b.Annotations) &&
		equality.Semantic.DeepEqual(a.OwnerReferences, b.OwnerReferences)
}

func samePod(a, b *corev1.Pod) bool {
	return sameMeta(&a.ObjectMeta, &b.ObjectMeta) && equality.Semantic.DeepEqual(&a.Spec, &b.Spec) && equality.Semantic.DeepEqual(&a.Status, &b.Status)
}

func sameNamespace(a, b *corev1.Namespace) bool {
	return sameMeta(&a.ObjectMeta, &b.ObjectMeta) && a.Status.Phase == b.Status.Phase
}

func sameNode(a, b *corev1.Node) bool { return sameMeta(&a.ObjectMeta, &b.ObjectMeta) }

func sameService(a, b *corev1.Service) bool {
	return sameMeta(&a.ObjectMeta, &b.ObjectMeta) && equality.Semantic.DeepEqual(&a.Spec, &b.Spec) && equality.Semantic.DeepEqual(&a.Status, &b.Status)
}

func sameSlice(a, b *discoveryv1.EndpointSlice) bool {
	return sameMeta(&a.ObjectMeta, &b.ObjectMeta) && a.AddressType == b.AddressType &&
		equality.Semantic.DeepEqual(a.Ports, b.Ports) && equality.Semantic.DeepEqual(a.Endpoints, b.Endpoints)
}
