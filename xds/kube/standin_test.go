package kube

import (
	"strings"
	"testing"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

func peerAuthentication(name string, spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
		"metadata": map[string]any{"namespace": "app", "name": name}, "spec": spec}}
}

// Of a policy that nobody could read since the start the safe side is taken, for what it
// selects; of one that could be read before, what it was, with what it is called now.
func TestUnreadablePolicies(t *testing.T) {
	selector := map[string]any{"matchLabels": map[string]any{"app": "web"}}
	for name, c := range map[string]struct {
		spec   map[string]any // beside the action
		action string
		want   string // action
		rules  int
		labels int
		refs   int
		says   string
	}{
		"a newer action":     {map[string]any{"selector": selector}, "LIMIT", "DENY", 1, 1, 0, "denies everything"},
		"DENY, bad rules":    {map[string]any{"selector": selector, "rules": "none"}, "DENY", "DENY", 1, 1, 0, "denies everything"},
		"ALLOW, bad rules":   {map[string]any{"selector": selector, "rules": "none"}, "ALLOW", "ALLOW", 0, 1, 0, "allows nothing"},
		"bad selector":       {map[string]any{"selector": "web"}, "ALLOW", "ALLOW", 0, 0, 0, "allows nothing"},
		"AUDIT, bad rules":   {map[string]any{"rules": 7}, "AUDIT", "AUDIT", 0, 0, 0, "no effect"},
		"bad target":         {map[string]any{"targetRefs": "x"}, "DENY", "DENY", 0, 0, 1, "waypoint"},
		"target, bad action": {map[string]any{"targetRef": map[string]any{"kind": "Gateway"}}, "LIMIT", "ALLOW", 0, 0, 1, "waypoint"},
	} {
		table := newTable(keepAuthorization, func(a, b *securityv1.AuthorizationPolicy) bool { return sameVersion(a, b) }, func() {})
		table.standIn = standInAuthorization
		p := policy("p", c.action, c.spec)
		p.SetGeneration(3)
		if err := table.Update(p); err != nil {
			t.Fatal(err)
		}
		problems := table.complaints("AuthorizationPolicy")
		if len(table.all()) != 1 || len(problems) != 1 {
			t.Errorf("%s: %v, problems %v", name, table.all(), problems)
			continue
		}
		got := table.all()[0]
		if got.Spec.GetAction().String() != c.want || len(got.Spec.GetRules()) != c.rules || len(got.Spec.GetSelector().GetMatchLabels()) != c.labels || len(got.Spec.GetTargetRefs()) != c.refs || got.Generation != 3 {
			t.Errorf("%s: generation %d, %v", name, got.Generation, &got.Spec)
		}
		if !problems[0].Unread || problems[0].APIVersion != "security.istio.io/v1" || !strings.Contains(problems[0].Reason, c.says) {
			t.Errorf("%s: %+v", name, problems[0])
		}
	}
}

// A policy that changes to what cannot be read stays what it was, and no older one of its
// name does; whatever it is, its generation is the one that the status is about.
func TestUnreadableNow(t *testing.T) {
	peers := newTable(keepPeerAuthentication, func(a, b *securityv1.PeerAuthentication) bool { return sameVersion(a, b) }, func() {})
	peers.standIn = standInPeerAuthentication
	step := func(what, uid string, generation int64, mode string, want string, unread bool) {
		t.Helper()
		p := peerAuthentication("p", map[string]any{"mtls": map[string]any{"mode": mode}})
		p.SetUID(types.UID(uid))
		p.SetGeneration(generation)
		if err := peers.Replace([]any{p}, ""); err != nil {
			t.Fatal(err)
		}
		all, bad := peers.all(), peers.complaints("PeerAuthentication")
		if len(all) != 1 || all[0].Spec.GetMtls().GetMode().String() != want || all[0].Generation != generation || (len(bad) == 1 && bad[0].Unread) != unread {
			t.Errorf("%s: %v, %v", what, all, bad)
		}
	}
	step("read", "1", 1, "PERMISSIVE", "PERMISSIVE", false)
	step("a mistake", "1", 2, "STRICTER", "PERMISSIVE", true)
	step("another mistake", "1", 3, "STRICTEST", "PERMISSIVE", true)
	step("mended", "1", 4, "DISABLE", "DISABLE", false)
	step("another of its name", "2", 1, "STRICTER", "STRICT", true)
	step("still", "2", 2, "STRICTEST", "STRICT", true)
	step("mended, too", "2", 3, "DISABLE", "DISABLE", false)
}
