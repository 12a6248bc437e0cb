package admin

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	"github.com/warren-mesh/warren/xds/workload"
)

// The types of the dump: ztunnel's names, in alphabetical order. What Istio's
// tools expect as a list is never null.

type workloadJSON struct {
	ApplicationTunnel     *tunnelJSON   `json:"applicationTunnel,omitempty"`
	AuthorizationPolicies []string      `json:"authorizationPolicies,omitempty"`
	CanonicalName         string        `json:"canonicalName,omitempty"`
	CanonicalRevision     string        `json:"canonicalRevision,omitempty"`
	Capacity              uint32        `json:"capacity"`
	ClusterID             string        `json:"clusterId"`
	Hostname              string        `json:"hostname,omitempty"`
	Locality              *localityJSON `json:"locality,omitempty"`
	Name                  string        `json:"name"`
	Namespace             string        `json:"namespace"`
	NativeTunnel          bool          `json:"nativeTunnel,omitempty"`
	Network               string        `json:"network,omitempty"`
	NetworkGateway        *gatewayJSON  `json:"networkGateway,omitempty"`
	NetworkMode           string        `json:"networkMode"`
	Node                  string        `json:"node,omitempty"`
	Protocol              string        `json:"protocol"`
	ServiceAccount        string        `json:"serviceAccount,omitempty"`
	Services              []string      `json:"services,omitempty"`
	Status                string        `json:"status"`
	TrustDomain           string        `json:"trustDomain,omitempty"`
	UID                   string        `json:"uid,omitempty"`
	Waypoint              *gatewayJSON  `json:"waypoint,omitempty"`
	WorkloadIPs           []netip.Addr  `json:"workloadIps"`
	WorkloadName          string        `json:"workloadName,omitempty"`
	WorkloadType          string        `json:"workloadType,omitempty"`
}

type tunnelJSON struct {
	Port     *uint16 `json:"port"`
	Protocol string  `json:"protocol"`
}

type localityJSON struct {
	Region  string `json:"region"`
	Subzone string `json:"subzone"`
	Zone    string `json:"zone"`
}

type gatewayJSON struct {
	Destination string `json:"destination"`
	HBONEPort   uint16 `json:"hboneMtlsPort"`
}

func newWorkload(w *workload.Workload) workloadJSON {
	j := workloadJSON{
		AuthorizationPolicies: w.Policies, CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision,
		Capacity: w.Weight(), ClusterID: w.ClusterID, Hostname: w.Hostname, Name: w.Name, Namespace: w.Namespace,
		NativeTunnel: w.NativeTunnel, Network: w.Network, NetworkGateway: newGateway(w.NetworkGateway),
		NetworkMode: w.NetworkMode.String(), Node: w.Node, Protocol: w.Protocol.String(), ServiceAccount: w.ServiceAccount,
		Status: w.Status.String(), TrustDomain: w.TrustDomain, UID: w.UID, Waypoint: newGateway(w.Waypoint),
		WorkloadIPs: list(w.Addresses), WorkloadName: w.WorkloadName, WorkloadType: w.Type.String(),
	}
	if t := w.ApplicationTunnel; t != nil {
		j.ApplicationTunnel = &tunnelJSON{Protocol: t.Protocol.String()}
		if t.Port != 0 {
			j.ApplicationTunnel.Port = &t.Port
		}
	}
	if l := w.Locality; l != (workload.Locality{}) {
		j.Locality = &localityJSON{Region: l.Region, Zone: l.Zone, Subzone: l.Subzone}
	}
	for _, m := range w.Services {
		j.Services = append(j.Services, m.Service.String())
	}
	slices.Sort(j.Services)
	return j
}

func newGateway(g *workload.GatewayAddress) *gatewayJSON {
	if g == nil {
		return nil
	}
	return &gatewayJSON{Destination: g.String(), HBONEPort: g.HBONEPort}
}

type serviceJSON struct {
	Canonical         bool                    `json:"canonical"`
	CIDRs             []cidrJSON              `json:"cidrVips,omitempty"`
	Endpoints         map[string]endpointJSON `json:"endpoints"`
	Hostname          string                  `json:"hostname"`
	IPFamilies        string                  `json:"ipFamilies,omitempty"`
	LoadBalancer      *balancerJSON           `json:"loadBalancer,omitempty"`
	Name              string                  `json:"name"`
	Namespace         string                  `json:"namespace"`
	Ports             map[string]uint16       `json:"ports"`
	SubjectAltNames   []string                `json:"subjectAltNames"`
	VIPs              []string                `json:"vips"`
	Visibility        string                  `json:"visibility"`
	Waypoint          *gatewayJSON            `json:"waypoint,omitempty"`
	WeightedWaypoints []weightedJSON          `json:"weightedWaypoints,omitempty"`
}

type cidrJSON struct {
	CIDR    netip.Prefix `json:"cidr"`
	Network string       `json:"network"`
}

type weightedJSON struct {
	Destination *gatewayJSON `json:"destination"`
	Weight      uint32       `json:"weight"`
}

type balancerJSON struct {
	HealthPolicy string   `json:"healthPolicy"`
	Mode         string   `json:"mode"`
	Preferences  []string `json:"routingPreferences"`
}

type endpointJSON struct {
	Port        map[string]uint16 `json:"port"`
	Status      string            `json:"status"`
	WorkloadUID string            `json:"workloadUid"`
}

