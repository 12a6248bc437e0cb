package rbac

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/xds/workload"
)

func exact(s ...string) []workload.StringMatch { return kind(workload.Exact, s...) }

func kind(k workload.StringKind, s ...string) []workload.StringMatch {
	var out []workload.StringMatch
	for _, v := range s {
		out = append(out, workload.StringMatch{Kind: k, Value: v})
	}
	return out
}

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, v := range s {
		out = append(out, netip.MustParsePrefix(v))
	}
	return out
}

// rule of one clause.
func rule(matches ...workload.Match) workload.Rule {
	return workload.Rule{Clauses: []workload.Clause{{Matches: matches}}}
}

func policy(name string, action workload.Action, rules ...workload.Rule) *workload.Policy {
	return &workload.Policy{Name: name, Namespace: "app", Scope: workload.ScopeNamespace, Action: action, Rules: rules}
}

func peer(s string) spiffeid.ID {
	if s == "" {
		return spiffeid.ID{}
	}
	return spiffeid.RequireFromString(s)
}

var (
	pod  = &workload.Workload{UID: "pod", Name: "pod", Namespace: "app"}
	conn = Connection{
		Src:  netip.MustParseAddrPort("10.0.0.9:1234"),
		Dst:  netip.MustParseAddrPort("10.0.0.1:8080"),
		Peer: spiffeid.RequireFromString("spiffe://cluster.local/ns/other/sa/client"),
	}
)

func view(policies ...*workload.Policy) *workload.View {
	s := workload.NewStore()
	s.Apply(workload.Batch{Policies: policies, Workloads: []*workload.Workload{pod}})
	return s.View()
}

