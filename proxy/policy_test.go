package proxy_test

import (
	"bufio"
	"errors"
	"io"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/warren-mesh/warren/xds/workload"
)

// deny is a policy of the pods' namespace with one match.
func deny(name string, m workload.Match) *workload.Policy {
	return &workload.Policy{
		Name: name, Namespace: "default", Scope: workload.ScopeNamespace, Action: workload.Deny,
		Rules: []workload.Rule{{Clauses: []workload.Clause{{Matches: []workload.Match{m}}}}},
	}
}

func principals(p ...*pod) (out []workload.StringMatch) {
	for _, x := range p {
		out = append(out, workload.StringMatch{Kind: workload.Exact, Value: strings.TrimPrefix(x.identity(), "spiffe://")})
	}
	return out
}

func TestPolicies(t *testing.T) {
	m := newMesh(t, 2)
	good, bad := m.nodes[0].meshPod("good"), m.nodes[0].meshPod("bad")
	server := m.nodes[1].meshPod("server")
	outside := m.nodes[0].pod("outside")
	server.echo(8080)
	server.echo(9090)
	tests := []struct {
		name            string
		policy          *workload.Policy
		allowed, denied func() []*pod
		port            int
		reason          string
	}{
		{"deny a principal", deny("p", workload.Match{Principals: principals(bad)}),
			func() []*pod { return []*pod{good, outside} }, func() []*pod { return []*pod{bad} }, 8080, "explicitly denied by: default/p"},
		{"deny a namespace", deny("p", workload.Match{Namespaces: []workload.StringMatch{{Kind: workload.Exact, Value: "default"}}}),
			func() []*pod { return []*pod{outside} }, func() []*pod { return []*pod{good, bad} }, 8080, "explicitly denied by: default/p"},
		{"deny an address", deny("p", workload.Match{SourceIPs: []netip.Prefix{netip.PrefixFrom(outside.IP4, 32)}}),
			func() []*pod { return []*pod{good} }, func() []*pod { return []*pod{outside} }, 8080, "explicitly denied by: default/p"},
		{"deny a port", deny("p", workload.Match{DestinationPorts: []uint16{9090}}),
			nil, func() []*pod { return []*pod{good, outside} }, 9090, "explicitly denied by: default/p"},
		{"deny a port, another is free", deny("p", workload.Match{DestinationPorts: []uint16{9090}}),
			func() []*pod { return []*pod{good, outside} }, nil, 8080, ""},
		{"strict mutual TLS", deny("p", workload.Match{NotPrincipals: []workload.StringMatch{{Kind: workload.Presence}}}),
			func() []*pod { return []*pod{good, bad} }, func() []*pod { return []*pod{outside} }, 8080, "explicitly denied by: default/p"},
		{"allow a principal", &workload.Policy{
			Name: "p", Namespace: "default", Scope: workload.ScopeNamespace, Action: workload.Allow,
			Rules: []workload.Rule{{Clauses: []workload.Clause{{Matches: []workload.Match{{Principals: principals(good)}}}}}},
		}, func() []*pod { return []*pod{good} }, func() []*pod { return []*pod{bad, outside} }, 8080, "allow policies exist, but none allowed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m.apply(workload.Batch{Policies: []*workload.Policy{tt.policy}})
			defer m.apply(workload.Batch{RemovedPolicies: []string{"default/p"}})
			if tt.allowed != nil {
				for _, p := range tt.allowed() {
					p.mustCall(server.addr(tt.port))
				}
			}
			if tt.denied == nil {
				return
			}
			for _, p := range tt.denied() {
				sm, cm := server.node.logs.mark(), p.node.logs.mark()
				// Nothing is sent: what is not read would make it a reset anyhow.
				if _, _, err := p.call(server.addr(tt.port), ""); err == nil || errors.Is(err, io.EOF) {
					t.Errorf("%s: ended with %v, want an error that no application takes for an empty answer", p.Name, err)
				}
				server.node.logs.access(t, sm, map[string]string{
					"direction": "inbound", "src.addr": p.IP4.String(), "error": "connection closed due to policy rejection: " + tt.reason,
				})
				if p != outside {
					p.node.logs.access(t, cm, map[string]string{"direction": "outbound", "error": "http status: 401 Unauthorized"})
				}
			}
		})
	}
}

