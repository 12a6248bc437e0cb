package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/warren-mesh/warren/xds/workload"
)

// TestPlaintextVerdicts: what the node agent asks about connections that are older than
// the pod's time in the mesh.
func TestPlaintextVerdicts(t *testing.T) {
	m := newMesh(t, 1)
	server := m.nodes[0].meshPod("server")
	ask := func(uid string) (int, string) {
		t.Helper()
		body := fmt.Sprintf(`[{"src":"192.0.2.1:1","dst":%q},{"src":"192.0.2.1:1","dst":%q}]`, server.addr(8080), server.addr(9090))
		resp, err := http.Post("http://"+m.nodes[0].srv.Addresses()[0]+"/debug/plaintext?pod="+uid, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		defer http.DefaultClient.CloseIdleConnections()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, strings.Join(strings.Fields(string(b)), "")
	}
	if code, got := ask(server.uid); code != http.StatusOK || got != `["",""]` {
		t.Errorf("without policies: %d %s", code, got)
	}
	if code, got := ask("nobody"); code != http.StatusNotFound {
		t.Errorf("of a pod that is not served: %d %s", code, got)
	}
	m.apply(workload.Batch{Policies: []*workload.Policy{
		deny("strict", workload.Match{NotPrincipals: []workload.StringMatch{{Kind: workload.Presence}}, DestinationPorts: []uint16{8080}}),
	}})
	if code, got := ask(server.uid); code != http.StatusOK || !strings.Contains(got, "default/strict") || !strings.HasSuffix(got, `,""]`) {
		t.Errorf("with strict mTLS on one port: %d %s", code, got)
	}
}