// TestMatch: each matcher alone, in a DENY policy that refuses what it matches.
func TestMatch(t *testing.T) {
	plain, odd, v6 := conn, conn, conn
	plain.Peer = spiffeid.ID{}
	odd.Peer = spiffeid.RequireFromString("spiffe://cluster.local/some/thing")
	v6.Src = netip.MustParseAddrPort("[fe80::1%eth0]:1")
	mapped := conn
	mapped.Src = netip.MustParseAddrPort("[::ffff:10.0.0.9]:1234")
	sa := func(ns, name string) []workload.ServiceAccountMatch {
		return []workload.ServiceAccountMatch{{Namespace: ns, ServiceAccount: name}}
	}
	presence := kind(workload.Presence, "")
	for _, tt := range []struct {
		name  string
		conn  Connection
		match workload.Match
		want  bool
	}{
		{"empty match", conn, workload.Match{}, false},
		{"principal exact", conn, workload.Match{Principals: exact("cluster.local/ns/other/sa/client")}, true},
		{"principal with scheme never fits", conn, workload.Match{Principals: exact("spiffe://cluster.local/ns/other/sa/client")}, false},
		{"principal minds case", conn, workload.Match{Principals: exact("cluster.local/ns/Other/sa/client")}, false},
		{"principal prefix", conn, workload.Match{Principals: kind(workload.Prefix, "cluster.local/ns/other/")}, true},
		{"principal suffix", conn, workload.Match{Principals: kind(workload.Suffix, "/sa/client")}, true},
		{"principal suffix other", conn, workload.Match{Principals: kind(workload.Suffix, "/sa/clien")}, false},
		{"principal presence", conn, workload.Match{Principals: presence}, true},
		{"second of two principals", conn, workload.Match{Principals: exact("x", "cluster.local/ns/other/sa/client")}, true},
		{"principal without identity", plain, workload.Match{Principals: exact("cluster.local/ns/other/sa/client")}, false},
		{"principal presence without identity", plain, workload.Match{Principals: presence}, false},
		{"principal empty prefix without identity", plain, workload.Match{Principals: kind(workload.Prefix, "")}, false},
		{"not principal", conn, workload.Match{NotPrincipals: exact("x")}, true},
		{"not principal that fits", conn, workload.Match{NotPrincipals: exact("x", "cluster.local/ns/other/sa/client")}, false},
		{"not presence with identity", conn, workload.Match{NotPrincipals: presence}, false},
		{"not presence without identity: static strict", plain, workload.Match{NotPrincipals: presence}, true},
		{"principal of another form", odd, workload.Match{Principals: exact("cluster.local/some/thing")}, true},
		{"unknown kind", conn, workload.Match{Principals: kind(0, "")}, false},

		{"namespace", conn, workload.Match{Namespaces: exact("other")}, true},
		{"namespace other", conn, workload.Match{Namespaces: exact("app")}, false},
		{"namespace without identity", plain, workload.Match{Namespaces: exact("other")}, false},
		{"namespace presence without identity", plain, workload.Match{Namespaces: presence}, false},
		{"namespace empty prefix without identity", plain, workload.Match{Namespaces: kind(workload.Prefix, "")}, true},
		{"not namespace", conn, workload.Match{NotNamespaces: exact("app")}, true},
		{"not namespace that fits", conn, workload.Match{NotNamespaces: exact("other")}, false},
		{"not namespace without identity", plain, workload.Match{NotNamespaces: exact("other")}, true},
		{"namespace of another form", odd, workload.Match{Namespaces: presence}, false},

		{"service account", conn, workload.Match{ServiceAccounts: sa("other", "client")}, true},
		{"service account of another namespace", conn, workload.Match{ServiceAccounts: sa("app", "client")}, false},
		{"service account without identity", plain, workload.Match{ServiceAccounts: sa("", "")}, false},
		{"service account of another form", odd, workload.Match{ServiceAccounts: sa("", "")}, false},
		{"not service account", conn, workload.Match{NotServiceAccounts: sa("other", "client")}, false},
		{"not service account without identity", plain, workload.Match{NotServiceAccounts: sa("other", "client")}, true},

		{"source", conn, workload.Match{SourceIPs: prefixes("10.0.0.0/24")}, true},
		{"source other", conn, workload.Match{SourceIPs: prefixes("10.0.1.0/24")}, false},
		{"source /0 of the other family", conn, workload.Match{SourceIPs: prefixes("::/0")}, false},
		{"source mapped", mapped, workload.Match{SourceIPs: prefixes("10.0.0.9/32")}, true},
		{"source with a zone", v6, workload.Match{SourceIPs: prefixes("fe80::/64")}, true},
		{"not source", conn, workload.Match{NotSourceIPs: prefixes("10.0.0.9/32")}, false},
		{"not source other", conn, workload.Match{NotSourceIPs: prefixes("10.0.0.8/32")}, true},
		{"destination", conn, workload.Match{DestinationIPs: prefixes("10.0.0.1/32")}, true},
		{"destination other", conn, workload.Match{DestinationIPs: prefixes("10.0.0.2/32")}, false},
		{"not destination", conn, workload.Match{NotDestinationIPs: prefixes("10.0.0.1/32")}, false},
		{"port", conn, workload.Match{DestinationPorts: []uint16{80, 8080}}, true},
		{"port other", conn, workload.Match{DestinationPorts: []uint16{80}}, false},
		{"not port", conn, workload.Match{NotDestinationPorts: []uint16{8080}}, false},
		{"not port other", conn, workload.Match{NotDestinationPorts: []uint16{80}}, true},

		{"kinds are and-ed", conn, workload.Match{Namespaces: exact("other"), DestinationPorts: []uint16{80}}, false},
		{"kinds all hold", conn, workload.Match{Namespaces: exact("other"), DestinationPorts: []uint16{8080}}, true},
		{"positive and negative", conn, workload.Match{Principals: presence, NotNamespaces: exact("other")}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := view(policy("p", workload.Deny, rule(tt.match)))
			got := Evaluate(v, pod, tt.conn)
			if got.Allowed == tt.want {
				t.Errorf("match = %v, want %v (verdict %+v)", !got.Allowed, tt.want, got)
			}
		})
	}
}

