package workload

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"istio.io/istio/pkg/workloadapi"
)

// DNS names are at most this long (RFC 1035 §2.3.4); so is every name we take.
const maxHostname = 253

// maxAddresses bounds those of one workload, which connections look through: a pod has one
// or two, and some more by multus; a host that stands for many may have thousands.
const maxAddresses = 16 << 10

// What decisions about connections walk through, or carry along, is bounded far above what
// anybody writes: a resource has room for millions.
const (
	maxPreferences = 32
	maxNames       = 1024 // subject alternative names
	maxWaypoints   = 256  // weighted ones
	maxServices    = 4096 // of a workload
	maxPolicies    = 1024 // that a workload names
)

func atMost(limit, n int, what string) error {
	if n > limit {
		return fmt.Errorf("%d %s, the limit is %d", n, what, limit)
	}
	return nil
}

// AddressFromProto converts the one resource type that carries both workloads and
// services; one of the two results is nil.
func AddressFromProto(p *workloadapi.Address) (*Workload, *Service, error) {
	switch t := p.GetType().(type) {
	case *workloadapi.Address_Workload:
		w, err := WorkloadFromProto(t.Workload)
		return w, nil, err
	case *workloadapi.Address_Service:
		s, err := ServiceFromProto(t.Service)
		return nil, s, err
	default:
		return nil, nil, errors.New("workload: address is neither a workload nor a service")
	}
}

// WorkloadFromProto converts a workload. Anything that is not understood rejects
// it; the error says what.
func WorkloadFromProto(p *workloadapi.Workload) (*Workload, error) {
	if p.GetUid() == "" {
		return nil, errors.New("workload: uid is empty")
	}
	w := &Workload{
		UID: p.GetUid(), Name: p.GetName(), Namespace: p.GetNamespace(),
		Hostname: p.GetHostname(), Network: p.GetNetwork(), Node: p.GetNode(),
		TrustDomain:    orDefault(p.GetTrustDomain(), DefaultTrustDomain),
		ServiceAccount: orDefault(p.GetServiceAccount(), DefaultServiceAccount),
		ClusterID:      orDefault(p.GetClusterId(), DefaultCluster),
		CanonicalName:  p.GetCanonicalName(), CanonicalRevision: p.GetCanonicalRevision(),
		WorkloadName: p.GetWorkloadName(), NativeTunnel: p.GetNativeTunnel(),
		Policies: p.GetAuthorizationPolicies(),
	}
	if l := p.GetLocality(); l != nil {
		w.Locality = Locality{Region: l.GetRegion(), Zone: l.GetZone(), Subzone: l.GetSubzone()}
	}
	if c := p.GetCapacity(); c != nil {
		v := c.GetValue()
		w.Capacity = &v
	}
	for _, step := range []func(*Workload, *workloadapi.Workload) error{
		workloadEnums, workloadAddresses, workloadGateways, workloadServices,
	} {
		if err := step(w, p); err != nil {
			return nil, fmt.Errorf("workload: %w", err)
		}
	}
	w = w.sealed()
	if w.Protocol == HBONE && w.Identity().IsZero() {
		// Nobody could be authenticated as this workload.
		_, err := NewIdentity(w.TrustDomain, w.Namespace, w.ServiceAccount)
		return nil, err
	}
	return w, nil
}

func workloadEnums(w *Workload, p *workloadapi.Workload) (err error) {
	if p.GetTunnelProtocol() == workloadapi.TunnelProtocol_LEGACY_ISTIO_MTLS {
		return errors.New("tunnel protocol LEGACY_ISTIO_MTLS is not supported")
	}
	if w.Protocol, err = enum[TunnelProtocol]("tunnel protocol", p.GetTunnelProtocol(), tunnelNames[:]); err != nil {
		return err
	}
	if w.Type, err = enum[Type]("workload type", p.GetWorkloadType(), typeNames[:]); err != nil {
		return err
	}
	if w.Status, err = enum[Status]("status", p.GetStatus(), statusNames[:]); err != nil {
		return err
	}
	w.NetworkMode, err = enum[NetworkMode]("network mode", p.GetNetworkMode(), networkModeNames[:])
	return err
}

