package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

var bins string

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
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
	return m.Run(), nil
}

func noTrace(t *testing.T) {
	t.Helper()
	left, err := onehost.Leftovers(prefix)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestStory(t *testing.T) {
	var out bytes.Buffer
	if err := Run(t.Context(), Config{Bins: bins}, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{
		"pod to pod across nodes", "pod to Service", "pod to pod on one node", "outside into the mesh", "mesh to outside",
		"denied by policy", "cut live by a policy change", "TLS to 15008, 0 B readable", "nodeagent status on node2",
		"spiffe://cluster.local/ns/demo/sa/client ⇒ spiffe://cluster.local/ns/demo/sa/web", "torn down",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the story does not tell %q:\n%s", want, out.String())
		}
	}
	noTrace(t)
}

// TestInterrupted ends the demo at many moments, as Ctrl-C does.
func TestInterrupted(t *testing.T) {
	for _, after := range []time.Duration{50, 200, 400, 700, 1000} {
		ctx, cancel := context.WithTimeout(t.Context(), after*time.Millisecond)
		var out bytes.Buffer
		err := Run(ctx, Config{Bins: bins, Keep: true}, &out)
		cancel()
		if err != nil && !strings.Contains(err.Error(), "interrupted") {
			t.Errorf("after %d ms: %v\n%s", after, err, out.String())
		}
		noTrace(t)
	}
}

// TestBrokenProxy fails half way.
func TestBrokenProxy(t *testing.T) {
	broken, err := exec.LookPath("false")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Run(t.Context(), Config{Bins: bins, Proxy: broken}, &out); err == nil {
		t.Error("the demo succeeded without a proxy")
	} else if errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the dead proxy was only noticed by the clock: %v", err)
	}
	noTrace(t)
}
