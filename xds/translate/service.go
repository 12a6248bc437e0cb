package translate

import (
	"fmt"
	"strings"

	"istio.io/istio/pkg/workloadapi"
	corev1 "k8s.io/api/core/v1"
)

const (
	annotationDistribution = "networking.istio.io/traffic-distribution"
	labelIngressWaypoint   = "istio.io/ingress-use-waypoint"
)

// service translates a Service; nil is one that has no traffic of its own.
func (b *builder) service(svc *corev1.Service) *workloadapi.Service {
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	report := b.reporter("Service", svc.Namespace, svc.Name)
	ingress := svc.Labels[labelIngressWaypoint]
	if ns := b.namespaces[svc.Namespace]; ingress == "" && ns != nil {
		ingress = ns.Labels[labelIngressWaypoint]
	}
	s := &workloadapi.Service{
		Name:               svc.Name,
		Namespace:          svc.Namespace,
		Hostname:           b.hostname(svc),
		Addresses:          b.serviceAddresses(svc, report),
		LoadBalancing:      b.loadBalancing(svc, report),
		IpFamilies:         families(svc.Spec.IPFamilies),
		Canonical:          true,
		IngressUseWaypoint: strings.EqualFold(ingress, "true"),
	}
	for _, p := range tcpFirst(svc.Spec.Ports) {
		s.Ports = append(s.Ports, &workloadapi.Port{
			ServicePort: uint32(p.Port),
			TargetPort:  numericTarget(p),
			AppProtocol: appProtocol(p),
		})
	}
	return s
}

func (b *builder) hostname(svc *corev1.Service) string {
	return svc.Name + "." + svc.Namespace + ".svc." + b.opts.Domain
}

// key is the name of a service among the resources and in its workloads.
func (b *builder) key(svc *corev1.Service) string { return svc.Namespace + "/" + b.hostname(svc) }

func (b *builder) serviceAddresses(svc *corev1.Service, report reporter) []*workloadapi.NetworkAddress {
	ips := svc.Spec.ClusterIPs
	if len(ips) == 0 && svc.Spec.ClusterIP != "" {
		ips = []string{svc.Spec.ClusterIP}
	}
	var out []*workloadapi.NetworkAddress
	for i, ip := range ips {
		if ip == corev1.ClusterIPNone || ip == "" {
			continue
		}
		a, err := address(ip)
		if err != nil {
			report(fmt.Sprintf("spec.clusterIPs[%d]", i), err.Error())
			continue
		}
		out = append(out, &workloadapi.NetworkAddress{Network: b.network, Address: a})
	}
	return out
}

func families(list []corev1.IPFamily) workloadapi.IPFamilies {
	switch {
	case len(list) > 1:
		return workloadapi.IPFamilies_DUAL
	case len(list) == 1 && list[0] == corev1.IPv4Protocol:
		return workloadapi.IPFamilies_IPV4_ONLY
	case len(list) == 1 && list[0] == corev1.IPv6Protocol:
		return workloadapi.IPFamilies_IPV6_ONLY
	}
	return workloadapi.IPFamilies_AUTOMATIC
}

// tcpFirst returns one port a number. Where TCP and another protocol share a number,
// as DNS does, TCP's is the one that counts, since nothing else is carried.
func tcpFirst(ports []corev1.ServicePort) []corev1.ServicePort {
	out := make([]corev1.ServicePort, 0, len(ports))
	at := make(map[int32]int, len(ports))
	for _, p := range ports {
		i, seen := at[p.Port]
		switch {
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
func numericTarget(p corev1.ServicePort) uint32 {
	if p.TargetPort.StrVal != "" {
		return 0
	}
	if p.TargetPort.IntVal == 0 {
		return uint32(p.Port)
	}
	return uint32(p.TargetPort.IntVal)
}

// appProtocol reads appProtocol, or else the part of the port's name before the dash.
func appProtocol(p corev1.ServicePort) workloadapi.AppProtocol {
	if !isTCP(p.Protocol) {
		return workloadapi.AppProtocol_UNKNOWN
	}
	name, _, _ := strings.Cut(p.Name, "-")
	if p.AppProtocol != nil {
		name = *p.AppProtocol
	}
	switch strings.ToLower(name) {
	case "http", "http_proxy", "kubernetes.io/ws":
		return workloadapi.AppProtocol_HTTP11
	case "http2", "kubernetes.io/h2c":
		return workloadapi.AppProtocol_HTTP2
	case "grpc":
		return workloadapi.AppProtocol_GRPC
	case "https", "tls", "kubernetes.io/wss":
		return workloadapi.AppProtocol_TLS
	case "tcp":
		return workloadapi.AppProtocol_TCP
	}
	return workloadapi.AppProtocol_UNKNOWN
}

// loadBalancing says which endpoints are preferred; nil is any.
func (b *builder) loadBalancing(svc *corev1.Service, report reporter) *workloadapi.LoadBalancing {
	lb := &workloadapi.LoadBalancing{}
	if svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal {
		lb.Mode = workloadapi.LoadBalancing_STRICT
		lb.RoutingPreference = []workloadapi.LoadBalancing_Scope{workloadapi.LoadBalancing_NODE}
	} else if scopes := b.distribution(svc, report); len(scopes) > 0 {
		lb.Mode = workloadapi.LoadBalancing_FAILOVER
		lb.RoutingPreference = scopes
	}
	if svc.Spec.PublishNotReadyAddresses {
		lb.HealthPolicy = workloadapi.LoadBalancing_ALLOW_ALL
	}
	if lb.Mode == workloadapi.LoadBalancing_UNSPECIFIED_MODE && !svc.Spec.PublishNotReadyAddresses {
		return nil
	}
	return lb
}

// distribution is how close endpoints should be, nearest scope last. The Service's own
// field wins over its annotation, and that over its namespace's.
func (b *builder) distribution(svc *corev1.Service, report reporter) []workloadapi.LoadBalancing_Scope {
	field, value := "spec.trafficDistribution", ""
	if svc.Spec.TrafficDistribution != nil {
		value = *svc.Spec.TrafficDistribution
	} else if v, ok := svc.Annotations[annotationDistribution]; ok {
		field, value = "metadata.annotations["+annotationDistribution+"]", v
	} else if ns := b.namespaces[svc.Namespace]; ns != nil {
		field, value = "annotation "+annotationDistribution+" of its namespace", ns.Annotations[annotationDistribution]
	}
	zone := []workloadapi.LoadBalancing_Scope{
		workloadapi.LoadBalancing_NETWORK, workloadapi.LoadBalancing_REGION, workloadapi.LoadBalancing_ZONE}
	switch value {
	case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone:
		return zone
	case corev1.ServiceTrafficDistributionPreferSameNode:
		return append(zone, workloadapi.LoadBalancing_SUBZONE, workloadapi.LoadBalancing_NODE)
	case "", "Any":
		return nil
	}
	report(field, fmt.Sprintf("%q is not known: endpoints are chosen without preference", value))
	return nil
}