// A live connection is judged again when a policy changes, and when the pod's
// own list of policies does.
func TestPolicyChangeCuts(t *testing.T) {
	m := newMesh(t, 2)
	client, other := m.nodes[0].meshPod("client"), m.nodes[0].meshPod("other")
	server := m.nodes[1].meshPod("server")
	outside := m.nodes[0].pod("outside")
	server.echo(8080)
	selector := deny("selected", workload.Match{Principals: principals(client)})
	selector.Scope = workload.ScopeSelector
	m.apply(workload.Batch{Policies: []*workload.Policy{selector}})
	everywhere := deny("everywhere", workload.Match{DestinationPorts: []uint16{1}})
	everywhere.Scope, everywhere.Namespace = workload.ScopeGlobal, "istio-system"
	stricter := *everywhere
	stricter.Rules = deny("", workload.Match{Principals: principals(other)}).Rules
	allow := func(name string, p ...*pod) *workload.Policy {
		a := deny(name, workload.Match{Principals: principals(p...)})
		a.Action = workload.Allow
		return a
	}
	m.apply(workload.Batch{Policies: []*workload.Policy{everywhere, allow("all", client, other), allow("rest", client, other), {
		Name: "plain", Namespace: "default", Scope: workload.ScopeNamespace, Action: workload.Allow,
		Rules: []workload.Rule{{Clauses: []workload.Clause{{Matches: []workload.Match{{NotPrincipals: []workload.StringMatch{{Kind: workload.Presence}}}}}}}},
	}}})
	attached := *server.w
	attached.Policies = []string{"default/selected"}
	tests := []struct {
		name      string
		change    workload.Batch
		undo      workload.Batch
		cut, stay *pod
	}{
		{"a new policy", workload.Batch{Policies: []*workload.Policy{deny("live", workload.Match{Principals: principals(client)})}},
			workload.Batch{RemovedPolicies: []string{"default/live"}}, client, other},
		{"plaintext is denied", workload.Batch{Policies: []*workload.Policy{deny("live", workload.Match{NotPrincipals: []workload.StringMatch{{Kind: workload.Presence}}})}},
			workload.Batch{RemovedPolicies: []string{"default/live"}}, outside, other},
		{"a policy is attached to the workload", workload.Batch{Workloads: []*workload.Workload{&attached}},
			workload.Batch{Workloads: []*workload.Workload{server.w}}, client, other},
		{"a policy of the whole mesh changes", workload.Batch{Policies: []*workload.Policy{&stricter}},
			workload.Batch{Policies: []*workload.Policy{everywhere}}, other, client},
		{"a policy that allowed is gone", workload.Batch{RemovedPolicies: []string{"default/plain"}},
			workload.Batch{Policies: []*workload.Policy{allow("plain", outside)}}, outside, client},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			defer m.apply(tt.undo)
			victim, witness := open(t, tt.cut, server.addr(8080)), open(t, tt.stay, server.addr(8080))
			defer victim.Close()
			defer witness.Close()
			mark := server.node.logs.mark()
			m.apply(tt.change)
			if _, err := io.ReadAll(victim); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the connection that is denied now ended with %v, want a reset", err)
			}
			server.node.logs.access(t, mark, map[string]string{
				"direction": "inbound", "src.addr": tt.cut.IP4.String(), "error": "connection closed due to policy change",
			})
			witness.ping(t)
		})
	}
	t.Run("of a pod that the control plane has forgotten", func(t *testing.T) {
		victim := open(t, client, server.addr(8080))
		defer victim.Close()
		m.nodes[1].srv.Store().Apply(workload.Batch{RemovedAddresses: []string{server.w.UID}})
		victim.ping(t)
		m.apply(workload.Batch{Policies: []*workload.Policy{deny("live", workload.Match{Principals: principals(client)})}})
		if _, err := io.ReadAll(victim); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("ended with %v, want a reset", err)
		}
	})
	until(t, "all connections are gone", func() bool { return m.nodes[0].srv.Tracked().Len()+m.nodes[1].srv.Tracked().Len() == 0 })
}

// line is an open connection to an echo.
type openLine struct {
	io.ReadWriteCloser
	r *bufio.Reader
}

func open(t *testing.T, p *pod, addr string) *openLine {
	t.Helper()
	c, err := p.dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	l := &openLine{c, bufio.NewReader(c)}
	if _, err := l.r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	l.ping(t)
	return l
}

// ping proves that the connection works both ways.
func (l *openLine) ping(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(l, "ping\n"); err != nil {
		t.Fatal(err)
	}
	if s, err := l.r.ReadString('\n'); s != "ping\n" || err != nil {
		t.Fatalf("answer %q, %v", s, err)
	}
}
