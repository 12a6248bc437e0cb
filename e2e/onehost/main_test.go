package onehost_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// bins is the folder with the programs under test.
var bins string

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "onehost:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	var done func()
	var err error
	if bins, done, err = onehost.Programs(); err != nil {
		return 1, err
	}
	defer done()
	if bins == "" {
		return 0, nil
	}
	code := m.Run()
	return code, closeShared()
}

var meshes atomic.Int32

// newMesh builds a mesh for one test and checks at its end that nothing of it
// is left.
func newMesh(t *testing.T, o onehost.Options) *onehost.Mesh {
	t.Helper()
	m, err := buildMesh(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("logs: %s", m.Opts.Dir)
			showLogs(t, m)
		}
		if err := closeMesh(m); err != nil {
			t.Error(err)
		}
	})
	return m
}

func buildMesh(o onehost.Options) (*onehost.Mesh, error) {
	o.Prefix = fmt.Sprintf("wt%d-%d", os.Getpid()%100000, meshes.Add(1))
	o.Bins = bins
	dir, err := os.MkdirTemp("", o.Prefix+"-")
	if err != nil {
		return nil, err
	}
	o.Dir = dir
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	m, err := onehost.New(ctx, o)
	if err != nil {
		return nil, err
	}
	return m, errors.Join(
		m.PutNamespace("app", map[string]string{"istio.io/dataplane-mode": "ambient"}),
		m.PutNamespace("plain", nil),
	)
}

func closeMesh(m *onehost.Mesh) error {
	err := m.Close()
	left, lerr := onehost.Leftovers(m.Opts.Prefix)
	if len(left) > 0 {
		lerr = errors.Join(lerr, fmt.Errorf("left behind: %v", left))
	}
	return errors.Join(err, lerr, os.RemoveAll(m.Opts.Dir))
}

func showLogs(t *testing.T, m *onehost.Mesh) {
	files, _ := filepath.Glob(filepath.Join(m.Opts.Dir, "*.log"))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		t.Logf("--- %s\n%s", filepath.Base(f), strings.Join(lines[max(0, len(lines)-25):], "\n"))
	}
}

// shared is one mesh for all tests that leave it as they found it.
var shared *onehost.Mesh

func sharedMesh(t *testing.T) *onehost.Mesh {
	t.Helper()
	if shared == nil {
		m, err := buildMesh(onehost.Options{})
		if err != nil {
			t.Fatal(err)
		}
		shared = m
	}
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, shared)
		}
	})
	return shared
}

func closeShared() error {
	if shared == nil {
		return nil
	}
	return closeMesh(shared)
}

// context bounds one test.
func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// addPod adds a pod that the test's end removes. Its name is unique.
func addPod(t *testing.T, n *onehost.Node, namespace, sa string, labels map[string]string) *onehost.Pod {
	t.Helper()
	p, err := n.AddPod(testContext(t), onehost.PodSpec{
		Namespace: namespace, Name: sa + "-" + strings.ToLower(rand.Text()[:6]), ServiceAccount: sa, Labels: labels,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, there := n.Pods[p.Spec.Namespace+"/"+p.Spec.Name]; !there {
			return // the test removed it
		}
		if err := p.Delete(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return p
}

// echo serves an echo in the pod until the test ends.
func echo(t *testing.T, p *onehost.Pod, port int) netip.AddrPort {
	t.Helper()
	return serve(t, p, port, onehost.Echo)
}

func waitPods(t *testing.T, m *onehost.Mesh) {
	t.Helper()
	if err := m.WaitPods(testContext(t)); err != nil {
		t.Fatal(err)
	}
}

// eventually waits until ok returns nil.
func eventually(t *testing.T, within time.Duration, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
		time.Sleep(10 * time.Millisecond) // a poll's interval, not a wait for a result
	}
}