func workloadAddresses(w *Workload, p *workloadapi.Workload) error {
	if len(p.GetAddresses()) == 0 {
		return nil
	}
	if n := len(p.GetAddresses()); n > maxAddresses {
		return fmt.Errorf("%d addresses, the limit is %d", n, maxAddresses)
	}
	w.Addresses = make([]netip.Addr, 0, len(p.GetAddresses()))
	for _, b := range p.GetAddresses() {
		a, err := addrFromBytes(b)
		if err != nil {
			return err
		}
		w.Addresses = append(w.Addresses, a)
	}
	return nil
}

func workloadGateways(w *Workload, p *workloadapi.Workload) (err error) {
	if w.Waypoint, err = gatewayFromProto(p.GetWaypoint()); err != nil {
		return fmt.Errorf("waypoint: %w", err)
	}
	if w.NetworkGateway, err = gatewayFromProto(p.GetNetworkGateway()); err != nil {
		return fmt.Errorf("network gateway: %w", err)
	}
	t := p.GetApplicationTunnel()
	if t == nil {
		return nil
	}
	kind, err := enum[TunnelKind]("application tunnel protocol", t.GetProtocol(), tunnelKindNames[:])
	if err != nil {
		return err
	}
	port, err := port16(t.GetPort())
	if err != nil {
		return fmt.Errorf("application tunnel: %w", err)
	}
	w.ApplicationTunnel = &ApplicationTunnel{Protocol: kind, Port: port}
	return nil
}

func workloadServices(w *Workload, p *workloadapi.Workload) error {
	if err := errors.Join(atMost(maxServices, len(p.GetServices()), "services"), atMost(maxPolicies, len(w.Policies), "policies")); err != nil || len(p.GetServices()) == 0 {
		return err
	}
	services := make(map[NamespacedHostname]PortMap, len(p.GetServices()))
	for key, list := range p.GetServices() {
		h, err := ParseNamespacedHostname(key)
		if err != nil {
			return fmt.Errorf("service key: %w", err)
		}
		ports, err := portsFromProto(list.GetPorts())
		if err != nil {
			return fmt.Errorf("service %s: %w", key, err)
		}
		services[h] = ports
	}
	w.Services = NewMemberships(services)
	return nil
}

// ServiceFromProto converts a service. Anything that is not understood rejects
// it, except an unknown visibility: that is public, as before the field existed.
func ServiceFromProto(p *workloadapi.Service) (*Service, error) {
	s := &Service{
		Name: p.GetName(), Namespace: p.GetNamespace(), Hostname: strings.ToLower(p.GetHostname()),
		SubjectAltNames: p.GetSubjectAltNames(),
		Canonical:       p.GetCanonical(), IngressUseWaypoint: p.GetIngressUseWaypoint(),
	}
	if p.GetVisibility() == workloadapi.Service_NAMESPACE {
		s.Visibility = NamespacePrivate
	}
	if _, err := ParseNamespacedHostname(s.ResourceName()); err != nil {
		return nil, err
	}
	if len(s.Hostname) > maxHostname {
		return nil, fmt.Errorf("workload: service hostname has %d bytes, the limit is %d", len(s.Hostname), maxHostname)
	}
	for _, step := range []func(*Service, *workloadapi.Service) error{
		serviceBounds, serviceAddresses, serviceWaypoints, serviceBalancing,
	} {
		if err := step(s, p); err != nil {
			return nil, fmt.Errorf("workload: service: %w", err)
		}
	}
	return s.sealed(), nil
}

func serviceBounds(_ *Service, p *workloadapi.Service) error {
	return errors.Join(
		atMost(maxAddresses, len(p.GetAddresses()), "addresses"),
		atMost(maxNames, len(p.GetSubjectAltNames()), "subject alternative names"),
		atMost(maxWaypoints, len(p.GetWeightedWaypoints()), "weighted waypoints"),
		atMost(maxPreferences, len(p.GetLoadBalancing().GetRoutingPreference()), "routing preferences"),
	)
}

