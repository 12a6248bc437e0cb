package rbac

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/warren-mesh/warren/xds/workload"
)

// facts are a connection in the form that policies compare.
type facts struct {
	src, dst  netip.Addr
	port      uint16
	known     bool   // an identity was proved
	principal string // without "spiffe://"
	namespace string // of the identity; empty when there is none
	account   string
}

func newFacts(c Connection) facts {
	f := facts{src: plain(c.Src.Addr()), dst: plain(c.Dst.Addr()), port: c.Dst.Port()}
	if c.Peer.IsZero() {
		return f
	}
	f.known = true
	f.principal = strings.TrimPrefix(c.Peer.String(), "spiffe://")
	// An identity of another form has a principal, but neither of these.
	f.namespace, f.account, _ = workload.SplitIdentity(c.Peer)
	return f
}

// plain is an address that prefixes can contain: IPv4 as such, and without the zone
// of a link-local one, with which it would be in no prefix at all.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// match: one rule must hold; a policy without rules never matches.
func (f *facts) match(p *workload.Policy) bool {
	for i := range p.Rules {
		if f.rule(&p.Rules[i]) {
			return true
		}
	}
	return false
}

// rule: every clause must hold; one without clauses holds.
func (f *facts) rule(r *workload.Rule) bool {
	for i := range r.Clauses {
		if !f.clause(&r.Clauses[i]) {
			return false
		}
	}
	return true
}

// clause: one match must hold; a clause without matches holds.
func (f *facts) clause(c *workload.Clause) bool {
	for i := range c.Matches {
		if f.matches(&c.Matches[i]) {
			return true
		}
	}
	return len(c.Matches) == 0
}

// matches: every list that is set must hold; a match without lists does not.
func (f *facts) matches(m *workload.Match) bool {
	return !m.Empty() &&
		f.principals(m.Principals, m.NotPrincipals) &&
		f.namespaces(m.Namespaces, m.NotNamespaces) &&
		f.accounts(m.ServiceAccounts, m.NotServiceAccounts) &&
		addr(f.src, m.SourceIPs, m.NotSourceIPs) &&
		addr(f.dst, m.DestinationIPs, m.NotDestinationIPs) &&
		ports(f.port, m.DestinationPorts, m.NotDestinationPorts)
}

// principals: without an identity no positive entry fits, Presence included, and
// no negative one either.
func (f *facts) principals(want, not []workload.StringMatch) bool {
	if !f.known {
		return len(want) == 0
	}
	return text(f.principal, want, not)
}

// namespaces compares the empty string when there is no identity.
func (f *facts) namespaces(want, not []workload.StringMatch) bool {
	return text(f.namespace, want, not)
}

func (f *facts) accounts(want, not []workload.ServiceAccountMatch) bool {
	fits := func(m workload.ServiceAccountMatch) bool {
		return f.account != "" && m.Namespace == f.namespace && m.ServiceAccount == f.account
	}
	return (len(want) == 0 || slices.ContainsFunc(want, fits)) && !slices.ContainsFunc(not, fits)
}

func text(s string, want, not []workload.StringMatch) bool {
	return (len(want) == 0 || anyText(s, want)) && !anyText(s, not)
}

func anyText(s string, list []workload.StringMatch) bool {
	for _, m := range list {
		switch m.Kind {
		case workload.Exact:
			if s == m.Value {
				return true
			}
		case workload.Prefix:
			if strings.HasPrefix(s, m.Value) {
				return true
			}
		case workload.Suffix:
			if strings.HasSuffix(s, m.Value) {
				return true
			}
		case workload.Presence:
			if s != "" {
				return true
			}
		}
	}
	return false
}

func addr(a netip.Addr, want, not []netip.Prefix) bool {
	fits := func(p netip.Prefix) bool { return p.Contains(a) }
	return (len(want) == 0 || slices.ContainsFunc(want, fits)) && !slices.ContainsFunc(not, fits)
}

func ports(p uint16, want, not []uint16) bool {
	return (len(want) == 0 || slices.Contains(want, p)) && !slices.Contains(not, p)
}
