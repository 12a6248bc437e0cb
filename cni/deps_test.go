package cni

import (
	"os/exec"
	"strings"
	"testing"
)

// The plugin is run for every pod: what makes it large or slow to start stays
// out.
func TestPluginLinksLittle(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "./cmd/warren-cni").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	deps := strings.Fields(string(out))
	if len(deps) < 50 {
		t.Fatalf("only %d packages: not the plugin's", len(deps))
	}
	forbidden := []string{
		"k8s.io/", "sigs.k8s.io/", "google.golang.org/", "github.com/golang/protobuf", "istio.io/", "github.com/envoyproxy/",
		"github.com/prometheus/", "github.com/spf13/", "net/http", "crypto/tls", "testing",
	}
	for _, dep := range deps {
		for _, f := range forbidden {
			if dep == f || strings.HasPrefix(dep, strings.TrimSuffix(f, "/")+"/") {
				t.Errorf("the plugin links %s", dep)
			}
		}
	}
}
