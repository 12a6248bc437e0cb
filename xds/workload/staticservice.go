package workload

import (
	"errors"
	"fmt"
	"net/netip"

	"go.yaml.in/yaml/v3"
)

type staticService struct {
	Name              string            `yaml:"name"`
	Namespace         string            `yaml:"namespace"`
	Hostname          string            `yaml:"hostname"`
	VIPs              []string          `yaml:"vips"`
	CIDRs             []staticCIDR      `yaml:"cidrVips"`
	Ports             map[uint16]uint16 `yaml:"ports"`
	SubjectAltNames   []string          `yaml:"subjectAltNames"`
	Waypoint          *staticGateway    `yaml:"waypoint"`
	WeightedWaypoints []staticWeighted  `yaml:"weightedWaypoints"`
	LoadBalancer      *staticBalancer   `yaml:"loadBalancer"`
	IPFamilies        string            `yaml:"ipFamilies"`
	Visibility        string            `yaml:"visibility"`
	Canonical         bool              `yaml:"canonical"`
}

type staticCIDR struct {
	CIDR    netip.Prefix `yaml:"cidr"`
	Network string       `yaml:"network"`
}

type staticWeighted struct {
	Destination staticGateway `yaml:"destination"`
	Weight      uint32        `yaml:"weight"`
}

type staticBalancer struct {
	Mode         string   `yaml:"mode"`
	HealthPolicy string   `yaml:"healthPolicy"`
	Preferences  []string `yaml:"routingPreferences"`
}

func (s *staticService) build() (*Service, error) {
	out := &Service{
		Name: s.Name, Namespace: s.Namespace, Hostname: s.Hostname, Ports: staticPorts(s.Ports),
		SubjectAltNames: s.SubjectAltNames, Canonical: s.Canonical,
	}
	var errs [4]error
	out.IPFamilies, errs[0] = named[IPFamilies]("ipFamilies", s.IPFamilies, familyNames[:])
	out.Visibility, errs[1] = named[Visibility]("visibility", s.Visibility, visibilityNames[:])
	out.Waypoint, errs[2] = s.Waypoint.build("waypoint")
	out.LoadBalancing, errs[3] = s.LoadBalancer.build()
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	for _, v := range s.VIPs {
		a, err := ParseNetworkAddr(v)
		if err != nil {
			return nil, err
		}
		out.VIPs = append(out.VIPs, a)
	}
	for _, c := range s.CIDRs {
		if !c.CIDR.IsValid() {
			return nil, errors.New("cidrVips: an entry without a cidr")
		}
		out.CIDRs = append(out.CIDRs, NetworkPrefix{Network: c.Network, Prefix: c.CIDR})
	}
	for i := range s.WeightedWaypoints {
		g, err := s.WeightedWaypoints[i].Destination.build("weightedWaypoints")
		if err != nil {
			return nil, err
		}
		out.WeightedWaypoints = append(out.WeightedWaypoints, WeightedWaypoint{Destination: *g, Weight: s.WeightedWaypoints[i].Weight})
	}
	return ServiceFromProto(out.ToProto())
}

func (b *staticBalancer) build() (*LoadBalancing, error) {
	if b == nil {
		return nil, nil
	}
	out := &LoadBalancing{}
	var errs [2]error
	out.Mode, errs[0] = named[LBMode]("mode", b.Mode, modeNames[:])
	out.HealthPolicy, errs[1] = named[HealthPolicy]("healthPolicy", b.HealthPolicy, healthNames[:])
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	for _, p := range b.Preferences {
		scope, err := named[Scope]("routingPreferences", p, scopeNames[:])
		if err != nil {
			return nil, err
		}
		out.Preferences = append(out.Preferences, scope)
	}
	return out, nil
}

type staticPolicy struct {
	Name      string            `yaml:"name"`
	Namespace string            `yaml:"namespace"`
	Scope     string            `yaml:"scope"`
	Action    string            `yaml:"action"`
	DryRun    bool              `yaml:"dryRun"`
	Rules     [][][]staticMatch `yaml:"rules"`
}

