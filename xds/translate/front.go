package translate

import (
	"math"

	apinetworking "istio.io/api/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"

	"github.com/warren-mesh/warren/xds/workload"
)

// front is what endpoints stand behind: a Service, or a ServiceEntry with all its hosts.
type front struct {
	keys     []workload.NamespacedHostname // one, or one a host
	selector map[string]string             // of its endpoints; empty for those that are named otherwise
	ports    []frontPort
	service  *corev1.Service // nil for a ServiceEntry
}

// frontPort is a port as clients see it, and how an endpoint's port behind it is found.
type frontPort struct {
	number   uint16
	target   uint16 // 0: named
	name     string // of this port
	named    string // what the endpoint calls its port, if target is 0
	protocol corev1.Protocol
}

// frontOf is how endpoints see a Service.
func (b *builder) frontOf(svc *corev1.Service) *front {
	f := &front{keys: []workload.NamespacedHostname{b.key(svc)}, selector: svc.Spec.Selector, service: svc}
	for _, p := range tcpFirst(svc.Spec.Ports) {
		f.ports = append(f.ports, frontPort{number: uint16(p.Port), target: numericTarget(p), name: p.Name, named: p.TargetPort.StrVal, protocol: p.Protocol})
	}
	return f
}

// selects reports whether something with these labels is an endpoint.
func (f *front) selects(labels map[string]string) bool {
	return len(f.selector) > 0 && subset(f.selector, labels)
}

// behind adds a front to the services of an endpoint. The ports are shared, whatever the
// number of hosts.
func (f *front) behind(to map[workload.NamespacedHostname]workload.PortMap, ports workload.PortMap) {
	for _, key := range f.keys {
		to[key] = ports
	}
}

// podPorts finds the pod's port behind each port. One of a Service that is named after a
// port that the pod does not have is left out. A ServiceEntry cannot name a port of its
// endpoints: a port of the pod that is called like its own goes before its number.
func (f *front) podPorts(pod *corev1.Pod) workload.PortMap {
	list := make([]workload.Port, 0, len(f.ports))
	for _, p := range f.ports {
		target := p.target
		switch {
		case f.service == nil && p.name != "":
			if n := namedPort(pod, p.name, p.protocol); n != 0 {
				target = n
			}
		case target == 0:
			target = namedPort(pod, p.named, p.protocol)
		}
		if target != 0 {
			list = append(list, workload.Port{Service: p.number, Target: target})
		}
	}
	return workload.NewPortMap(list...)
}

// entryPorts finds the port of a WorkloadEntry behind each port. Its own ports go by name:
// by that of the endpoint's port where a Service names one, else by that of the port. A
// port with a number that makes no sense is left out.
func (f *front) entryPorts(ports map[string]uint32) workload.PortMap {
	list := make([]workload.Port, 0, len(f.ports))
	for _, p := range f.ports {
		target := uint32(p.target)
		name := p.name
		if p.target == 0 {
			name = p.named
		}
		if own, ok := ports[name]; ok && name != "" {
			target = own
		}
		if target != 0 && target <= math.MaxUint16 {
			list = append(list, workload.Port{Service: p.number, Target: uint16(target)})
		}
	}
	return workload.NewPortMap(list...)
}

// podServices lists the services that a pod is an endpoint of, with the port behind
// each of their ports: those of its namespace whose selector has it, and those without
// a selector whose EndpointSlices name it.
func (b *builder) podServices(pod *corev1.Pod) workload.Memberships {
	out := make(map[workload.NamespacedHostname]workload.PortMap)
	for _, f := range b.fronts[pod.Namespace] {
		if f.selects(pod.Labels) {
			f.behind(out, f.podPorts(pod))
		}
	}
	for _, slice := range b.slices[objectName(pod.Namespace, pod.Name)] {
		// A slice does not make a pod of another namespace an endpoint: whoever may write
		// one there would speak for that pod's owners.
		if f := b.frontOfSlice(slice); slice.Namespace == pod.Namespace && f != nil && len(f.selector) == 0 {
			f.behind(out, f.slicePorts(slice))
		}
	}
	return workload.NewMemberships(out)
}

// entryServices lists the services that select a WorkloadEntry.
func (b *builder) entryServices(namespace string, labels map[string]string, spec *apinetworking.WorkloadEntry) workload.Memberships {
	out := make(map[workload.NamespacedHostname]workload.PortMap)
	for _, f := range b.fronts[namespace] {
		if f.selects(labels) {
			f.behind(out, f.entryPorts(spec.GetPorts()))
		}
	}
	return workload.NewMemberships(out)
}
