package translate

import (
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	apisecurity "istio.io/api/security/v1beta1"
	"sigs.k8s.io/yaml"

	"github.com/warren-mesh/warren/xds/workload"
)

// TestRules is about what layer 4 cannot check and what makes no sense. The groups are
// JSON without quotes; "none" is a policy without groups, which matches nothing, and
// {} is a group that matches everything.
func TestRules(t *testing.T) {
	for name, c := range map[string]struct {
		rules       string // YAML flow
		allow, deny string
		reports     []string // of ALLOW, as field: beginning of the reason
	}{
		"no rules":        {`[]`, "none", "none", nil},
		"one empty rule":  {`[{}]`, "{}", "{}", nil},
		"layer 7 only":    {`[{to: [{operation: {paths: [/a]}}]}]`, "none", "{}", []string{"spec.rules[0].to[0].operation.paths: cannot be checked at layer 4", "spec.rules[0]: the rule is left out"}},
		"layer 7 beside":  {`[{to: [{operation: {methods: [GET], ports: ["99"]}}]}]`, "none", "{rules:[{matches:[{destinationPorts:[99]}]}]}", []string{"spec.rules[0].to[0].operation.methods", "spec.rules[0]"}},
		"one of two":      {`[{to: [{operation: {hosts: [h]}}, {operation: {ports: ["99"]}}]}]`, "none", "{}", []string{"spec.rules[0].to[0].operation.hosts", "spec.rules[0]"}},
		"not at layer 7":  {`[{to: [{operation: {notMethods: [GET]}}], from: [{source: {namespaces: [a]}}]}]`, "none", "{rules:[{matches:[{namespaces:[{exact:a}]}]}]}", []string{"spec.rules[0].to[0].operation.notMethods", "spec.rules[0]"}},
		"request source":  {`[{from: [{source: {requestPrincipals: ["*"]}}]}]`, "none", "{}", []string{"spec.rules[0].from[0].source.requestPrincipals", "spec.rules[0]"}},
		"remote address":  {`[{from: [{source: {remoteIpBlocks: [10.0.0.0/8], namespaces: [a]}}]}]`, "none", "{rules:[{matches:[{namespaces:[{exact:a}]}]}]}", []string{"spec.rules[0].from[0].source.remoteIpBlocks", "spec.rules[0]"}},
		"other condition": {`[{when: [{key: "request.headers[x]", values: [a]}, {key: source.ip, values: [10.0.0.1]}]}]`, "none", "{rules:[{matches:[{sourceIps:[{address:CgAAAQ==,length:32}]}]}]}", []string{`spec.rules[0].when[0].key "request.headers[x]"`, "spec.rules[0]"}},
		"field as a key":  {`[{when: [{key: ports, values: ["1"]}]}]`, "none", "{}", []string{`spec.rules[0].when[0].key "ports"`, "spec.rules[0]"}},
		"others stay":     {`[{to: [{operation: {paths: [/a]}}]}, {from: [{source: {namespaces: [a]}}]}]`, "{rules:[{matches:[{namespaces:[{exact:a}]}]}]}", "{} {rules:[{matches:[{namespaces:[{exact:a}]}]}]}", []string{"spec.rules[0].to[0].operation.paths", "spec.rules[0]"}},

		"bad block":        {`[{from: [{source: {ipBlocks: [10.0.0.0/8, 10.0.0.0/33]}}]}]`, "none", "{}", []string{`spec.rules[0].from[0].source.ipBlocks: not understood: "10.0.0.0/33" is neither`, "spec.rules[0]"}},
		"bad negative":     {`[{from: [{source: {notIpBlocks: [10.0.0.0/8, x]}}]}]`, "none", "{rules:[{matches:[{notSourceIps:[{address:CgAAAA==,length:8}]}]}]}", []string{"spec.rules[0].from[0].source.notIpBlocks", "spec.rules[0]"}},
		"bad port":         {`[{to: [{operation: {ports: ["0"]}}]}]`, "none", "{}", []string{`spec.rules[0].to[0].operation.ports: not understood: "0" is not a port`, "spec.rules[0]"}},
		"large port":       {`[{to: [{operation: {ports: ["65536"]}}]}]`, "none", "{}", []string{"spec.rules[0].to[0].operation.ports", "spec.rules[0]"}},
		"spiffe principal": {`[{from: [{source: {principals: ["spiffe://td/ns/a/sa/b"]}}]}]`, "none", "{rules:[{matches:[{principals:[{exact:td/ns/a/sa/b}]}]}]}", []string{`spec.rules[0].from[0].source.principals: not understood: "spiffe://td/ns/a/sa/b": principals are written without`, "spec.rules[0]"}},
		"not spiffe":       {`[{from: [{source: {notPrincipals: ["spiffe://td/ns/a/sa/b"]}}]}]`, "none", "{}", []string{"spec.rules[0].from[0].source.notPrincipals", "spec.rules[0]"}},
		"empty string":     {`[{from: [{source: {namespaces: [""]}}]}]`, "none", "{}", []string{"spec.rules[0].from[0].source.namespaces", "spec.rules[0]"}},
		"bad account":      {`[{from: [{source: {serviceAccounts: ["a/b/c"]}}]}]`, "none", "{}", []string{"spec.rules[0].from[0].source.serviceAccounts", "spec.rules[0]"}},
		"star inside":      {`[{from: [{source: {principals: ["td/ns/*/sa/b"]}}]}]`, "none", "{}", []string{`spec.rules[0].from[0].source.principals: not understood: "td/ns/*/sa/b": * can be`, "spec.rules[0]"}},
		"not star inside":  {`[{from: [{source: {notPrincipals: ["td/ns/*/sa/b", x]}}]}]`, "none", "{rules:[{matches:[{notPrincipals:[{exact:x}]}]}]}", []string{`spec.rules[0].from[0].source.notPrincipals`, "spec.rules[0]"}},
		"two stars":        {`[{from: [{source: {namespaces: ["*a*"]}}]}]`, "none", "{}", []string{`spec.rules[0].from[0].source.namespaces`, "spec.rules[0]"}},
		"only stars":       {`[{from: [{source: {namespaces: ["**"]}}]}]`, "none", "{}", []string{`spec.rules[0].from[0].source.namespaces`, "spec.rules[0]"}},
		"stars at an end":  {`[{from: [{source: {namespaces: [a*, "*b", "*"]}}]}]`, "{rules:[{matches:[{namespaces:[{prefix:a},{suffix:b},{presence:{}}]}]}]}", "{rules:[{matches:[{namespaces:[{prefix:a},{suffix:b},{presence:{}}]}]}]}", nil},
		"mapped block":     {`[{from: [{source: {ipBlocks: ["::ffff:10.0.0.0/104"]}}]}]`, "{rules:[{matches:[{sourceIps:[{address:CgAAAA==,length:8}]}]}]}", "{rules:[{matches:[{sourceIps:[{address:CgAAAA==,length:8}]}]}]}", nil},
		"too wide a block": {`[{from: [{source: {ipBlocks: ["::ffff:10.0.0.0/95"]}}]}]`, "none", "{}", []string{"spec.rules[0].from[0].source.ipBlocks", "spec.rules[0]"}},
		"starred account":  {`[{from: [{source: {serviceAccounts: ["a/*"]}}]}]`, "none", "{}", []string{"spec.rules[0].from[0].source.serviceAccounts", "spec.rules[0]"}},
		"empty source":     {`[{from: [{}]}]`, "{rules:[{matches:[{}]}]}", "{}", nil}, // {} as a match is never true
		"valueless key":    {`[{when: [{key: source.ip}]}]`, "{rules:[{matches:[{}]}]}", "{}", nil},
	} {
		t.Run(name, func(t *testing.T) {
			allow, reports := readRules(t, c.rules, false)
			deny, _ := readRules(t, c.rules, true)
			if allow != c.allow {
				t.Errorf("ALLOW = %s, want %s", allow, c.allow)
			}
			if deny != c.deny {
				t.Errorf("DENY = %s, want %s", deny, c.deny)
			}
			if len(reports) != len(c.reports) {
				t.Fatalf("reports = %q, want %q", reports, c.reports)
			}
			for i := range reports {
				if !strings.HasPrefix(reports[i], c.reports[i]) {
					t.Errorf("report %d = %q, want %q", i, reports[i], c.reports[i])
				}
			}
		})
	}
}

