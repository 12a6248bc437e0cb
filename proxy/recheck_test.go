package proxy_test

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/warren-mesh/warren/xds/workload"
)

// Selector policies that come and go re-check what is live: across nodes, within
// one, and of clients without an identity.
func TestPolicyDetachedCuts(t *testing.T) {
	m := newMesh(t, 2)
	server := m.nodes[1].meshPod("server")
	far, near := m.nodes[0].meshPod("far"), m.nodes[1].meshPod("near")
	witness := m.nodes[0].meshPod("witness")
	outside := m.nodes[0].pod("outside")
	server.echo(8080)
	selector := func(name string, action workload.Action, matches ...workload.Match) *workload.Policy {
		return &workload.Policy{
			Name: name, Namespace: "default", Scope: workload.ScopeSelector, Action: action,
			Rules: []workload.Rule{{Clauses: []workload.Clause{{Matches: matches}}}},
		}
	}
	noIdentity := workload.Match{NotPrincipals: []workload.StringMatch{{Kind: workload.Presence}}}
	dry := selector("dry", workload.Deny, workload.Match{Principals: principals(far, near, witness)}, noIdentity)
	dry.DryRun = true
	nobody := selector("nobody", workload.Allow)
	nobody.Rules = nil
	m.apply(workload.Batch{Policies: []*workload.Policy{
		selector("first", workload.Allow, workload.Match{Principals: principals(far, near)}, noIdentity),
		selector("second", workload.Allow, workload.Match{Principals: principals(witness)}),
		dry, nobody,
	}})
	attach := func(names ...string) {
		w := *server.w
		for _, n := range names {
			w.Policies = append(w.Policies, "default/"+n)
		}
		m.apply(workload.Batch{Workloads: []*workload.Workload{&w}})
	}
	all := []*pod{far, near, outside, witness}
	for _, tt := range []struct {
		name     string
		from, to []string // what the workload names
		cut      []*pod
	}{
		{"one that allowed is detached", []string{"first", "second"}, []string{"second"}, []*pod{far, near, outside}},
		{"another one is", []string{"first", "second"}, []string{"first"}, []*pod{witness}},
		{"all are: everybody is allowed", []string{"first", "second"}, nil, nil},
		{"the first is attached", nil, []string{"second"}, []*pod{far, near, outside}},
		{"one that allows nobody is attached", nil, []string{"nobody"}, all},
		{"one that is not known is attached", nil, []string{"unknown"}, all},
		{"one that is not known and about mTLS is attached", nil, []string{"converted_peer_authentication_p"}, []*pod{outside}},
		{"one in dry run is attached", nil, []string{"dry"}, nil},
		{"their order changes", []string{"first", "second"}, []string{"second", "first"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			attach(tt.from...)
			lines := map[*pod]*openLine{}
			for _, p := range all {
				l := open(t, p, server.addr(8080))
				defer l.Close()
				lines[p] = l
			}
			attach(tt.to...)
			for _, p := range tt.cut {
				if _, err := io.ReadAll(lines[p]); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%s: ended with %v, want it cut", p.Name, err)
				}
				delete(lines, p)
			}
			until(t, "the change was looked at", func() bool { return m.nodes[1].srv.Judged() })
			for _, l := range lines {
				l.ping(t)
			}
		})
	}
}

// Policies that a pod is to have and that are not there are named in the log, once, and
// counted, for as long as the pod is.
func TestMissingPoliciesAreTold(t *testing.T) {
	m := newMesh(t, 1)
	n := m.nodes[0]
	server, other := n.meshPod("server"), n.meshPod("other")
	name := func(p *pod, names ...string) {
		p.change(func(w *workload.Workload) { w.Policies = names })
	}
	count := func(want float64) {
		t.Helper()
		until(t, "they are counted", func() bool { return n.gauge(t, "warren_policies_missing") == want })
	}
	const strict = "default/converted_peer_authentication_p"
	mark := n.logs.mark()
	count(0)
	name(server, strict)
	count(1)
	name(other, strict, "default/p")
	count(2)
	if err := n.srv.Handler().Del(t.Context(), other.uid); err != nil {
		t.Fatal(err)
	}
	count(1)
	name(server)
	count(0)
	for _, want := range [][2]string{{server.uid, "plaintext"}, {other.uid, "everything"}} {
		lines := 0
		for line := range strings.Lines(n.logs.text()[mark:]) {
			if strings.Contains(line, "has not sent them") && strings.Contains(line, want[0]) && strings.Contains(line, strict) && strings.Contains(line, want[1]) {
				lines++
			}
		}
		if lines != 1 {
			t.Errorf("%d lines say that %s refuses %s, want 1:\n%s", lines, want[0], want[1], n.logs.text()[mark:])
		}
	}
}

