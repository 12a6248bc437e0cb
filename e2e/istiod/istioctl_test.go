//go:build istiod

package istiod

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// istioctlBin names Istio's own reader of dumps. Where it is not set, the dump's shape
// alone is held to what that reads.
const istioctlBin = "ISTIOCTL_BIN"

// TestZtunnelConfig: what istioctl reads of a proxy, in each of its commands.
func TestZtunnelConfig(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		reaches(t, w.client, on(w.server, 18080), "app/server")
		dump, err := w.Nodes[0].Admin(t.Context(), "/config_dump")
		if err != nil {
			t.Fatal(err)
		}
		var shape struct {
			Workloads, Services, Policies, Certificates []json.RawMessage
			WorkloadState                               map[string]json.RawMessage
		}
		if err := json.Unmarshal(dump, &shape); err != nil {
			t.Fatal(err)
		}
		if len(shape.Workloads) == 0 || len(shape.Services) == 0 || shape.Policies == nil || len(shape.Certificates) == 0 || len(shape.WorkloadState) == 0 {
			t.Errorf("the dump has %d workloads, %d services, %d policies, %d certificates, the state of %d pods", len(shape.Workloads),
				len(shape.Services), len(shape.Policies), len(shape.Certificates), len(shape.WorkloadState))
		}
		bin := os.Getenv(istioctlBin)
		if bin == "" {
			t.Logf("%s is not set: the dump is not given to istioctl", istioctlBin)
			return
		}
		file := filepath.Join(t.TempDir(), "dump.json")
		if err := os.WriteFile(file, dump, 0o600); err != nil {
			t.Fatal(err)
		}
		for command, rows := range map[string][]string{
			"workloads":    {"app client " + w.client.IP4().String(), "HBONE"},
			"services":     {"app web " + webVIP + " None 2/2"},
			"policies":     {"NAMESPACE POLICY NAME ACTION SCOPE"},
			"certificates": {"spiffe://cluster.local/ns/app/sa/client Leaf Available true", "spiffe://cluster.local/ns/app/sa/client Root Available true"},
			"connections":  {"WORKLOAD DIRECTION LOCAL REMOTE REMOTE TARGET PROTOCOL"},
		} {
			out, err := exec.CommandContext(t.Context(), bin, "ztunnel-config", command, "--file", file).CombinedOutput()
			text := strings.Join(strings.Fields(string(out)), " ")
			if err != nil {
				t.Errorf("istioctl ztunnel-config %s: %v\n%s", command, err, out)
			}
			for _, row := range rows {
				if !strings.Contains(text, row) {
					t.Errorf("istioctl ztunnel-config %s: %q is not in\n%s", command, row, out)
				}
			}
		}
		var all struct{ Certificates []json.RawMessage }
		out, err := exec.CommandContext(t.Context(), bin, "ztunnel-config", "all", "-o", "json", "--file", file).Output()
		if err == nil {
			err = json.Unmarshal(out, &all)
		}
		if err != nil || len(all.Certificates) == 0 {
			t.Errorf("istioctl ztunnel-config all: %d certificates, %v", len(all.Certificates), err)
		}
	})
}
