package translate

import (
	"fmt"
	"strings"
	"testing"
)

// TestStrictness holds what PeerAuthentications come down to for one pod, app/p with
// label app=p.
func TestStrictness(t *testing.T) {
	const root, app = "istio-system", "app"
	pa := func(ns, name, created, spec string) string {
		return fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: %s, namespace: %s, creationTimestamp: %q}\nspec: %s", name, ns, created, spec)
	}
	const old, young = "2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z"
	const static = "istio-system/istio_converted_static_strict"
	selected := func(rest string) string { return "{selector: {matchLabels: {app: p}}, " + rest + "}" }
	for name, c := range map[string]struct {
		peers    []string
		want     string // the policy listed on the pod
		problems int
	}{
		"nothing":                     {nil, "", 0},
		"mesh":                        {[]string{pa(root, "m", old, "{mtls: {mode: STRICT}}")}, static, 0},
		"namespace opens":             {[]string{pa(root, "m", old, "{mtls: {mode: STRICT}}"), pa(app, "n", old, "{mtls: {mode: PERMISSIVE}}")}, "", 0},
		"namespace disables":          {[]string{pa(root, "m", old, "{mtls: {mode: STRICT}}"), pa(app, "n", old, "{mtls: {mode: DISABLE}}")}, "", 0},
		"namespace unset inherits":    {[]string{pa(root, "m", old, "{mtls: {mode: STRICT}}"), pa(app, "n", old, "{}")}, static, 0},
		"selector wins":               {[]string{pa(app, "n", old, "{mtls: {mode: PERMISSIVE}}"), pa(app, "s", old, selected("mtls: {mode: STRICT}"))}, static, 0},
		"selector opens":              {[]string{pa(app, "n", old, "{mtls: {mode: STRICT}}"), pa(app, "s", old, selected("mtls: {mode: PERMISSIVE}"))}, "", 0},
		"other namespace":             {[]string{pa("other", "n", old, "{mtls: {mode: STRICT}}")}, "", 0},
		"other label":                 {[]string{pa(app, "s", old, "{selector: {matchLabels: {app: q}}, mtls: {mode: STRICT}}")}, "", 0},
		"root selector stays at home": {[]string{pa(root, "s", old, selected("mtls: {mode: STRICT}"))}, "", 0},
		"older namespace":             {[]string{pa(app, "a", young, "{mtls: {mode: PERMISSIVE}}"), pa(app, "b", old, "{mtls: {mode: STRICT}}")}, static, 1},
		"older selector":              {[]string{pa(app, "a", young, selected("mtls: {mode: PERMISSIVE}")), pa(app, "b", old, selected("mtls: {mode: STRICT}"))}, static, 0},
		"same age, by name":           {[]string{pa(app, "b", old, "{mtls: {mode: PERMISSIVE}}"), pa(app, "a", old, "{mtls: {mode: STRICT}}")}, static, 1},
		"open port":                   {[]string{pa(app, "s", old, selected(`mtls: {mode: STRICT}, portLevelMtls: {"80": {mode: PERMISSIVE}}`))}, "app/converted_peer_authentication_s", 0},
		"strict port":                 {[]string{pa(app, "s", old, selected(`portLevelMtls: {"80": {mode: STRICT}}`))}, "app/converted_peer_authentication_s", 0},
		"port as the rest, strict":    {[]string{pa(app, "s", old, selected(`mtls: {mode: STRICT}, portLevelMtls: {"80": {mode: STRICT}}`))}, static, 0},
		"port as the rest, open":      {[]string{pa(app, "s", old, selected(`portLevelMtls: {"80": {mode: PERMISSIVE}}`))}, "", 0},
		"ports without selector":      {[]string{pa(app, "n", old, `{portLevelMtls: {"80": {mode: STRICT}}}`)}, "", 1},
	} {
		t.Run(name, func(t *testing.T) {
			pod := "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: app, labels: {app: p}}\nstatus: {podIPs: [{ip: 10.0.0.1}]}"
			p, err := All(parseObjects(t, strings.Join(append(c.peers, pod), "\n---\n")), Options{})
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(p.Workloads[0].Policies, " "); got != c.want {
				t.Errorf("policies = %q, want %q", got, c.want)
			}
			if len(p.Problems) != c.problems {
				t.Errorf("problems = %v, want %d", p.Problems, c.problems)
			}
			sent := make(map[string]bool)
			for _, a := range p.Policies {
				sent[a.Namespace+"/"+a.Name] = true
			}
			if c.want != "" && !sent[c.want] {
				t.Errorf("%s is listed but not among the policies %v", c.want, sent)
			}
			if len(c.peers) > 0 && !sent[static] {
				t.Error("the static policy is missing though there are PeerAuthentications")
			}
		})
	}
}
