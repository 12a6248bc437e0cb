package translate

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/warren-mesh/warren/xds/workload"
)

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
func (f *front) slicePorts(slice *discoveryv1.EndpointSlice) workload.PortMap {
	var list []workload.Port
	for _, p := range f.ports {
		for _, sp := range slice.Ports {
			name, protocol := "", corev1.Protocol("")
			if sp.Name != nil {
				name = *sp.Name
			}
			if sp.Protocol != nil {
				protocol = *sp.Protocol
			}
			if name == p.name && isTCP(protocol) && isTCP(p.protocol) && sp.Port != nil && isPort(*sp.Port) {
				list = append(list, workload.Port{Service: p.number, Target: uint16(*sp.Port)})
				break
			}
		}
	}
	return workload.NewPortMap(list...)
}

// frontOfSlice returns the service that a slice belongs to, nil when it is not known.
func (b *builder) frontOfSlice(slice *discoveryv1.EndpointSlice) *front {
	return b.byService[objectName(slice.Namespace, slice.Labels[discoveryv1.LabelServiceName])]
}

// podOf names the pod behind an endpoint, empty when it is none.
func podOf(namespace string, e *discoveryv1.Endpoint) string {
	if e.TargetRef == nil || e.TargetRef.Kind != "Pod" {
		return ""
	}
	return objectName(orElse(e.TargetRef.Namespace, namespace), e.TargetRef.Name)
}

// sliceWorkloads translates the endpoints of a slice that are not pods: something
// outside, under addresses that others may share, without identity or policies. An
// endpoint goes by its first address.
func (b *builder) sliceWorkloads(slice *discoveryv1.EndpointSlice) []*workload.Workload {
	f := b.frontOfSlice(slice)
	if f == nil || slice.AddressType == discoveryv1.AddressTypeFQDN {
		return nil
	}
	ports := f.slicePorts(slice)
	report := b.reporter("EndpointSlice", slice.Namespace, slice.Name)
	var out []*workload.Workload
	seen := make(map[netip.Addr]bool)
	for i := range slice.Endpoints {
		e := &slice.Endpoints[i]
		if podOf(slice.Namespace, e) != "" || len(e.Addresses) == 0 {
			continue
		}
		addresses := sliceAddresses(e.Addresses, func(n int, reason string) {
			report(fmt.Sprintf("endpoints[%d].addresses[%d]", i, n), reason)
		})
		if len(addresses) == 0 {
			continue
		}
		if seen[addresses[0]] {
			report(fmt.Sprintf("endpoints[%d].addresses[0]", i), fmt.Sprintf("%s is also an endpoint before: left out", e.Addresses[0]))
			continue
		}
		seen[addresses[0]] = true
		w := &workload.Workload{
			UID:         fmt.Sprintf("%s/discovery.k8s.io/EndpointSlice/%s/%s/%s", b.opts.ClusterID, slice.Namespace, slice.Name, e.Addresses[0]),
			Name:        slice.Name,
			Namespace:   slice.Namespace,
			Addresses:   addresses,
			Network:     b.network,
			NetworkMode: workload.HostNetwork,
			TrustDomain: b.opts.TrustDomain,
			ClusterID:   b.opts.ClusterID,
			Type:        workload.Pod,
			Services:    workload.Memberships{{Service: f.keys[0], Ports: ports}},
		}
		if e.Conditions.Ready != nil && !*e.Conditions.Ready {
			w.Status = workload.Unhealthy
		}
		out = append(out, w)
	}
	return out
}

// sliceAddresses reads the addresses of an endpoint, none if the first, by which it goes,
// is wrong.
func sliceAddresses(texts []string, report func(n int, reason string)) (out []netip.Addr) {
	for n, text := range texts {
		switch a, err := address(text); {
		case err != nil:
			report(n, err.Error())
			if n == 0 {
				return nil
			}
		case !slices.Contains(out, a):
			out = append(out, a)
		}
	}
	return out
}
