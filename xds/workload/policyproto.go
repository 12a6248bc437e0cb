package workload

import (
	"errors"
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"istio.io/istio/pkg/workloadapi/security"
)

// PolicyFromProto converts a policy. A piece that is not understood rejects the
// whole policy: dropping a matcher could make a denial match nothing, or a
// permission everything. Fields that this version does not know count as such
// where they could be conditions, in a matcher's values too (a modifier there may make
// it narrower), provided that p was decoded with them.
func PolicyFromProto(p *security.Authorization) (*Policy, error) {
	if p.GetName() == "" {
		return nil, errors.New("workload: policy name is empty")
	}
	out := &Policy{Name: p.GetName(), Namespace: p.GetNamespace(), DryRun: p.GetDryRun()}
	var err error
	if out.Scope, err = enum[PolicyScope]("scope", p.GetScope(), policyScopeNames[:]); err != nil {
		return nil, fmt.Errorf("workload: policy: %w", err)
	}
	if out.Action, err = enum[Action]("action", p.GetAction(), actionNames[:]); err != nil {
		return nil, fmt.Errorf("workload: policy: %w", err)
	}
	if out.Scope == ScopeNamespace && out.Namespace == "" {
		return nil, errors.New("workload: policy: scope NAMESPACE without a namespace")
	}
	for i, g := range p.GetGroups() {
		rule := Rule{}
		if unknown(g) {
			return nil, fmt.Errorf("workload: policy: groups[%d]: %w", i, errUnknownField)
		}
		for j, r := range g.GetRules() {
			clause := Clause{}
			if unknown(r) {
				return nil, fmt.Errorf("workload: policy: groups[%d].rules[%d]: %w", i, j, errUnknownField)
			}
			for k, m := range r.GetMatches() {
				match, err := matchFromProto(m)
				if err != nil {
					return nil, fmt.Errorf("workload: policy: groups[%d].rules[%d].matches[%d]: %w", i, j, k, err)
				}
				clause.Matches = append(clause.Matches, match)
			}
			rule.Clauses = append(rule.Clauses, clause)
		}
		out.Rules = append(out.Rules, rule)
	}
	return out, nil
}

var errUnknownField = errors.New("a field that is not known here")

// unknown reports whether a message came with fields of a newer version.
func unknown(m proto.Message) bool { return len(m.ProtoReflect().GetUnknown()) > 0 }

func matchFromProto(m *security.Match) (Match, error) {
	var out Match
	if unknown(m) || len(m.GetExtensions()) > 0 {
		return out, errUnknownField
	}
	var errs [12]error
	out.Namespaces, errs[0] = stringsFromProto("namespaces", m.GetNamespaces())
	out.NotNamespaces, errs[1] = stringsFromProto("not_namespaces", m.GetNotNamespaces())
	out.Principals, errs[2] = stringsFromProto("principals", m.GetPrincipals())
	out.NotPrincipals, errs[3] = stringsFromProto("not_principals", m.GetNotPrincipals())
	out.SourceIPs, errs[4] = prefixesFromProto("source_ips", m.GetSourceIps())
	out.NotSourceIPs, errs[5] = prefixesFromProto("not_source_ips", m.GetNotSourceIps())
	out.DestinationIPs, errs[6] = prefixesFromProto("destination_ips", m.GetDestinationIps())
	out.NotDestinationIPs, errs[7] = prefixesFromProto("not_destination_ips", m.GetNotDestinationIps())
	out.DestinationPorts, errs[8] = ports16("destination_ports", m.GetDestinationPorts())
	out.NotDestinationPorts, errs[9] = ports16("not_destination_ports", m.GetNotDestinationPorts())
	out.ServiceAccounts, errs[10] = accountsFromProto("service_accounts", m.GetServiceAccounts())
	out.NotServiceAccounts, errs[11] = accountsFromProto("not_service_accounts", m.GetNotServiceAccounts())
	return out, errors.Join(errs[:]...)
}

func stringsFromProto(field string, list []*security.StringMatch) ([]StringMatch, error) {
	var out []StringMatch
	for _, m := range list {
		if unknown(m) {
			return nil, fmt.Errorf("%s: %w", field, errUnknownField)
		}
		switch t := m.GetMatchType().(type) {
		case *security.StringMatch_Exact:
			out = append(out, StringMatch{Exact, t.Exact})
		case *security.StringMatch_Prefix:
			out = append(out, StringMatch{Prefix, t.Prefix})
		case *security.StringMatch_Suffix:
			out = append(out, StringMatch{Suffix, t.Suffix})
		case *security.StringMatch_Presence:
			if unknown(t.Presence) {
				return nil, fmt.Errorf("%s: %w", field, errUnknownField)
			}
			out = append(out, StringMatch{Kind: Presence})
		default:
			return nil, fmt.Errorf("%s: a string match without a type", field)
		}
	}
	return out, nil
}

