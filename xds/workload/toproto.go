package workload

import (
	"google.golang.org/protobuf/types/known/wrapperspb"
	"istio.io/istio/pkg/workloadapi"
)

// ToProto is the workload's wire form. The default trust domain is left out, as
// Istio's control plane does, so that one object has one encoding.
func (w *Workload) ToProto() *workloadapi.Workload {
	p := &workloadapi.Workload{
		Uid: w.UID, Name: w.Name, Namespace: w.Namespace, Hostname: w.Hostname, Network: w.Network,
		NetworkMode:    workloadapi.NetworkMode(w.NetworkMode),
		TunnelProtocol: workloadapi.TunnelProtocol(w.Protocol),
		ServiceAccount: w.ServiceAccount, Node: w.Node, ClusterId: w.ClusterID,
		CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision,
		WorkloadType: workloadapi.WorkloadType(w.Type), WorkloadName: w.WorkloadName,
		Waypoint: w.Waypoint.toProto(), NetworkGateway: w.NetworkGateway.toProto(),
		NativeTunnel:          w.NativeTunnel,
		AuthorizationPolicies: w.Policies,
		Status:                workloadapi.WorkloadStatus(w.Status),
	}
	if w.TrustDomain != DefaultTrustDomain {
		p.TrustDomain = w.TrustDomain
	}
	for _, a := range w.Addresses {
		p.Addresses = append(p.Addresses, a.AsSlice())
	}
	if w.Locality != (Locality{}) {
		p.Locality = &workloadapi.Locality{Region: w.Locality.Region, Zone: w.Locality.Zone, Subzone: w.Locality.Subzone}
	}
	if t := w.ApplicationTunnel; t != nil {
		p.ApplicationTunnel = &workloadapi.ApplicationTunnel{
			Protocol: workloadapi.ApplicationTunnel_Protocol(t.Protocol), Port: uint32(t.Port),
		}
	}
	if w.Capacity != nil {
		p.Capacity = wrapperspb.UInt32(*w.Capacity)
	}
	if len(w.Services) > 0 {
		p.Services = make(map[string]*workloadapi.PortList, len(w.Services))
		for _, m := range w.Services {
			p.Services[m.Service.String()] = &workloadapi.PortList{Ports: m.Ports.toProto()}
		}
	}
	return p
}

// ToProto is the service's wire form.
func (s *Service) ToProto() *workloadapi.Service {
	p := &workloadapi.Service{
		Name: s.Name, Namespace: s.Namespace, Hostname: s.Hostname,
		Ports: s.Ports.toProto(), SubjectAltNames: s.SubjectAltNames, Waypoint: s.Waypoint.toProto(),
		IpFamilies: workloadapi.IPFamilies(s.IPFamilies), Visibility: workloadapi.Service_Visibility(s.Visibility),
		Canonical: s.Canonical, IngressUseWaypoint: s.IngressUseWaypoint,
	}
	for _, v := range s.VIPs {
		p.Addresses = append(p.Addresses, v.toProto())
	}
	for _, c := range s.CIDRs {
		length := uint32(c.Prefix.Bits())
		a := NetworkAddr{Network: c.Network, Addr: c.Prefix.Addr()}.toProto()
		a.Length = &length
		p.Addresses = append(p.Addresses, a)
	}
	for i := range s.WeightedWaypoints {
		w := &s.WeightedWaypoints[i]
		p.WeightedWaypoints = append(p.WeightedWaypoints, &workloadapi.WeightedWaypoint{
			Destination: w.Destination.toProto(), Weight: w.Weight,
		})
	}
	if lb := s.LoadBalancing; lb != nil {
		p.LoadBalancing = &workloadapi.LoadBalancing{
			Mode:         workloadapi.LoadBalancing_Mode(lb.Mode),
			HealthPolicy: workloadapi.LoadBalancing_HealthPolicy(lb.HealthPolicy),
		}
		for _, sc := range lb.Preferences {
			p.LoadBalancing.RoutingPreference = append(p.LoadBalancing.RoutingPreference, workloadapi.LoadBalancing_Scope(sc))
		}
	}
	return p
}

func (a NetworkAddr) toProto() *workloadapi.NetworkAddress {
	return &workloadapi.NetworkAddress{Network: a.Network, Address: a.Addr.AsSlice()}
}

func (g *GatewayAddress) toProto() *workloadapi.GatewayAddress {
	if g == nil {
		return nil
	}
	p := &workloadapi.GatewayAddress{HboneMtlsPort: uint32(g.HBONEPort)}
	if g.Address.Addr.IsValid() {
		p.Destination = &workloadapi.GatewayAddress_Address{Address: g.Address.toProto()}
		return p
	}
	p.Destination = &workloadapi.GatewayAddress_Hostname{Hostname: &workloadapi.NamespacedHostname{
		Namespace: g.Hostname.Namespace, Hostname: g.Hostname.Hostname,
	}}
	return p
}

func (m PortMap) toProto() []*workloadapi.Port {
	var out []*workloadapi.Port
	for _, p := range m {
		out = append(out, &workloadapi.Port{
			ServicePort: uint32(p.Service), TargetPort: uint32(p.Target),
			AppProtocol: workloadapi.AppProtocol(p.AppProtocol),
		})
	}
	return out
}
