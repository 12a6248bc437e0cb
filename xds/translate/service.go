package translate

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/warren-mesh/warren/xds/workload"
)

const annotationDistribution = "networking.istio.io/traffic-distribution"

// service translates a Service; nil is one that has no traffic of its own.
func (b *builder) service(svc *corev1.Service) *workload.Service {
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	report := b.reporter("Service", svc.Namespace, svc.Name)
	key := b.key(svc)
	var ports []workload.Port
	for i, p := range svc.Spec.Ports {
		if !isPort(p.Port) || p.TargetPort.StrVal == "" && p.TargetPort.IntVal != 0 && !isPort(p.TargetPort.IntVal) {
			report(fmt.Sprintf("spec.ports[%d]", i), "not a port number: left out")
		}
	}
	for _, p := range tcpFirst(svc.Spec.Ports) {
		ports = append(ports, workload.Port{Service: uint16(p.Port), Target: numericTarget(p), AppProtocol: appProtocol(p)})
	}
	s := &workload.Service{
		Name:          svc.Name,
		Namespace:     key.Namespace,
		Hostname:      key.Hostname,
		VIPs:          b.serviceAddresses(svc, report),
		Ports:         workload.NewPortMap(ports...),
		LoadBalancing: b.loadBalancing(svc, report),
		IPFamilies:    families(svc.Spec.IPFamilies),
		Canonical:     true,
	}
	b.bindService(s, "Service", &svc.ObjectMeta)
	return s
}

// key is what a service goes by among the resources and in its workloads.
func (b *builder) key(svc *corev1.Service) workload.NamespacedHostname {
	return workload.NamespacedHostname{
		Namespace: svc.Namespace,
		Hostname:  strings.ToLower(svc.Name + "." + svc.Namespace + ".svc." + b.opts.Domain),
	}
}

func (b *builder) serviceAddresses(svc *corev1.Service, report reporter) []workload.NetworkAddr {
	ips := svc.Spec.ClusterIPs
	if len(ips) == 0 && svc.Spec.ClusterIP != "" {
		ips = []string{svc.Spec.ClusterIP}
	}
	var out []workload.NetworkAddr
	for i, ip := range ips {
		if ip == corev1.ClusterIPNone || ip == "" {
			continue
		}
		a, err := address(ip)
		if err != nil {
			report(fmt.Sprintf("spec.clusterIPs[%d]", i), err.Error())
			continue
		}
		out = append(out, workload.NetworkAddr{Network: b.network, Addr: a})
	}
	return out
}

func families(list []corev1.IPFamily) workload.IPFamilies {
	switch {
	case len(list) > 1:
		return workload.Dual
	case len(list) == 1 && list[0] == corev1.IPv4Protocol:
		return workload.IPv4Only
	case len(list) == 1 && list[0] == corev1.IPv6Protocol:
		return workload.IPv6Only
	}
	return workload.Automatic
}

func isPort(n int32) bool { return n > 0 && n <= 65535 }

// tcpFirst returns one port a number, and none that is not a number of a port. Where
// TCP and another protocol share one, as DNS does, TCP's counts: nothing else is carried.
func tcpFirst(ports []corev1.ServicePort) []corev1.ServicePort {
	out := make([]corev1.ServicePort, 0, len(ports))
	at := make(map[int32]int, len(ports))
	for _, p := range ports {
		i, seen := at[p.Port]
		switch {
		case !isPort(p.Port) || p.TargetPort.StrVal == "" && p.TargetPort.IntVal != 0 && !isPort(p.TargetPort.IntVal):
		case !seen:
			at[p.Port] = len(out)
			out = append(out, p)
		case isTCP(p.Protocol) && !isTCP(out[i].Protocol):
			out[i] = p
		}
	}
	return out
}

func isTCP(p corev1.Protocol) bool { return p == "" || p == corev1.ProtocolTCP }

// numericTarget is the port behind a service's port: 0 when each pod has its own, by
// name. An API server fills the target in; a file may leave it out, which means the same.
func numericTarget(p corev1.ServicePort) uint16 {
	if p.TargetPort.StrVal != "" {
		return 0
	}
	if p.TargetPort.IntVal == 0 {
		return uint16(p.Port)
	}
	return uint16(p.TargetPort.IntVal)
}

// appProtocol reads appProtocol, or else the part of the port's name before the dash.
func appProtocol(p corev1.ServicePort) workload.AppProtocol {
	if !isTCP(p.Protocol) {
		return workload.AppUnknown
	}
	name, _, _ := strings.Cut(p.Name, "-")
	if p.AppProtocol != nil {
		name = *p.AppProtocol
	}
	return appProtocolNamed(name)
}

func appProtocolNamed(name string) workload.AppProtocol {
	switch strings.ToLower(name) {
	case "http", "http_proxy", "kubernetes.io/ws":
		return workload.AppHTTP11
	case "http2", "kubernetes.io/h2c":
		return workload.AppHTTP2
	case "grpc":
		return workload.AppGRPC
	case "https", "tls", "kubernetes.io/wss":
		return workload.AppTLS
	case "tcp":
		return workload.AppTCP
	}
	return workload.AppUnknown
}

// loadBalancing says which endpoints are preferred; nil is any.
func (b *builder) loadBalancing(svc *corev1.Service, report reporter) *workload.LoadBalancing {
	lb := &workload.LoadBalancing{}
	if svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal {
		lb.Mode = workload.LBStrict
		lb.Preferences = []workload.Scope{workload.Node}
	} else if scopes := b.distribution(svc.Spec.TrafficDistribution, &svc.ObjectMeta, report); len(scopes) > 0 {
		lb.Mode = workload.LBFailover
		lb.Preferences = scopes
	}
	if svc.Spec.PublishNotReadyAddresses {
		lb.HealthPolicy = workload.AllowAll
	}
	if lb.Mode == workload.LBStandard && !svc.Spec.PublishNotReadyAddresses {
		return nil
	}
	return lb
}

// distribution is how close endpoints should be, nearest scope last. A Service's own
// field wins over the annotation, and that over the namespace's.
func (b *builder) distribution(own *string, o *metav1.ObjectMeta, report reporter) []workload.Scope {
	field, value := "spec.trafficDistribution", ""
	if own != nil {
		value = *own
	} else if v, ok := o.Annotations[annotationDistribution]; ok {
		field, value = "metadata.annotations["+annotationDistribution+"]", v
	} else if ns := b.namespaces[o.Namespace]; ns != nil {
		field, value = "annotation "+annotationDistribution+" of its namespace", ns.Annotations[annotationDistribution]
	}
	zone := []workload.Scope{workload.Network, workload.Region, workload.Zone}
	switch value {
	case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone:
		return zone
	case corev1.ServiceTrafficDistributionPreferSameNode:
		return append(zone, workload.Subzone, workload.Node)
	case "", "Any":
		return nil
	}
	report(field, fmt.Sprintf("%q is not known: endpoints are chosen without preference", value))
	return nil
}