func serviceAddresses(s *Service, p *workloadapi.Service) (err error) {
	for _, na := range p.GetAddresses() {
		a, err := addrFromBytes(na.GetAddress())
		if err != nil {
			return err
		}
		bits := a.BitLen()
		if na.Length != nil {
			if bits, err = prefixBits(na.GetAddress(), na.GetLength()); err != nil {
				return err
			}
		}
		if bits == a.BitLen() {
			s.VIPs = append(s.VIPs, NetworkAddr{Network: na.GetNetwork(), Addr: a})
			continue
		}
		s.CIDRs = append(s.CIDRs, NetworkPrefix{Network: na.GetNetwork(), Prefix: netip.PrefixFrom(a, bits).Masked()})
	}
	if s.Ports, err = portsFromProto(p.GetPorts()); err != nil {
		return err
	}
	s.IPFamilies, err = enum[IPFamilies]("ip families", p.GetIpFamilies(), familyNames[:])
	return err
}

func serviceWaypoints(s *Service, p *workloadapi.Service) (err error) {
	if s.Waypoint, err = gatewayFromProto(p.GetWaypoint()); err != nil {
		return fmt.Errorf("waypoint: %w", err)
	}
	for _, ww := range p.GetWeightedWaypoints() {
		g, err := gatewayFromProto(ww.GetDestination())
		if err != nil {
			return fmt.Errorf("weighted waypoint: %w", err)
		}
		if g == nil {
			return errors.New("weighted waypoint: no destination")
		}
		s.WeightedWaypoints = append(s.WeightedWaypoints, WeightedWaypoint{Destination: *g, Weight: ww.GetWeight()})
	}
	return nil
}

func serviceBalancing(s *Service, p *workloadapi.Service) (err error) {
	lb := p.GetLoadBalancing()
	if lb == nil {
		return nil
	}
	out := &LoadBalancing{}
	if out.Mode, err = enum[LBMode]("load balancing mode", lb.GetMode(), modeNames[:]); err != nil {
		return err
	}
	if out.HealthPolicy, err = enum[HealthPolicy]("health policy", lb.GetHealthPolicy(), healthNames[:]); err != nil {
		return err
	}
	for _, sc := range lb.GetRoutingPreference() {
		scope, err := enum[Scope]("routing preference", sc, scopeNames[:])
		if err != nil {
			return err
		}
		out.Preferences = append(out.Preferences, scope)
	}
	s.LoadBalancing = out
	return nil
}

func gatewayFromProto(p *workloadapi.GatewayAddress) (*GatewayAddress, error) {
	if p == nil {
		return nil, nil
	}
	port, err := port16(p.GetHboneMtlsPort())
	if err != nil {
		return nil, err
	}
	g := &GatewayAddress{HBONEPort: port}
	switch d := p.GetDestination().(type) {
	case *workloadapi.GatewayAddress_Hostname:
		g.Hostname, err = ParseNamespacedHostname(d.Hostname.GetNamespace() + "/" + d.Hostname.GetHostname())
		return g, err
	case *workloadapi.GatewayAddress_Address:
		if d.Address.GetLength() != 0 {
			return nil, errors.New("a gateway is one address, not a range")
		}
		a, err := addrFromBytes(d.Address.GetAddress())
		g.Address = NetworkAddr{Network: d.Address.GetNetwork(), Addr: a}
		return g, err
	default:
		return nil, errors.New("no destination")
	}
}

func portsFromProto(ports []*workloadapi.Port) (PortMap, error) {
	list := make([]Port, 0, len(ports))
	for _, p := range ports {
		service, err := port16(p.GetServicePort())
		if err != nil {
			return nil, err
		}
		target, err := port16(p.GetTargetPort())
		if err != nil {
			return nil, err
		}
		app := AppProtocol(min(uint32(p.GetAppProtocol()), 255)) // not acted on, so not checked
		list = append(list, Port{Service: service, Target: target, AppProtocol: app})
	}
	return NewPortMap(list...), nil
}

func port16(p uint32) (uint16, error) {
	if p > 65535 {
		return 0, fmt.Errorf("port %d is above 65535", p)
	}
	return uint16(p), nil
}

// prefixBits checks the length of a range against the form its address came in,
// and shortens it with the address if that is unmapped.
func prefixBits(raw []byte, length uint32) (int, error) {
	a, ok := netip.AddrFromSlice(raw)
	if !ok || length > uint32(a.BitLen()) {
		return 0, fmt.Errorf("prefix length %d is too long", length)
	}
	bits := int(length)
	if a.Is4In6() {
		if bits < 96 {
			return 0, fmt.Errorf("prefix length %d reaches beyond the IPv4-mapped addresses", length)
		}
		bits -= 96
	}
	return bits, nil
}

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}
