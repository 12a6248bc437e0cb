package workload

import "net/netip"

// Policy says who may reach the workloads it guards. It matches a connection when
// one of its rules does; package proxy/rbac evaluates it.
type Policy struct {
	Name      string
	Namespace string
	Scope     PolicyScope
	Action    Action
	DryRun    bool // recorded, never enforced
	Rules     []Rule
}

// Rule matches when all its clauses do.
type Rule struct{ Clauses []Clause }

// Clause matches when one of its matches does, or when it has none.
type Clause struct{ Matches []Match }

// Match holds when each of its lists does: a positive list when one entry fits,
// a Not list when none does. Without any list it never holds.
type Match struct {
	Namespaces, NotNamespaces             []StringMatch
	Principals, NotPrincipals             []StringMatch // the SPIFFE ID without "spiffe://"
	ServiceAccounts, NotServiceAccounts   []ServiceAccountMatch
	SourceIPs, NotSourceIPs               []netip.Prefix
	DestinationIPs, NotDestinationIPs     []netip.Prefix
	DestinationPorts, NotDestinationPorts []uint16 // the port that the application listens on
}

// Empty reports whether no list is set.
func (m *Match) Empty() bool {
	return len(m.Namespaces)+len(m.NotNamespaces)+len(m.Principals)+len(m.NotPrincipals)+
		len(m.ServiceAccounts)+len(m.NotServiceAccounts)+len(m.SourceIPs)+len(m.NotSourceIPs)+
		len(m.DestinationIPs)+len(m.NotDestinationIPs)+len(m.DestinationPorts)+len(m.NotDestinationPorts) == 0
}

// StringKind is how a StringMatch compares.
type StringKind uint8

// String matches; the zero value is not one.
const (
	Exact StringKind = iota + 1
	Prefix
	Suffix
	Presence // any value but the empty one
)

func (k StringKind) String() string {
	return name([]string{"", "Exact", "Prefix", "Suffix", "Presence"}, k)
}

// StringMatch compares a string, minding case.
type StringMatch struct {
	Kind  StringKind
	Value string // empty for Presence
}

// ServiceAccountMatch fits an identity of any trust domain.
type ServiceAccountMatch struct{ Namespace, ServiceAccount string }

// ResourceName is the xDS name, "namespace/name", by which workloads refer to it.
func (p *Policy) ResourceName() string { return p.Namespace + "/" + p.Name }
