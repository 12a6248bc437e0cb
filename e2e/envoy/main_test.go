//go:build envoy

package envoy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

const envoyBin = "ENVOY_BIN"

// patience is for what takes a moment on a quiet machine.
const patience = 30 * time.Second

// bins is the folder with Warren's programs, program the Envoy.
var bins, program string

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "envoy:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if program = os.Getenv(envoyBin); program == "" {
		return 1, errors.New(envoyBin + " is not set: it names the Envoy program that these tests run")
	}
	if _, err := os.Stat(program); err != nil {
		return 1, fmt.Errorf("%s: %w", envoyBin, err)
	}
	var done func()
	if bins, done, err = onehost.Programs(); err != nil || bins == "" {
		return 1, errors.Join(err, errors.New("these tests need root"))
	}
	defer done()
	return m.Run(), nil
}

var meshes atomic.Int32

// newMesh builds a mesh of two nodes for one test, with the namespace app in it.
func newMesh(t *testing.T, o onehost.Options) *onehost.Mesh {
	t.Helper()
	o.Prefix, o.Bins, o.NoWire = fmt.Sprintf("we%d-%d", os.Getpid()%100000, meshes.Add(1)), bins, true
	var err error
	if o.Dir, err = os.MkdirTemp("", o.Prefix+"-"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	m, err := onehost.New(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, m)
		}
		err := m.Close()
		if left, lerr := onehost.Leftovers(o.Prefix); len(left) > 0 || lerr != nil {
			err = errors.Join(err, lerr, fmt.Errorf("left behind: %v", left))
		}
		if err = errors.Join(err, os.RemoveAll(o.Dir)); err != nil {
			t.Error(err)
		}
	})
	if err := m.PutNamespace("app", map[string]string{"istio.io/dataplane-mode": "ambient"}); err != nil {
		t.Fatal(err)
	}
	return m
}

// showLogs shows of each log the end and what went wrong.
func showLogs(t *testing.T, m *onehost.Mesh) {
	const most = 15
	files, _ := filepath.Glob(filepath.Join(m.Opts.Dir, "*.log"))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		var errs []string
		for _, l := range lines[:max(0, len(lines)-most)] {
			if strings.Contains(l, `"error"`) && len(errs) < most {
				errs = append(errs, l)
			}
		}
		t.Logf("--- %s\n%s", filepath.Base(f), strings.Join(append(errs, lines[max(0, len(lines)-most):]...), "\n"))
	}
}

// addPod makes a pod of the mesh whose service account is called as it is.
func addPod(t *testing.T, n *onehost.Node, name string, labels map[string]string) *onehost.Pod {
	t.Helper()
	return addPodOf(t, n, name, name, labels)
}

func addPodOf(t *testing.T, n *onehost.Node, name, account string, labels map[string]string) *onehost.Pod {
	t.Helper()
	p, err := n.AddPod(t.Context(), onehost.PodSpec{Namespace: "app", Name: name, ServiceAccount: account, Labels: labels})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// addWaypoint makes the pod of a waypoint that has its own HBONE: no proxy takes its
// traffic. The CA gives a node the identities of its pods of the mesh only, and a cluster's
// waypoint has a token of its own to ask with; here another pod has its account.
func addWaypoint(t *testing.T, n *onehost.Node, name string) *onehost.Pod {
	t.Helper()
	addPodOf(t, n, name+"-account", name, nil)
	return addPod(t, n, name, map[string]string{
		"gateway.networking.k8s.io/gateway-name": name, "istio.io/dataplane-mode": "none", "networking.istio.io/tunnel": "http",
	})
}

// put writes an object that the mesh keeps.
func put(t *testing.T, m *onehost.Mesh, kind, name, doc string) {
	t.Helper()
	if err := m.PutYAML(kind, "app", name, doc); err != nil {
		t.Fatal(err)
	}
}

// eventually waits for ok. What it says last is the reason why it failed.
func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	end := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-end:
			t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}
