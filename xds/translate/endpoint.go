package translate

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/warren-mesh/warren/xds/workload"
)

// podServices lists the services that a pod is an endpoint of, with the port behind
// each of their ports: those of its namespace whose selector has it, and those without
// a selector whose EndpointSlices name it.
func (b *builder) podServices(pod *corev1.Pod) map[workload.NamespacedHostname]workload.PortMap {
	out := make(map[workload.NamespacedHostname]workload.PortMap)
	for _, svc := range b.services[pod.Namespace] {
		if len(svc.Spec.Selector) > 0 && subset(svc.Spec.Selector, pod.Labels) {
			out[b.key(svc)] = podPorts(svc, pod)
		}
	}
	for _, slice := range b.targets[objectName(pod.Namespace, pod.Name)] {
		// A slice does not make a pod of another namespace an endpoint: whoever may write
		// one there would speak for that pod's owners.
		if svc := b.serviceOf(slice); slice.Namespace == pod.Namespace && svc != nil && len(svc.Spec.Selector) == 0 {
			out[b.key(svc)] = slicePorts(svc, slice)
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// podPorts finds the pod's port behind each port of a service. A port that is named
// after one that the pod does not have is left out.
func podPorts(svc *corev1.Service, pod *corev1.Pod) workload.PortMap {
	var list []workload.Port
	for _, p := range tcpFirst(svc.Spec.Ports) {
		target := numericTarget(p)
		if target == 0 {
			target = namedPort(pod, p.TargetPort.StrVal, p.Protocol)
		}
		if target != 0 {
			list = append(list, workload.Port{Service: uint16(p.Port), Target: target})
		}
	}
	return workload.NewPortMap(list...)
}

// namedPort looks a port up by name in the containers that run as long as the pod, 0
// when there is none.
func namedPort(pod *corev1.Pod, name string, protocol corev1.Protocol) uint16 {
	containers := pod.Spec.Containers
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			containers = append(containers[:len(containers):len(containers)], c)
		}
	}
	for _, c := range containers {
		for _, p := range c.Ports {
			if p.Name == name && isTCP(p.Protocol) == isTCP(protocol) && isPort(p.ContainerPort) {
				return uint16(p.ContainerPort)
			}
		}
	}
	return 0
}

// slicePorts pairs the ports of a service with those of a slice of it, by name.
func slicePorts(svc *corev1.Service, slice *discoveryv1.EndpointSlice) workload.PortMap {
	var list []workload.Port
	for _, p := range tcpFirst(svc.Spec.Ports) {
		for _, sp := range slice.Ports {
			name, protocol := "", corev1.Protocol("")
			if sp.Name != nil {
				name = *sp.Name
			}
			if sp.Protocol != nil {
				protocol = *sp.Protocol
			}
			if name == p.Name && isTCP(protocol) && isTCP(p.Protocol) && sp.Port != nil && isPort(*sp.Port) {
				list = append(list, workload.Port{Service: uint16(p.Port), Target: uint16(*sp.Port)})
				break
			}
		}
	}
	return workload.NewPortMap(list...)
}

// serviceOf returns the service that a slice belongs to, nil when it is not known.
func (b *builder) serviceOf(slice *discoveryv1.EndpointSlice) *corev1.Service {
	name := slice.Labels[discoveryv1.LabelServiceName]
	for _, svc := range b.services[slice.Namespace] {
		if svc.Name == name {
			return svc
		}
	}
	return nil
}

// podOf names the pod behind an endpoint, empty when it is none.
func podOf(namespace string, e *discoveryv1.Endpoint) string {
	if e.TargetRef == nil || e.TargetRef.Kind != "Pod" {
		return ""
	}
	return objectName(orElse(e.TargetRef.Namespace, namespace), e.TargetRef.Name)
}

// sliceWorkloads translates the endpoints of a slice that are not pods: something
// outside, under an address that others may share, without identity or policies. Only
// the first address counts, since all of one endpoint are the same.
func (b *builder) sliceWorkloads(slice *discoveryv1.EndpointSlice) []*workload.Workload {
	svc := b.serviceOf(slice)
	if svc == nil || svc.Spec.Type == corev1.ServiceTypeExternalName || slice.AddressType == discoveryv1.AddressTypeFQDN {
		return nil
	}
	report := b.reporter("EndpointSlice", slice.Namespace, slice.Name)
	var out []*workload.Workload
	seen := make(map[netip.Addr]bool)
	for i := range slice.Endpoints {
		e := &slice.Endpoints[i]
		if podOf(slice.Namespace, e) != "" || len(e.Addresses) == 0 {
			continue
		}
		a, err := address(e.Addresses[0])
		if err != nil {
			report(fmt.Sprintf("endpoints[%d].addresses[0]", i), err.Error())
			continue
		}
		if seen[a] {
			report(fmt.Sprintf("endpoints[%d].addresses[0]", i), fmt.Sprintf("%s is also an endpoint before: left out", e.Addresses[0]))
			continue
		}
		seen[a] = true
		w := &workload.Workload{
			UID:         fmt.Sprintf("%s/discovery.k8s.io/EndpointSlice/%s/%s/%s", b.opts.ClusterID, slice.Namespace, slice.Name, e.Addresses[0]),
			Name:        svc.Name,
			Namespace:   slice.Namespace,
			Addresses:   []netip.Addr{a},
			Network:     b.network,
			NetworkMode: workload.HostNetwork,
			TrustDomain: b.opts.TrustDomain,
			ClusterID:   b.opts.ClusterID,
			Type:        workload.Pod,
			Services:    map[workload.NamespacedHostname]workload.PortMap{b.key(svc): slicePorts(svc, slice)},
		}
		if e.Conditions.Ready != nil && !*e.Conditions.Ready {
			w.Status = workload.Unhealthy
		}
		out = append(out, w)
	}
	return out
}