func prefixesFromProto(field string, list []*security.Address) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, p := range list {
		if unknown(p) {
			return nil, fmt.Errorf("%s: %w", field, errUnknownField)
		}
		a, err := addrFromBytes(p.GetAddress())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", field, err)
		}
		bits, err := prefixBits(p.GetAddress(), p.GetLength())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", field, err)
		}
		out = append(out, netip.PrefixFrom(a, bits).Masked())
	}
	return out, nil
}

func ports16(field string, list []uint32) ([]uint16, error) {
	var out []uint16
	for _, p := range list {
		v, err := port16(p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", field, err)
		}
		out = append(out, v)
	}
	return out, nil
}

func accountsFromProto(field string, list []*security.ServiceAccountMatch) ([]ServiceAccountMatch, error) {
	var out []ServiceAccountMatch
	for _, m := range list {
		if unknown(m) {
			return nil, fmt.Errorf("%s: %w", field, errUnknownField)
		}
		out = append(out, ServiceAccountMatch{Namespace: m.GetNamespace(), ServiceAccount: m.GetServiceAccount()})
	}
	return out, nil
}

// ToProto is the policy's wire form.
func (p *Policy) ToProto() *security.Authorization {
	out := &security.Authorization{
		Name: p.Name, Namespace: p.Namespace, DryRun: p.DryRun,
		Scope: security.Scope(p.Scope), Action: security.Action(p.Action),
	}
	for _, r := range p.Rules {
		group := &security.Group{}
		for _, c := range r.Clauses {
			rules := &security.Rules{}
			for i := range c.Matches {
				rules.Matches = append(rules.Matches, c.Matches[i].toProto())
			}
			group.Rules = append(group.Rules, rules)
		}
		out.Groups = append(out.Groups, group)
	}
	return out
}

func (m *Match) toProto() *security.Match {
	return &security.Match{
		Namespaces: stringsToProto(m.Namespaces), NotNamespaces: stringsToProto(m.NotNamespaces),
		Principals: stringsToProto(m.Principals), NotPrincipals: stringsToProto(m.NotPrincipals),
		ServiceAccounts: accountsToProto(m.ServiceAccounts), NotServiceAccounts: accountsToProto(m.NotServiceAccounts),
		SourceIps: prefixesToProto(m.SourceIPs), NotSourceIps: prefixesToProto(m.NotSourceIPs),
		DestinationIps: prefixesToProto(m.DestinationIPs), NotDestinationIps: prefixesToProto(m.NotDestinationIPs),
		DestinationPorts: ports32(m.DestinationPorts), NotDestinationPorts: ports32(m.NotDestinationPorts),
	}
}

func stringsToProto(list []StringMatch) []*security.StringMatch {
	var out []*security.StringMatch
	for _, m := range list {
		p := &security.StringMatch{}
		switch m.Kind {
		case Exact:
			p.MatchType = &security.StringMatch_Exact{Exact: m.Value}
		case Prefix:
			p.MatchType = &security.StringMatch_Prefix{Prefix: m.Value}
		case Suffix:
			p.MatchType = &security.StringMatch_Suffix{Suffix: m.Value}
		case Presence:
			p.MatchType = &security.StringMatch_Presence{Presence: &emptypb.Empty{}}
		}
		out = append(out, p)
	}
	return out
}

func prefixesToProto(list []netip.Prefix) []*security.Address {
	var out []*security.Address
	for _, p := range list {
		out = append(out, &security.Address{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())})
	}
	return out
}

func ports32(list []uint16) []uint32 {
	var out []uint32
	for _, p := range list {
		out = append(out, uint32(p))
	}
	return out
}

func accountsToProto(list []ServiceAccountMatch) []*security.ServiceAccountMatch {
	var out []*security.ServiceAccountMatch
	for _, m := range list {
		out = append(out, &security.ServiceAccountMatch{Namespace: m.Namespace, ServiceAccount: m.ServiceAccount})
	}
	return out
}