// gauge is the value of a gauge without labels.
func (n *node) gauge(t *testing.T, name string) float64 {
	t.Helper()
	families, err := n.srv.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// An edited policy is re-checked by what it says now, wherever it is attached.
func TestPolicyEditedCuts(t *testing.T) {
	m := newMesh(t, 2)
	server := m.nodes[1].meshPod("server")
	client, witness := m.nodes[0].meshPod("client"), m.nodes[0].meshPod("witness")
	server.echo(8080)
	p := deny("selected", workload.Match{DestinationPorts: []uint16{1}})
	p.Scope = workload.ScopeSelector
	w := *server.w
	w.Policies = []string{"default/selected"}
	m.apply(workload.Batch{Policies: []*workload.Policy{p}, Workloads: []*workload.Workload{&w}})
	victim, other := open(t, client, server.addr(8080)), open(t, witness, server.addr(8080))
	defer victim.Close()
	defer other.Close()
	edited := *p
	edited.Rules = deny("", workload.Match{Principals: principals(client)}).Rules
	edited.DryRun = true
	m.apply(workload.Batch{Policies: []*workload.Policy{&edited}})
	until(t, "the change was looked at", func() bool { return m.nodes[1].srv.Judged() })
	victim.ping(t)
	enforced := edited
	enforced.DryRun = false
	m.apply(workload.Batch{Policies: []*workload.Policy{&enforced}})
	if _, err := io.ReadAll(victim); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("ended with %v, want it cut", err)
	}
	other.ping(t)
}

// What a policy in dry run would have done is counted and logged, once a connection,
// and nothing else.
func TestDryRunIsCounted(t *testing.T) {
	m := newMesh(t, 2)
	client, server, near := m.nodes[0].meshPod("client"), m.nodes[1].meshPod("server"), m.nodes[1].meshPod("near")
	server.echo(8080)
	dry := func(p *workload.Policy, name string, action workload.Action) *workload.Policy {
		p.Name, p.Action, p.DryRun = name, action, true
		return p
	}
	m.apply(workload.Batch{Policies: []*workload.Policy{
		dry(deny("", workload.Match{Principals: principals(client)}), "denies", workload.Deny),
		dry(deny("", workload.Match{Principals: principals(near)}), "allows", workload.Allow),
	}})
	mark := m.nodes[1].logs.mark()
	client.mustCall(server.addr(8080))
	client.mustCall(server.addr(8080))
	near.mustCall(server.addr(8080))
	for want, n := range map[[2]string]int{
		{"default/denies", "deny"}: 2, {"default/allows", "allow"}: 1, {"", "none_allowed"}: 2,
	} {
		if got := dryRuns(t, m.nodes[1], want[0], want[1]); got != n {
			t.Errorf("%v was counted %d times, want %d", want, got, n)
		}
	}
	for message, n := range map[string]int{"dry-run: deny policy match": 2, "dry-run: allow policy match": 1, "dry-run: no allow policies match": 2} {
		count := func() int { return strings.Count(m.nodes[1].logs.text()[mark:], message) }
		until(t, message, func() bool { return count() >= n }) // lines are gathered for a moment
		if got := count(); got != n {
			t.Errorf("%q was logged %d times, want %d", message, got, n)
		}
	}
}

func dryRuns(t *testing.T, n *node, policy, verdict string) int {
	t.Helper()
	families, err := n.srv.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "warren_policy_dry_run_total" {
			continue
		}
		for _, x := range f.GetMetric() {
			if l := x.GetLabel(); l[0].GetValue() == policy && l[1].GetValue() == verdict {
				return int(x.GetCounter().GetValue())
			}
		}
	}
	return 0
}
