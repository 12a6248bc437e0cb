//go:build istiod

package istiod

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// The policies of these tests would keep the client out of server.
const (
	tried    = "app/tried"
	triedDoc = `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: tried, namespace: app, annotations: {istio.io/dry-run: "DRY"}}
spec: {selector: {matchLabels: {version: v1}}, action: DENY, rules: [{from: [{source: {principals: ["cluster.local/ns/app/sa/client"]}}]}]}
`
)

// TestDryRunUnsent: a policy in dry run is by default not told to proxies, by istiod as
// by ours, and no workload is bound to it.
func TestDryRunUnsent(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.store(t, triedDoc, "true")
		t.Cleanup(func() {
			if err := w.Remove("AuthorizationPolicy", "app", "tried"); err != nil {
				t.Error(err)
			}
		})
		// What is told later is told in order: by then that policy would be known.
		w.put(t, "AuthorizationPolicy", "app", "after", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: after, namespace: app}\nspec: {selector: {matchLabels: {version: v1}}, action: DENY, rules: [{from: [{source: {principals: [\"cluster.local/ns/app/sa/other\"]}}]}]}\n")
		w.refused(t, w.other, on(w.server, 18080), "explicitly denied by: app/after")
		reaches(t, w.client, on(w.server, 18080), "app/server")
		for _, n := range w.Nodes {
			var d onehost.Dump
			if err := n.ConfigDump(t.Context(), &d); err != nil {
				t.Fatal(err)
			}
			for _, p := range d.Policies {
				if p.Name == "tried" {
					t.Errorf("%s knows %+v", n.Name, p)
				}
			}
			for _, wl := range d.Workloads {
				if strings.Contains(strings.Join(wl.AuthorizationPolicies, " "), tried) {
					t.Errorf("%s: %s has %v", n.Name, wl.UID, wl.AuthorizationPolicies)
				}
			}
		}
	})
}

// TestDryRun: where it is told, it decides nothing, and is counted and logged; taken out of
// dry run it decides, and back in it again nothing.
func TestDryRun(t *testing.T) {
	for _, name := range []string{"warren", "istiod"} {
		t.Run(name, func(t *testing.T) {
			w := &world{name: name, dryRun: true}
			alone(t, w, []string{"AUTHZ_POLICY_INFO_LOGGING=true"})
			w.store(t, triedDoc, "true")
			if err := w.WaitPolicy(t.Context(), tried); err != nil {
				t.Fatal(err)
			}
			w.seenInDryRun(t)
			w.store(t, triedDoc, "false")
			w.refused(t, w.client, on(w.server, 18080), "explicitly denied by: "+tried)
			reaches(t, w.other, on(w.server, 18080), "app/server")
			w.store(t, triedDoc, "true")
			w.seenInDryRun(t)
		})
	}
}

// store puts a policy in dry run or out of it.
func (w *world) store(t *testing.T, doc, dry string) {
	t.Helper()
	if err := w.Put("AuthorizationPolicy", "app", "tried", []byte(strings.Replace(doc, "DRY", dry, 1))); err != nil {
		t.Fatal(err)
	}
}

// seenInDryRun makes calls that the policy would deny, and looks for what is said of them.
func (w *world) seenInDryRun(t *testing.T) {
	t.Helper()
	eventually(t, "the client is let in", func() error {
		_, err := call(w.client, on(w.server, 18080))
		return err
	})
	before := w.dryRuns(t)
	const calls = 3
	for range calls {
		if _, err := call(w.client, on(w.server, 18080)); err != nil {
			t.Fatalf("a policy in dry run: %v", err)
		}
	}
	if got := w.dryRuns(t) - before; got != calls {
		t.Errorf("%d of %d calls are counted", got, calls)
	}
	eventually(t, "the log says so", func() error {
		b, err := os.ReadFile(w.Nodes[1].ProxyLog())
		if err == nil && !strings.Contains(string(b), "dry-run: deny policy match") {
			err = fmt.Errorf("no line about it")
		}
		return err
	})
}

func (w *world) dryRuns(t *testing.T) (n int) {
	t.Helper()
	text, err := w.Nodes[1].Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, value, ok := strings.Cut(text, `warren_policy_dry_run_total{policy="`+tried+`",verdict="deny"} `); ok {
		if _, err := fmt.Sscan(value, &n); err != nil {
			t.Fatal(err)
		}
	}
	return n
}