// TestNesting: rules or, clauses and, matches or; and what empty ones mean.
func TestNesting(t *testing.T) {
	yes := workload.Match{Namespaces: exact("other")}
	no := workload.Match{Namespaces: exact("nobody")}
	clause := func(m ...workload.Match) workload.Clause { return workload.Clause{Matches: m} }
	clauses := func(c ...workload.Clause) workload.Rule { return workload.Rule{Clauses: c} }
	for _, tt := range []struct {
		name  string
		rules []workload.Rule
		want  bool
	}{
		{"no rules", nil, false},
		{"a rule without clauses", []workload.Rule{{}}, true},
		{"a clause without matches", []workload.Rule{clauses(clause())}, true},
		{"a match without lists", []workload.Rule{clauses(clause(workload.Match{}))}, false},
		{"an empty match beside one that holds", []workload.Rule{clauses(clause(workload.Match{}, yes))}, true},
		{"matches are or-ed", []workload.Rule{clauses(clause(no, yes))}, true},
		{"clauses are and-ed", []workload.Rule{clauses(clause(yes), clause(no))}, false},
		{"all clauses hold", []workload.Rule{clauses(clause(yes), clause(yes))}, true},
		{"an empty clause holds beside others", []workload.Rule{clauses(clause(), clause(no))}, false},
		{"rules are or-ed", []workload.Rule{clauses(clause(no)), clauses(clause(yes))}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Evaluate(view(policy("p", workload.Deny, tt.rules...)), pod, conn)
			if got.Allowed == tt.want {
				t.Errorf("match = %v, want %v", !got.Allowed, tt.want)
			}
		})
	}
}

