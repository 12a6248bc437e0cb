package translate

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"

	apisecurity "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/warren-mesh/warren/xds/workload"
)

// Names that strict mTLS goes by among the policies.
const (
	staticStrictName    = "istio_converted_static_strict"
	convertedPeerPrefix = "converted_peer_authentication_"
)

// peerIndex says which policy makes mTLS strict for a pod. PeerAuthentications hold at
// three levels, of which the nearest that sets a mode counts: the mesh (root namespace,
// no selector), a namespace, and the pods of a namespace that a selector names. Of two
// at one level the older counts.
type peerIndex struct {
	static     string // name of the policy for "strict on every port"
	mesh       *securityv1.PeerAuthentication
	namespaces map[string]*securityv1.PeerAuthentication
	selectors  map[string][]*securityv1.PeerAuthentication // by namespace, oldest first
	root       string
}

// strictness is what holds for a pod: a mode, and ports that differ from it.
type strictness struct {
	strict     bool
	exceptions []uint16 // sorted
}

// peerAuthentications indexes them and makes the policies they come down to: DENY
// policies that refuse a client without an identity.
func (b *builder) peerAuthentications(list []*securityv1.PeerAuthentication) []*workload.Policy {
	x := &peerIndex{
		root:       b.opts.RootNamespace,
		static:     b.opts.RootNamespace + "/" + staticStrictName,
		namespaces: make(map[string]*securityv1.PeerAuthentication),
		selectors:  make(map[string][]*securityv1.PeerAuthentication),
	}
	b.peers = x
	if len(list) == 0 {
		return nil
	}
	list = sorted(list)
	for _, p := range list {
		switch {
		case len(p.Spec.GetSelector().GetMatchLabels()) > 0:
			x.selectors[p.Namespace] = append(x.selectors[p.Namespace], p)
		case p.Namespace == x.root:
			x.mesh = b.older(x.mesh, p)
		default:
			x.namespaces[p.Namespace] = b.older(x.namespaces[p.Namespace], p)
		}
		b.checkPorts(p)
	}
	out := []*workload.Policy{denyPlaintext(x.root, staticStrictName, workload.Rule{Clauses: []workload.Clause{noPrincipal()}})}
	for _, p := range list {
		if s := x.strictness(p.Namespace, p); len(p.Spec.GetSelector().GetMatchLabels()) > 0 && len(s.exceptions) > 0 {
			out = append(out, denyPlaintext(p.Namespace, convertedPeerPrefix+p.Name, s.rules()...))
		}
	}
	return out
}

// checkPorts reports modes of ports that have no effect.
func (b *builder) checkPorts(p *securityv1.PeerAuthentication) {
	ports := p.Spec.GetPortLevelMtls()
	report := b.reporter("PeerAuthentication", p.Namespace, p.Name)
	if len(ports) > 0 && len(p.Spec.GetSelector().GetMatchLabels()) == 0 {
		report("spec.portLevelMtls", "has no effect without a selector")
		return
	}
	for _, port := range slices.Sorted(maps.Keys(ports)) {
		if port == 0 || port > math.MaxUint16 {
			report(fmt.Sprintf("spec.portLevelMtls[%d]", port), "not a port number: has no effect")
		}
	}
}

// older returns the one that counts and reports the other.
func (b *builder) older(a, c *securityv1.PeerAuthentication) *securityv1.PeerAuthentication {
	if a == nil {
		return c
	}
	if byAge(c, a) < 0 {
		a, c = c, a
	}
	b.reporter("PeerAuthentication", c.Namespace, c.Name)("spec.selector", "has no effect: "+a.Name+" holds for the whole namespace and is older")
	return a
}

func byAge(a, b *securityv1.PeerAuthentication) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
}

// policyFor names the policy for what has these labels in a namespace, empty when
// plaintext is let in everywhere.
func (x *peerIndex) policyFor(namespace string, labels map[string]string) string {
	var selected *securityv1.PeerAuthentication
	for _, p := range x.selectors[namespace] {
		if subset(p.Spec.GetSelector().GetMatchLabels(), labels) && (selected == nil || byAge(p, selected) < 0) {
			selected = p
		}
	}
	s := x.strictness(namespace, selected)
	switch {
	case len(s.exceptions) > 0:
		return selected.Namespace + "/" + convertedPeerPrefix + selected.Name
	case s.strict:
		return x.static
	}
	return ""
}

// strictness follows the levels down to the one with a selector, which may be nil.
func (x *peerIndex) strictness(ns string, selected *securityv1.PeerAuthentication) strictness {
	var s strictness
	for _, p := range []*securityv1.PeerAuthentication{x.mesh, x.namespaces[ns], selected} {
		if p != nil {
			s.strict = strict(p.Spec.GetMtls(), s.strict)
		}
	}
	if selected == nil {
		return s
	}
	ports := selected.Spec.GetPortLevelMtls()
	for _, port := range slices.Sorted(maps.Keys(ports)) {
		if port > 0 && port <= math.MaxUint16 && strict(ports[port], s.strict) != s.strict {
			s.exceptions = append(s.exceptions, uint16(port))
		}
	}
	return s
}

// strict reads a mode; one that is not set is that of the level above. There is no mTLS
// to switch off in the proxies: DISABLE lets plaintext in like PERMISSIVE.
func strict(m *apisecurity.PeerAuthentication_MutualTLS, above bool) bool {
	if m.GetMode() == apisecurity.PeerAuthentication_MutualTLS_UNSET {
		return above
	}
	return m.GetMode() == apisecurity.PeerAuthentication_MutualTLS_STRICT
}

// rules says when to refuse, for a mode with exceptions: plaintext on all ports but
// these, or plaintext on any of these.
func (s strictness) rules() []workload.Rule {
	if s.strict {
		r := workload.Rule{Clauses: []workload.Clause{noPrincipal()}}
		for _, p := range s.exceptions {
			r.Clauses = append(r.Clauses, oneMatch(workload.Match{NotDestinationPorts: []uint16{p}}))
		}
		return []workload.Rule{r}
	}
	var out []workload.Rule
	for _, p := range s.exceptions {
		out = append(out, workload.Rule{Clauses: []workload.Clause{noPrincipal(), oneMatch(workload.Match{DestinationPorts: []uint16{p}})}})
	}
	return out
}

func denyPlaintext(ns, name string, rules ...workload.Rule) *workload.Policy {
	return &workload.Policy{Namespace: ns, Name: name, Scope: workload.ScopeSelector, Action: workload.Deny, Rules: rules}
}

func oneMatch(m workload.Match) workload.Clause { return workload.Clause{Matches: []workload.Match{m}} }

// noPrincipal matches a client without an identity.
func noPrincipal() workload.Clause {
	return oneMatch(workload.Match{NotPrincipals: []workload.StringMatch{{Kind: workload.Presence}}})
}
