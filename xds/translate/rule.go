package translate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	apisecurity "istio.io/api/security/v1beta1"

	"github.com/warren-mesh/warren/xds/workload"
)

// ruleReader reads the rules of one policy. What a proxy at layer 4
// cannot check, or what makes no sense, never makes the policy weaker:
//
//   - an ALLOW rule with such a part is left out, so that less is allowed;
//   - in a DENY rule only the part is left out, so that more is denied. If nothing of
//     a source or operation is left it stands for all of them, never for none.
type ruleReader struct {
	namespace string
	deny      bool
	report    func(field, reason string)
}

// attribute is what a layer 4 match can look at.
type attribute int

const (
	unsupported attribute = iota
	principal
	namespace
	serviceAccount
	sourceIP
	destinationIP
	destinationPort
)

// attributeOf knows the fields of sources and operations, without "not", and the keys
// of conditions. Everything else is for layer 7.
func attributeOf(name string) attribute {
	switch name {
	case "principals", "source.principal":
		return principal
	case "namespaces", "source.namespace":
		return namespace
	case "serviceAccounts", "source.serviceAccount":
		return serviceAccount
	case "ipBlocks", "source.ip":
		return sourceIP
	case "destination.ip":
		return destinationIP
	case "ports", "destination.port":
		return destinationPort
	}
	return unsupported
}

// term is one list of values that a rule compares an attribute with.
type term struct {
	field  string // path in the object, for reports
	attr   attribute
	not    bool
	values []string
}

// rules reads all rules.
func (r *ruleReader) rules(list []*apisecurity.Rule) []workload.Rule {
	var out []workload.Rule
	for i, rule := range list {
		if read, ok := r.rule(fmt.Sprintf("spec.rules[%d]", i), rule); ok {
			out = append(out, read)
		}
	}
	return out
}

// rule reads one rule; not ok leaves it out. A rule without clauses matches everything.
func (r *ruleReader) rule(path string, rule *apisecurity.Rule) (out workload.Rule, ok bool) {
	var to, from []match
	for i, t := range rule.GetTo() {
		to = append(to, r.match(terms(fmt.Sprintf("%s.to[%d].operation", path, i), t.GetOperation())))
	}
	for i, f := range rule.GetFrom() {
		from = append(from, r.match(terms(fmt.Sprintf("%s.from[%d].source", path, i), f.GetSource())))
	}
	clauses := [][]match{to, from}
	for i, w := range rule.GetWhen() {
		clauses = append(clauses, []match{r.match(conditionTerms(fmt.Sprintf("%s.when[%d]", path, i), w))})
	}
	for _, c := range clauses {
		if slices.ContainsFunc(c, func(m match) bool { return m.unsafe }) {
			r.report(path, "the rule is left out, so that it cannot allow more than was meant")
			return workload.Rule{}, false
		}
		if len(c) == 0 || slices.ContainsFunc(c, func(m match) bool { return m.everything }) {
			continue
		}
		clause := workload.Clause{}
		for _, m := range c {
			clause.Matches = append(clause.Matches, m.Match)
		}
		out.Clauses = append(out.Clauses, clause)
	}
	return out, true
}

// match is one alternative of a clause.
type match struct {
	workload.Match
	everything bool // matches whatever comes; Match, being empty, would match nothing
	unsafe     bool // cannot be expressed without allowing more
}

func (r *ruleReader) match(list []term) match {
	var m match
	for _, t := range list {
		if t.attr == unsupported {
			r.report(t.field, "cannot be checked at layer 4"+r.consequence())
			m.unsafe = m.unsafe || !r.deny
			continue
		}
		values, bad := r.parse(t)
		if len(bad) > 0 {
			r.report(t.field, fmt.Sprintf("not understood: %s%s", strings.Join(bad, "; "), r.consequence()))
			m.unsafe = m.unsafe || !r.deny
			if !t.not {
				continue // without the values not understood the list would deny less
			}
		}
		for _, v := range values {
			v(&m.Match)
		}
	}
	m.everything = r.deny && m.Empty()
	return m
}

func (r *ruleReader) consequence() string {
	if r.deny {
		return ": ignored, so that this DENY rule denies more"
	}
	return ""
}

// terms lists the set fields of a source or an operation. It works on the message, so
// that a field that a later version adds is unsupported rather than overlooked.
func terms(path string, m proto.Message) []term {
	var out []term
	m.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := fd.JSONName()
		t := term{field: path + "." + name, attr: unsupported}
		if base, ok := strings.CutPrefix(name, "not"); ok && base != "" {
			t.not = true
			name = strings.ToLower(base[:1]) + base[1:]
		}
		if fd.IsList() && fd.Kind() == protoreflect.StringKind {
			t.attr = attributeOf(name)
			for i := range v.List().Len() {
				t.values = append(t.values, v.List().Get(i).String())
			}
		}
		out = append(out, t)
		return true
	})
	slices.SortFunc(out, func(a, b term) int { return cmp.Compare(a.field, b.field) })
	return out
}