func TestEvaluate(t *testing.T) {
	yes, no := rule(workload.Match{Namespaces: exact("other")}), rule(workload.Match{Namespaces: exact("nobody")})
	with := func(p *workload.Policy, change func(*workload.Policy)) *workload.Policy { change(p); return p }
	scoped := func(s workload.PolicyScope, ns string) func(*workload.Policy) {
		return func(p *workload.Policy) { p.Scope, p.Namespace = s, ns }
	}
	dry := func(p *workload.Policy) { p.DryRun = true }
	selector := scoped(workload.ScopeSelector, "app")
	named := func(names ...string) *workload.Workload {
		return &workload.Workload{UID: "pod", Namespace: "app", Policies: names}
	}
	for _, tt := range []struct {
		name     string
		dst      *workload.Workload
		policies []*workload.Policy
		want     Verdict
	}{
		{"no workload", nil, nil, Verdict{Reason: "workload not found", Message: MessageNoWorkload}},
		{"no policies", pod, nil, Verdict{Allowed: true, Message: "no allow policies, allow"}},
		{"denied", pod, []*workload.Policy{policy("d", workload.Deny, yes)},
			Verdict{Policy: "app/d", Reason: "explicitly denied by: app/d", Message: "deny policy match"}},
		{"deny goes before allow", pod, []*workload.Policy{policy("a", workload.Allow, yes), policy("d", workload.Deny, yes)},
			Verdict{Policy: "app/d", Reason: "explicitly denied by: app/d", Message: MessageDeny}},
		{"deny that does not match", pod, []*workload.Policy{policy("d", workload.Deny, no)},
			Verdict{Allowed: true, Message: MessageNoPolicies}},
		{"allowed", pod, []*workload.Policy{policy("a", workload.Allow, yes), policy("b", workload.Allow, no)},
			Verdict{Allowed: true, Policy: "app/a", Message: "allow policy match"}},
		{"not allowed", pod, []*workload.Policy{policy("a", workload.Allow, no)},
			Verdict{Reason: "allow policies exist, but none allowed", Message: "no allow policies matched"}},
		{"allow nothing", pod, []*workload.Policy{policy("a", workload.Allow)},
			Verdict{Reason: ReasonNotAllowed, Message: MessageNoAllow}},
		{"global", pod, []*workload.Policy{with(policy("g", workload.Deny, yes), scoped(workload.ScopeGlobal, "root"))},
			Verdict{Policy: "root/g", Reason: "explicitly denied by: root/g", Message: MessageDeny}},
		{"another namespace's", pod, []*workload.Policy{with(policy("x", workload.Deny, yes), scoped(workload.ScopeNamespace, "x"))},
			Verdict{Allowed: true, Message: MessageNoPolicies}},
		{"selector not named", pod, []*workload.Policy{with(policy("s", workload.Deny, yes), selector)},
			Verdict{Allowed: true, Message: MessageNoPolicies}},
		{"selector named", named("app/s"), []*workload.Policy{with(policy("s", workload.Deny, yes), selector)},
			Verdict{Policy: "app/s", Reason: "explicitly denied by: app/s", Message: MessageDeny}},
		{"named but missing", named("app/s", "app/t"), nil,
			Verdict{Policy: "app/s", Reason: "policy not known yet: app/s", Message: MessageMissing}},
		{"missing with an allow that fits", named("app/s"), []*workload.Policy{policy("a", workload.Allow, yes)},
			Verdict{Policy: "app/s", Reason: "policy not known yet: app/s", Message: MessageMissing}},
		{"a denial is said rather than a missing policy", named("app/s"), []*workload.Policy{policy("d", workload.Deny, yes)},
			Verdict{Policy: "app/d", Reason: "explicitly denied by: app/d", Message: MessageDeny}},
		{"dry-run deny", pod, []*workload.Policy{with(policy("d", workload.Deny, yes), dry)},
			Verdict{Allowed: true, Message: MessageNoPolicies, DryRun: []DryRun{{"dry-run: deny policy match", "app/d"}}}},
		{"dry-run deny that does not match", pod, []*workload.Policy{with(policy("d", workload.Deny, no), dry)},
			Verdict{Allowed: true, Message: MessageNoPolicies}},
		{"dry-run allow does not require one", pod, []*workload.Policy{with(policy("a", workload.Allow, no), dry)},
			Verdict{Allowed: true, Message: MessageNoPolicies, DryRun: []DryRun{{Message: "dry-run: no allow policies match"}}}},
		{"dry-run allow does not allow", pod, []*workload.Policy{with(policy("a", workload.Allow, yes), dry), policy("b", workload.Allow, no)},
			Verdict{Reason: ReasonNotAllowed, Message: MessageNoAllow, DryRun: []DryRun{{"dry-run: allow policy match", "app/a"}}}},
		{"dry-run deny beside a denial", pod, []*workload.Policy{with(policy("a", workload.Deny, yes), dry), policy("d", workload.Deny, yes)},
			Verdict{Policy: "app/d", Reason: "explicitly denied by: app/d", Message: MessageDeny, DryRun: []DryRun{{"dry-run: deny policy match", "app/a"}}}},
		{"dry-run deny behind a denial", pod, []*workload.Policy{policy("a", workload.Deny, yes), with(policy("d", workload.Deny, yes), dry)},
			Verdict{Policy: "app/a", Reason: "explicitly denied by: app/a", Message: MessageDeny, DryRun: []DryRun{{"dry-run: deny policy match", "app/d"}}}},
		{"every dry run is told", pod, []*workload.Policy{with(policy("a", workload.Deny, yes), dry), with(policy("b", workload.Deny, no), dry),
			with(policy("c", workload.Deny, yes), dry), with(policy("d", workload.Allow, yes), dry), with(policy("e", workload.Allow, no), dry),
			with(policy("f", workload.Allow, yes), dry)},
			Verdict{Allowed: true, Message: MessageNoPolicies, DryRun: []DryRun{{MessageDryDeny, "app/a"}, {MessageDryDeny, "app/c"}, {MessageDryAllow, "app/d"}, {MessageDryAllow, "app/f"}}}},
		{"dry-run allow is not told of who is denied", pod, []*workload.Policy{with(policy("a", workload.Allow, yes), dry), policy("d", workload.Deny, yes)},
			Verdict{Policy: "app/d", Reason: "explicitly denied by: app/d", Message: MessageDeny}},
		{"dry run of the whole mesh and of a selector", named("app/s"), []*workload.Policy{
			with(with(policy("g", workload.Deny, yes), scoped(workload.ScopeGlobal, "root")), dry), with(with(policy("s", workload.Deny, yes), selector), dry)},
			Verdict{Allowed: true, Message: MessageNoPolicies, DryRun: []DryRun{{MessageDryDeny, "root/g"}, {MessageDryDeny, "app/s"}}}},
		{"the first allow is named", pod, []*workload.Policy{policy("a", workload.Allow, no), policy("b", workload.Allow, yes), policy("c", workload.Allow, yes)},
			Verdict{Allowed: true, Policy: "app/b", Message: MessageAllow}},
		{"the first missing is named", named("app/x", "app/s", "app/y"), []*workload.Policy{with(policy("s", workload.Allow, yes), selector)},
			Verdict{Policy: "app/x", Reason: "policy not known yet: app/x", Message: MessageMissing}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Evaluate(view(tt.policies...), tt.dst, conn)); diff != "" {
				t.Errorf("verdict (-want +got):\n%s", diff)
			}
		})
	}
}

