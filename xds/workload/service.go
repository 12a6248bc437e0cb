package workload

import (
	"cmp"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Service is a name and addresses under which workloads are reached together.
// Its endpoints are not part of it: they come from the workloads.
type Service struct {
	Name      string
	Namespace string
	Hostname  string // lower case

	VIPs  []NetworkAddr
	CIDRs []NetworkPrefix
	Ports PortMap

	// SubjectAltNames are accepted of an endpoint besides its own identity.
	SubjectAltNames []string

	Waypoint          *GatewayAddress
	WeightedWaypoints []WeightedWaypoint
	LoadBalancing     *LoadBalancing // nil: all healthy endpoints alike
	IPFamilies        IPFamilies
	Visibility        Visibility

	// Canonical services win among those of one hostname or address, when the
	// client's own namespace has none.
	Canonical          bool
	IngressUseWaypoint bool

	sans []spiffeid.ID // SubjectAltNames that are SPIFFE IDs; nil until sealed
}

// WeightedWaypoint is one of several waypoints that share a service's traffic.
type WeightedWaypoint struct {
	Destination GatewayAddress
	Weight      uint32
}

// LoadBalancing is how a service's endpoints are chosen.
type LoadBalancing struct {
	Preferences  []Scope
	Mode         LBMode
	HealthPolicy HealthPolicy
}

// Key identifies the service.
func (s *Service) Key() NamespacedHostname {
	return NamespacedHostname{Namespace: s.Namespace, Hostname: s.Hostname}
}

// ResourceName is the xDS name, "namespace/hostname".
func (s *Service) ResourceName() string { return s.Key().String() }

// Mode is the load-balancing mode.
func (s *Service) Mode() LBMode {
	if s.LoadBalancing == nil {
		return LBStandard
	}
	return s.LoadBalancing.Mode
}

// Usable reports whether an endpoint of this health may be chosen.
func (s *Service) Usable(h Status) bool {
	return h == Healthy || s.LoadBalancing != nil && s.LoadBalancing.HealthPolicy == AllowAll
}

// VisibleTo reports whether clients of the namespace may resolve the service.
func (s *Service) VisibleTo(namespace string) bool {
	return s.Visibility != NamespacePrivate || s.Namespace == namespace
}

// SANs are the extra identities accepted of endpoints: those SubjectAltNames
// that are SPIFFE IDs. The result is shared and must not be changed.
func (s *Service) SANs() []spiffeid.ID {
	if s.sans != nil || len(s.SubjectAltNames) == 0 {
		return s.sans
	}
	return parseSANs(s.SubjectAltNames)
}

func parseSANs(names []string) []spiffeid.ID {
	ids := make([]spiffeid.ID, 0, len(names))
	for _, n := range names {
		// Others, such as DNS names, are meant for TLS outside the mesh.
		if id, err := spiffeid.FromString(n); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// sealed returns the service with its identities parsed, the same one if they were.
func (s *Service) sealed() *Service {
	if s.sans != nil || len(s.SubjectAltNames) == 0 {
		return s
	}
	c := *s
	c.sans = parseSANs(s.SubjectAltNames)
	return &c
}

// Port maps a port of a service to the port that its endpoints listen on.
type Port struct {
	Service     uint16
	Target      uint16 // 0: named, each endpoint says its own
	AppProtocol AppProtocol
}

// PortMap is a list of ports ordered by service port, each at most once.
type PortMap []Port

// NewPortMap orders the ports; of two with one service port the later wins.
func NewPortMap(ports ...Port) PortMap {
	if len(ports) == 0 {
		return nil
	}
	m := slices.Clone(ports)
	slices.SortStableFunc(m, func(a, b Port) int { return cmp.Compare(a.Service, b.Service) })
	out := m[:0]
	for i, p := range m {
		if i+1 < len(m) && m[i+1].Service == p.Service {
			continue
		}
		out = append(out, p)
	}
	return PortMap(slices.Clip(out))
}

// Target is the target of a service port. ok says whether the port is listed;
// its target may still be 0.
func (m PortMap) Target(servicePort uint16) (target uint16, ok bool) {
	if len(m) > 16 {
		i, ok := slices.BinarySearchFunc(m, servicePort, func(p Port, s uint16) int { return cmp.Compare(p.Service, s) })
		if !ok {
			return 0, false
		}
		return m[i].Target, true
	}
	for _, p := range m {
		if p.Service == servicePort {
			return p.Target, true
		}
	}
	return 0, false
}