func conditionTerms(path string, c *apisecurity.Condition) []term {
	attr := attributeOf(c.GetKey())
	if !strings.Contains(c.GetKey(), ".") {
		attr = unsupported // a field of a source is not a key
	}
	if attr == unsupported {
		return []term{{field: fmt.Sprintf("%s.key %q", path, c.GetKey()), attr: unsupported}}
	}
	var out []term
	if len(c.GetValues()) > 0 {
		out = append(out, term{field: path + ".values", attr: attr, values: c.GetValues()})
	}
	if len(c.GetNotValues()) > 0 {
		out = append(out, term{field: path + ".notValues", attr: attr, not: true, values: c.GetNotValues()})
	}
	return out
}

// parse turns the values of a term into what adds them to a match, and names the
// values that mean nothing.
func (r *ruleReader) parse(t term) (add []func(*workload.Match), bad []string) {
	for _, v := range t.values {
		f, err := r.value(t, v)
		if err != nil {
			bad = append(bad, err.Error())
			continue
		}
		add = append(add, f)
	}
	return add, bad
}

func (r *ruleReader) value(t term, v string) (func(*workload.Match), error) {
	switch t.attr {
	case principal, namespace:
		if t.attr == principal && strings.HasPrefix(v, "spiffe://") {
			if !r.deny || t.not {
				return nil, fmt.Errorf("%q: principals are written without spiffe://", v)
			}
			v = strings.TrimPrefix(v, "spiffe://") // which would never match; deny what was meant
		}
		s, err := stringMatch(v)
		return func(m *workload.Match) {
			if t.attr == principal {
				put(&m.Principals, &m.NotPrincipals, t.not, s)
			} else {
				put(&m.Namespaces, &m.NotNamespaces, t.not, s)
			}
		}, err
	case serviceAccount:
		s, err := r.serviceAccount(v)
		return func(m *workload.Match) { put(&m.ServiceAccounts, &m.NotServiceAccounts, t.not, s) }, err
	case sourceIP, destinationIP:
		a, err := block(v)
		return func(m *workload.Match) {
			if t.attr == sourceIP {
				put(&m.SourceIPs, &m.NotSourceIPs, t.not, a)
			} else {
				put(&m.DestinationIPs, &m.NotDestinationIPs, t.not, a)
			}
		}, err
	default:
		n, err := strconv.ParseUint(v, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("%q is not a port", v)
		}
		return func(m *workload.Match) { put(&m.DestinationPorts, &m.NotDestinationPorts, t.not, uint16(n)) }, nil
	}
}

func put[T any](yes, no *[]T, not bool, v T) {
	if not {
		*no = append(*no, v)
	} else {
		*yes = append(*yes, v)
	}
}

// stringMatch reads a value with at most one * at its beginning or end. Elsewhere it would
// be compared as it stands, and no name has one: a DENY rule would deny nobody, and an
// ALLOW rule with "not" allow everybody.
func stringMatch(v string) (workload.StringMatch, error) {
	switch {
	case v == "":
		return workload.StringMatch{}, fmt.Errorf("%q is empty", v)
	case v == "*":
		return workload.StringMatch{Kind: workload.Presence}, nil
	case strings.Contains(strings.TrimSuffix(v[1:], "*"), "*") || strings.HasPrefix(v, "*") && strings.HasSuffix(v, "*"):
		return workload.StringMatch{}, fmt.Errorf("%q: * can be the first or the last character, not both", v)
	case strings.HasPrefix(v, "*"):
		return workload.StringMatch{Kind: workload.Suffix, Value: v[1:]}, nil
	case strings.HasSuffix(v, "*"):
		return workload.StringMatch{Kind: workload.Prefix, Value: v[:len(v)-1]}, nil
	}
	return workload.StringMatch{Kind: workload.Exact, Value: v}, nil
}

// serviceAccount reads "namespace/account", or "account" of the policy's namespace.
func (r *ruleReader) serviceAccount(v string) (workload.ServiceAccountMatch, error) {
	ns, sa, ok := strings.Cut(v, "/")
	if !ok {
		ns, sa = r.namespace, v
	}
	if ns == "" || sa == "" || strings.ContainsAny(sa, "/*") || strings.Contains(ns, "*") {
		return workload.ServiceAccountMatch{}, fmt.Errorf("%q is not namespace/account", v)
	}
	return workload.ServiceAccountMatch{Namespace: ns, ServiceAccount: sa}, nil
}

// block reads an address or a CIDR block.
func block(v string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(v)
	if err != nil {
		ip, ipErr := netip.ParseAddr(v)
		if ipErr != nil || ip.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is neither an IP address nor a CIDR block", v)
		}
		p = netip.PrefixFrom(ip, ip.BitLen())
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, fmt.Errorf("%q holds more than IPv4 addresses", v)
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}
