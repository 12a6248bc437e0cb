package archtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/proxy/sockopt"
)

// checks are those that need the sources only, by the name of their fixture.
func checks() map[string]func(*tree) []string {
	return map[string]func(*tree) []string{
		"imports":     checkImports,
		"systemcalls": checkSystemCalls,
		"processes":   checkProcesses,
		"tls":         checkTLS,
		"docs":        checkDocs,
		"format":      checkFormat,
		"sizes":       checkSizes,
		"names":       checkNames,
	}
}

// TestRepository holds this repository to its design.
func TestRepository(t *testing.T) {
	repo := repository(t)
	if len(repo.sources) < 100 {
		t.Fatalf("only %d source files found: looked in the wrong place", len(repo.sources))
	}
	for name, check := range checks() {
		t.Run(name, func(t *testing.T) {
			for _, w := range check(repo) {
				t.Error(w)
			}
		})
	}
	t.Run("places", func(t *testing.T) {
		wrong, err := checkPlaces(repo, registryHost())
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range wrong {
			t.Error(w)
		}
	})
	t.Run("links", func(t *testing.T) {
		cmd := exec.Command("go", "list", "-deps", "./cni/...")
		cmd.Dir = filepath.Join("..", "..")
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		for _, w := range checkLinks("cni", strings.Fields(string(out)), notInThePlugin()...) {
			t.Error(w)
		}
	})
}

// TestChecksCanFail runs each check on a small tree that breaks its rule, and
// on one that keeps all rules. What it must say is the tree's file "want".
func TestChecksCanFail(t *testing.T) {
	for name, check := range checks() {
		t.Run(name, func(t *testing.T) {
			bad := fixture(t, filepath.Join("testdata", name+".txtar"))
			if d := cmp.Diff(bad.lines(t, "want"), check(bad)); d != "" {
				t.Errorf("on the bad tree (-want +got):\n%s", d)
			}
			if wrong := check(fixture(t, filepath.Join("testdata", "good.txtar"))); len(wrong) > 0 {
				t.Errorf("on the good tree: %q", wrong)
			}
		})
	}
	t.Run("places", func(t *testing.T) {
		bad := fixture(t, filepath.Join("testdata", "good.txtar"))
		wrong, err := checkPlaces(bad, "registry.example")
		want := []string{"README.md:3: names a place of one machine: registry.example"}
		for _, place := range []string{"/wo" + "rk/main/x", "/ro" + "ot/.kube", "../sha" + "red/facts"} {
			if !regexp.MustCompile(strings.Join(machinePlaces(), "|")).MatchString("see " + place) {
				t.Errorf("does not find %s", place)
			}
		}
		if d := cmp.Diff(want, wrong); err != nil || d != "" {
			t.Errorf("%v (-want +got):\n%s", err, d)
		}
	})
	t.Run("links", func(t *testing.T) {
		deps := []string{"fmt", "k8s.io/client-go/rest", "k8s.iolike/x", "google.golang.org/grpc", "github.com/containernetworking/cni/pkg/skel"}
		want := []string{"cni links k8s.io/client-go/rest", "cni links google.golang.org/grpc"}
		if d := cmp.Diff(want, checkLinks("cni", deps, notInThePlugin()...)); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	})
}

// The two ends of one number, in parts that do not import each other.
func TestNumbersAgree(t *testing.T) {
	if sockopt.DefaultMark != redirect.MarkProxy {
		t.Errorf("the proxy marks its sockets %#x, the rules leave %#x alone", sockopt.DefaultMark, redirect.MarkProxy)
	}
}

// No replace: what is built is what go.mod names.
func TestNoReplace(t *testing.T) {
	text, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "\nreplace") {
		t.Error("go.mod replaces a module")
	}
}

// Every kind must have been placed above or below every other.
func TestMayNotImport(t *testing.T) {
	tests := []struct {
		from, to string
		ok       bool
	}{
		{"cni/cmd/warren-cni", "cni", true},
		{"cni", "cni/redirect", true},
		{"cni", "internal/netns", true},
		{"cni/event", "internal/netns", true},
		{"cni/conflist", "internal/netns", true},
		{"nodeagent", "cni/redirect", true},
		{"nodeagent/enroll", "cni/event", true},
		{"nodeagent", "xds/file", true},
		{"nodeagent/podwatch", "xds/translate", true},
		{"proxy", "ca/source/istio", true},
		{"proxy/route", "xds/workload", true},
		{"proxy/hbone", "proxy/hbone/h2", true},
		{"proxy/hbone", "proxy/ready", true},
		{"ca/source/istio", "ca/svid", true},
		{"ca/svid", "ca/mtls", true},
		{"xds/controlplane", "ca/server", true},

		{"cni", "nodeagent", false},
		{"cni", "cni/cmd/warren-cni", false},
		{"cni/event", "cni", false},
		{"cni/event", "cni/redirect", false},
		{"cni/redirect", "internal/nstest", false},
		{"nodeagent", "xds/controlplane", false},
		{"nodeagent", "proxy/sockopt", false},
		{"nodeagent/enroll", "nodeagent/podwatch", false},
		{"nodeagent/podwatch", "xds/file", false},
		{"proxy", "cni/redirect", false},
		{"proxy", "xds/file", false},
		{"proxy/route", "proxy/hbone", false},
		{"proxy/relay", "proxy/hbone", false},
		{"proxy/admin", "proxy/sockopt", false},
		{"xds/server", "ca/mtls", false},
		{"ca/svid", "ca/source/istio", false},
		{"ca/mtls", "ca/svid", false},
		{"ca/mtls", "e2e/onehost", false},
		{"ca/mtls", "ca/new", false},
	}
	for _, tt := range tests {
		if why := mayNotImport(tt.from, tt.to); (why == "") != tt.ok {
			t.Errorf("%s importing %s: %q, want allowed %v", tt.from, tt.to, why, tt.ok)
		}
	}
}