// TestStrictMutualTLS are the policies that Istio's control plane makes of
// PeerAuthentications: for a workload that is strict as a whole, for one that is
// but for some ports, and for one that is on some ports only.
func TestStrictMutualTLS(t *testing.T) {
	plaintext := workload.Match{NotPrincipals: kind(workload.Presence, "")}
	clause := func(m workload.Match) workload.Clause { return workload.Clause{Matches: []workload.Match{m}} }
	but := func(port uint16) workload.Clause { return clause(workload.Match{NotDestinationPorts: []uint16{port}}) }
	on := func(port uint16) workload.Rule {
		return workload.Rule{Clauses: []workload.Clause{clause(plaintext), clause(workload.Match{DestinationPorts: []uint16{port}})}}
	}
	for _, tt := range []struct {
		name   string
		rules  []workload.Rule
		denied []uint16 // ports, to plaintext
	}{
		{"istio_converted_static_strict", []workload.Rule{rule(plaintext)}, []uint16{80, 8080, 9090}},
		{"converted_peer_authentication_but", []workload.Rule{{Clauses: []workload.Clause{clause(plaintext), but(80), but(8080)}}}, []uint16{9090}},
		{"converted_peer_authentication_but_again", []workload.Rule{{Clauses: []workload.Clause{clause(plaintext), but(8080), clause(plaintext)}}}, []uint16{80, 9090}},
		{"converted_peer_authentication_on", []workload.Rule{on(80), on(9090)}, []uint16{80, 9090}},
	} {
		p := policy(tt.name, workload.Deny, tt.rules...)
		p.Scope, p.Namespace = workload.ScopeSelector, "istio-system"
		dst := &workload.Workload{UID: "pod", Namespace: "app", Policies: []string{p.ResourceName()}}
		for _, id := range []string{"", "spiffe://cluster.local/ns/x/sa/y"} {
			for _, port := range []uint16{80, 8080, 9090} {
				c := conn
				c.Peer, c.Dst = peer(id), netip.AddrPortFrom(conn.Dst.Addr(), port)
				want := id != "" || !slices.Contains(tt.denied, port)
				if got := Evaluate(view(p), dst, c); got.Allowed != want {
					t.Errorf("%s: peer %q, port %d: %+v", tt.name, id, port, got)
				}
			}
		}
	}
}