type staticMatch struct {
	Namespaces          []staticString  `yaml:"namespaces"`
	NotNamespaces       []staticString  `yaml:"notNamespaces"`
	Principals          []staticString  `yaml:"principals"`
	NotPrincipals       []staticString  `yaml:"notPrincipals"`
	ServiceAccounts     []staticAccount `yaml:"serviceAccounts"`
	NotServiceAccounts  []staticAccount `yaml:"notServiceAccounts"`
	SourceIPs           []netip.Prefix  `yaml:"sourceIps"`
	NotSourceIPs        []netip.Prefix  `yaml:"notSourceIps"`
	DestinationIPs      []netip.Prefix  `yaml:"destinationIps"`
	NotDestinationIPs   []netip.Prefix  `yaml:"notDestinationIps"`
	DestinationPorts    []uint16        `yaml:"destinationPorts"`
	NotDestinationPorts []uint16        `yaml:"notDestinationPorts"`
}

type staticAccount struct {
	Namespace      string `yaml:"namespace"`
	ServiceAccount string `yaml:"serviceAccount"`
}

func (p *staticPolicy) build() (*Policy, error) {
	out := &Policy{Name: p.Name, Namespace: p.Namespace, DryRun: p.DryRun}
	if p.Scope == "" || p.Action == "" {
		return nil, errors.New("scope and action must be set") // neither has a harmless default
	}
	var errs [2]error
	out.Scope, errs[0] = named[PolicyScope]("scope", p.Scope, policyScopeNames[:])
	out.Action, errs[1] = named[Action]("action", p.Action, actionNames[:])
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	for _, r := range p.Rules {
		var rule Rule
		for _, c := range r {
			var clause Clause
			for i := range c {
				clause.Matches = append(clause.Matches, c[i].build())
			}
			rule.Clauses = append(rule.Clauses, clause)
		}
		out.Rules = append(out.Rules, rule)
	}
	return PolicyFromProto(out.ToProto())
}

func (m *staticMatch) build() Match {
	accounts := func(list []staticAccount) (out []ServiceAccountMatch) {
		for _, a := range list {
			out = append(out, ServiceAccountMatch(a))
		}
		return out
	}
	texts := func(list []staticString) (out []StringMatch) {
		for _, s := range list {
			out = append(out, StringMatch(s))
		}
		return out
	}
	return Match{
		Namespaces: texts(m.Namespaces), NotNamespaces: texts(m.NotNamespaces),
		Principals: texts(m.Principals), NotPrincipals: texts(m.NotPrincipals),
		ServiceAccounts: accounts(m.ServiceAccounts), NotServiceAccounts: accounts(m.NotServiceAccounts),
		SourceIPs: m.SourceIPs, NotSourceIPs: m.NotSourceIPs,
		DestinationIPs: m.DestinationIPs, NotDestinationIPs: m.NotDestinationIPs,
		DestinationPorts: m.DestinationPorts, NotDestinationPorts: m.NotDestinationPorts,
	}
}

// staticString is a tagged value, !Exact "x", or the dump's {Exact: x}.
type staticString StringMatch

// UnmarshalYAML implements yaml.Unmarshaler.
func (s *staticString) UnmarshalYAML(n *yaml.Node) error {
	tag, value := n.Tag, n
	if n.Kind == yaml.MappingNode && len(n.Content) == 2 {
		tag, value = "!"+n.Content[0].Value, n.Content[1]
	}
	scalar := value.Kind == yaml.ScalarNode
	switch tag {
	case "!Exact":
		s.Kind = Exact
	case "!Prefix":
		s.Kind = Prefix
	case "!Suffix":
		s.Kind = Suffix
	case "!Presence":
		if !scalar && (value.Kind != yaml.SequenceNode || len(value.Content) > 0) || scalar && value.Value != "" {
			return fmt.Errorf("line %d: Presence takes no value", n.Line)
		}
		s.Kind = Presence
		return nil
	default:
		return fmt.Errorf("line %d: want !Exact, !Prefix, !Suffix or !Presence", n.Line)
	}
	if !scalar {
		return fmt.Errorf("line %d: %s takes a string", n.Line, s.Kind)
	}
	s.Value = value.Value
	return nil
}