func newService(s *workload.Service, endpoints map[string]endpointJSON) serviceJSON {
	j := serviceJSON{
		Canonical: s.Canonical, Endpoints: endpoints, Hostname: s.Hostname, Name: s.Name, Namespace: s.Namespace,
		Ports: newPorts(s.Ports), SubjectAltNames: list(s.SubjectAltNames), VIPs: []string{},
		Visibility: s.Visibility.String(), Waypoint: newGateway(s.Waypoint),
	}
	for _, v := range s.VIPs {
		j.VIPs = append(j.VIPs, v.String())
	}
	for _, c := range s.CIDRs {
		j.CIDRs = append(j.CIDRs, cidrJSON{CIDR: c.Prefix, Network: c.Network})
	}
	for _, w := range s.WeightedWaypoints {
		j.WeightedWaypoints = append(j.WeightedWaypoints, weightedJSON{Destination: newGateway(&w.Destination), Weight: w.Weight})
	}
	if s.IPFamilies != workload.Automatic {
		j.IPFamilies = s.IPFamilies.String()
	}
	if lb := s.LoadBalancing; lb != nil {
		j.LoadBalancer = &balancerJSON{HealthPolicy: lb.HealthPolicy.String(), Mode: lb.Mode.String(), Preferences: []string{}}
		for _, p := range lb.Preferences {
			j.LoadBalancer.Preferences = append(j.LoadBalancer.Preferences, p.String())
		}
	}
	return j
}

func newPorts(m workload.PortMap) map[string]uint16 {
	out := make(map[string]uint16, len(m))
	for _, p := range m {
		out[strconv.Itoa(int(p.Service))] = p.Target
	}
	return out
}

func newEndpoint(w *workload.Workload, ports workload.PortMap) endpointJSON {
	return endpointJSON{Port: newPorts(ports), Status: w.Status.String(), WorkloadUID: w.UID}
}

type policyJSON struct {
	Action    string          `json:"action"`
	DryRun    bool            `json:"dryRun"`
	Name      string          `json:"name"`
	Namespace string          `json:"namespace"`
	Rules     [][][]matchJSON `json:"rules"`
	Scope     string          `json:"scope"`
}

type matchJSON struct {
	DestinationIPs      []netip.Prefix   `json:"destinationIps,omitempty"`
	DestinationPorts    []uint16         `json:"destinationPorts,omitempty"`
	Namespaces          []any            `json:"namespaces,omitempty"`
	NotDestinationIPs   []netip.Prefix   `json:"notDestinationIps,omitempty"`
	NotDestinationPorts []uint16         `json:"notDestinationPorts,omitempty"`
	NotNamespaces       []any            `json:"notNamespaces,omitempty"`
	NotPrincipals       []any            `json:"notPrincipals,omitempty"`
	NotServiceAccounts  []serviceAccount `json:"notServiceAccounts,omitempty"`
	NotSourceIPs        []netip.Prefix   `json:"notSourceIps,omitempty"`
	Principals          []any            `json:"principals,omitempty"`
	ServiceAccounts     []serviceAccount `json:"serviceAccounts,omitempty"`
	SourceIPs           []netip.Prefix   `json:"sourceIps,omitempty"`
}

type serviceAccount struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

func newPolicy(p *workload.Policy) policyJSON {
	j := policyJSON{
		Action: p.Action.String(), DryRun: p.DryRun, Name: p.Name, Namespace: p.Namespace,
		Rules: [][][]matchJSON{}, Scope: p.Scope.String(),
	}
	for _, r := range p.Rules {
		rule := [][]matchJSON{}
		for _, c := range r.Clauses {
			clause := []matchJSON{}
			for _, m := range c.Matches {
				clause = append(clause, newMatch(m))
			}
			rule = append(rule, clause)
		}
		j.Rules = append(j.Rules, rule)
	}
	return j
}

func newMatch(m workload.Match) matchJSON {
	return matchJSON{
		DestinationIPs: m.DestinationIPs, DestinationPorts: m.DestinationPorts, Namespaces: texts(m.Namespaces),
		NotDestinationIPs: m.NotDestinationIPs, NotDestinationPorts: m.NotDestinationPorts, NotNamespaces: texts(m.NotNamespaces),
		NotPrincipals: texts(m.NotPrincipals), NotServiceAccounts: accounts(m.NotServiceAccounts), NotSourceIPs: m.NotSourceIPs,
		Principals: texts(m.Principals), ServiceAccounts: accounts(m.ServiceAccounts), SourceIPs: m.SourceIPs,
	}
}

// texts are {"Exact": value} and so on; presence has an empty list.
func texts(list []workload.StringMatch) (out []any) {
	for _, m := range list {
		var v any = m.Value
		if m.Kind == workload.Presence {
			v = []string{}
		}
		out = append(out, map[string]any{m.Kind.String(): v})
	}
	return out
}

func accounts(list []workload.ServiceAccountMatch) (out []serviceAccount) {
	for _, m := range list {
		out = append(out, serviceAccount(m))
	}
	return out
}

// sorted returns list ordered by key.
func sorted[T any](list []T, key func(T) string) []T {
	if list == nil {
		return []T{}
	}
	slices.SortStableFunc(list, func(a, b T) int { return cmp.Compare(key(a), key(b)) })
	return list
}