// TestStrictMutualTLSMissing: Istio's control plane names policies of PeerAuthentications
// that it never sends. They refuse who has no identity, and nobody else.
func TestStrictMutualTLSMissing(t *testing.T) {
	const mesh = "spiffe://cluster.local/ns/x/sa/y"
	missing := func(name string) Verdict {
		return Verdict{Policy: name, Reason: "policy not known yet: " + name, Message: MessageMissing}
	}
	strict := func(name string) Verdict {
		return Verdict{Policy: name, Reason: "policy not known yet, so mTLS is strict: " + name, Message: MessageMissing}
	}
	const peerAuth, static = "app/converted_peer_authentication_p", "istio-system/istio_converted_static_strict"
	allowed := Verdict{Allowed: true, Message: MessageNoPolicies}
	denied := Verdict{Policy: "app/d", Reason: "explicitly denied by: app/d", Message: MessageDeny}
	for _, tt := range []struct {
		name     string
		named    []string
		policies []*workload.Policy
		known    Verdict // of a client with an identity
		unknown  Verdict
	}{
		{"a workload's", []string{peerAuth}, nil, allowed, strict(peerAuth)},
		{"static", []string{static}, nil, allowed, strict(static)},
		{"both", []string{static, peerAuth}, nil, allowed, strict(static)},
		{"another one is missing, too", []string{peerAuth, "app/s"}, nil, missing("app/s"), strict(peerAuth)},
		{"before it", []string{"app/s", peerAuth}, nil, missing("app/s"), missing("app/s")},
		{"others go on to decide", []string{peerAuth}, []*workload.Policy{policy("d", workload.Deny, workload.Rule{})}, denied, denied},
		{"allow policies, too", []string{peerAuth}, []*workload.Policy{policy("a", workload.Allow)},
			Verdict{Reason: ReasonNotAllowed, Message: MessageNoAllow}, strict(peerAuth)},
		{"nor is plaintext allowed by one", []string{peerAuth}, []*workload.Policy{policy("a", workload.Allow, workload.Rule{})},
			Verdict{Allowed: true, Policy: "app/a", Message: MessageAllow}, strict(peerAuth)},
		{"a name like it", []string{"app/converted-peer-authentication-p"}, nil, missing("app/converted-peer-authentication-p"), missing("app/converted-peer-authentication-p")},
		{"a part of it", []string{"app/x_converted_peer_authentication_p"}, nil, missing("app/x_converted_peer_authentication_p"), missing("app/x_converted_peer_authentication_p")},
		{"more than static", []string{static + "er"}, nil, missing(static + "er"), missing(static + "er")},
		{"a waypoint's", []string{"app/istio_allow_waypoint_app_wp"}, nil, missing("app/istio_allow_waypoint_app_wp"), missing("app/istio_allow_waypoint_app_wp")},
		{"no namespace", []string{"istio_converted_static_strict"}, nil, missing("istio_converted_static_strict"), missing("istio_converted_static_strict")},
		{"a namespace of that name", []string{"converted_peer_authentication_x/p"}, nil, missing("converted_peer_authentication_x/p"), missing("converted_peer_authentication_x/p")},
	} {
		dst := &workload.Workload{UID: "pod", Namespace: "app", Policies: tt.named}
		for id, want := range map[string]Verdict{mesh: tt.known, "": tt.unknown} {
			c := conn
			c.Peer = peer(id)
			if diff := cmp.Diff(want, Evaluate(view(tt.policies...), dst, c)); diff != "" {
				t.Errorf("%s, peer %q (-want +got):\n%s", tt.name, id, diff)
			}
		}
	}
}

func TestEvaluateAllocations(t *testing.T) {
	var rules []workload.Rule
	for range 50 {
		rules = append(rules, rule(workload.Match{Principals: kind(workload.Prefix, strings.Repeat("x", 20)), SourceIPs: prefixes("192.168.0.0/16")}))
	}
	v := view(policy("a", workload.Deny, rules...), policy("b", workload.Deny, rules...))
	if n := testing.AllocsPerRun(100, func() {
		if !Evaluate(v, pod, conn).Allowed {
			t.Fatal("refused")
		}
	}); n > 0 {
		t.Errorf("%v allocations an evaluation, want none", n)
	}
}

// BenchmarkEvaluate: policies of which none matches but, for "allow", the last.
func BenchmarkEvaluate(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		for name, last := range map[string]*workload.Policy{"deny": nil, "allow": policy("zz", workload.Allow, rule(workload.Match{Namespaces: exact("other")}))} {
			var policies []*workload.Policy
			for i := range n {
				policies = append(policies, policy(fmt.Sprint("p", i), workload.Deny,
					rule(workload.Match{Principals: exact(fmt.Sprint("cluster.local/ns/other/sa/", i)), DestinationPorts: []uint16{8080}})))
			}
			if last != nil {
				policies = append(policies, last)
			}
			v := view(policies...)
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if !Evaluate(v, pod, conn).Allowed {
						b.Fatal("refused")
					}
				}
			})
		}
	}
}

// BenchmarkEvaluateSelected: policies that the workload names.
func BenchmarkEvaluateSelected(b *testing.B) {
	dst := &workload.Workload{UID: "pod", Namespace: "app"}
	var policies []*workload.Policy
	for i := range 1000 {
		p := policy(fmt.Sprint("p", i), workload.Deny, rule(workload.Match{SourceIPs: prefixes("192.168.0.0/16")}))
		p.Scope = workload.ScopeSelector
		policies, dst.Policies = append(policies, p), append(dst.Policies, p.ResourceName())
	}
	v := view(policies...)
	b.ReportAllocs()
	for b.Loop() {
		if !Evaluate(v, dst, conn).Allowed {
			b.Fatal("refused")
		}
	}
}