func readRules(t *testing.T, text string, deny bool) (groups string, reports []string) {
	t.Helper()
	var docs []json.RawMessage
	if err := yaml.Unmarshal([]byte(text), &docs); err != nil {
		t.Fatal(err)
	}
	var rules []*apisecurity.Rule
	for _, d := range docs {
		r := &apisecurity.Rule{}
		if err := protojson.Unmarshal(d, r); err != nil {
			t.Fatal(err)
		}
		rules = append(rules, r)
	}
	r := &ruleReader{namespace: "ns", deny: deny, report: func(field, reason string) { reports = append(reports, field+": "+reason) }}
	var out []string
	for _, g := range (&workload.Policy{Rules: r.rules(rules)}).ToProto().GetGroups() {
		b, err := protojson.Marshal(g)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, strings.NewReplacer(`"`, "", " ", "").Replace(string(b)))
	}
	if out == nil {
		return "none", reports
	}
	return strings.Join(out, " "), reports
}

// FuzzDenyNeverVanishes: whatever stands in a DENY rule, no rule comes out that has
// an empty match, which never holds, where a part of it was left out.
func FuzzDenyNeverVanishes(f *testing.F) {
	f.Add("10.0.0.0/8", "/path", "80", "request.headers[x]", "spiffe://a")
	f.Add("", "", "", "", "")
	f.Add("::1", "GET", "x", "source.ip", "*")
	f.Fuzz(func(t *testing.T, block, path, port, key, who string) {
		rule := &apisecurity.Rule{
			From: []*apisecurity.Rule_From{{Source: &apisecurity.Source{IpBlocks: []string{block}, Principals: []string{who}}}, {Source: &apisecurity.Source{RequestPrincipals: []string{who}}}},
			To:   []*apisecurity.Rule_To{{Operation: &apisecurity.Operation{Paths: []string{path}}}, {Operation: &apisecurity.Operation{Ports: []string{port}, Methods: []string{path}}}},
			When: []*apisecurity.Condition{{Key: key, Values: []string{block, who}}, {Key: key, NotValues: []string{port}}},
		}
		r := &ruleReader{namespace: "ns", deny: true, report: func(string, string) {}}
		rules := r.rules([]*apisecurity.Rule{rule})
		if len(rules) != 1 {
			t.Fatalf("%d rules of one DENY rule", len(rules))
		}
		for _, c := range rules[0].Clauses {
			for _, m := range c.Matches {
				if m.Empty() {
					t.Fatalf("a clause with a match that never holds: %+v", rules[0])
				}
			}
		}
	})
}
