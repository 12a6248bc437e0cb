package nswatch

import (
	"context"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// heard counts what was told.
type heard struct {
	mu sync.Mutex
	n  map[string]int
}

func (h *heard) changed(key string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.n[key]++
}

func (h *heard) of(key string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.n[key]
}

func start(t *testing.T) (*Watcher, *heard) {
	t.Helper()
	w, err := New()
	if err != nil {
		t.Fatal(err)
	}
	h := &heard{n: make(map[string]int)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx, h.changed) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w, h
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never %s", what)
		}
	}
}

func inside(t *testing.T, ns *netns.NS, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s %v: %v", name, args, err)
	}
}

func TestTellsWhoChanged(t *testing.T) {
	nstest.LeakCheck(t)
	a, _ := nstest.NewNS(t, "a")
	b, _ := nstest.NewNS(t, "b")
	w, h := start(t)
	for key, ns := range map[string]*netns.NS{"a": a, "b": b} {
		if err := w.Watch(key, ns); err != nil {
			t.Fatal(err)
		}
	}
	inside(t, a, "ip", "link", "set", "lo", "up")
	for _, change := range [][]string{
		{"nft", "add table inet x"}, {"nft", "add chain inet x c"}, {"nft", "add rule inet x c counter"}, {"nft", "delete table inet x"},
		{"iptables-nft", "-t", "nat", "-N", "X"},
		{"ip", "rule", "add", "fwmark", "1", "lookup", "100"}, {"ip", "-6", "rule", "add", "fwmark", "1", "lookup", "100"},
		{"ip", "route", "add", "local", "10.0.0.0/8", "dev", "lo", "table", "100"},
		{"ip", "-6", "route", "add", "local", "fd00::/8", "dev", "lo", "table", "100"},
	} {
		if _, err := exec.LookPath(change[0]); err != nil {
			nstest.Need(t, err)
		}
		before := h.of("a")
		inside(t, a, change[0], change[1:]...)
		until(t, "told of "+change[0]+" "+change[1], func() bool { return h.of("a") > before })
	}
	if h.of("b") > 0 {
		t.Error("told of a namespace in which nothing changed")
	}
	// Looking is no change.
	until(t, "quiet", func() bool { n := h.of("a"); time.Sleep(50 * time.Millisecond); return h.of("a") == n })
	before := h.of("a")
	inside(t, a, "nft", "list", "ruleset")
	inside(t, a, "iptables-nft-save")
	inside(t, a, "ip", "rule")
	time.Sleep(50 * time.Millisecond)
	if h.of("a") != before {
		t.Error("told of somebody who looked")
	}
	w.Forget("a")
	inside(t, a, "nft", "add", "table", "inet", "y")
	inside(t, b, "nft", "add", "table", "inet", "y")
	until(t, "told of b", func() bool { return h.of("b") > 0 })
	if h.of("a") != before {
		t.Error("told of a namespace that nobody wants to hear of any more")
	}
}

// TestOverrun: more changes at once than the kernel keeps news of.
func TestOverrun(t *testing.T) {
	nstest.LeakCheck(t)
	a, _ := nstest.NewNS(t, "a")
	w, h := start(t)
	if err := w.Watch("a", a); err != nil {
		t.Fatal(err)
	}
	f := t.TempDir() + "/many"
	text := "add table inet x\nadd chain inet x c\n"
	for range 2000 {
		text += "add rule inet x c ip saddr 10.0.0.0/8 counter\n"
	}
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	inside(t, a, "nft", "-f", f)
	until(t, "told", func() bool { return h.of("a") > 0 })
	until(t, "quiet", func() bool { n := h.of("a"); time.Sleep(50 * time.Millisecond); return h.of("a") == n })
	before := h.of("a")
	inside(t, a, "nft", "delete", "table", "inet", "x")
	until(t, "told again", func() bool { return h.of("a") > before })
}

// TestAgain: the same key for the same namespace is nothing new, for another it is.
func TestAgain(t *testing.T) {
	nstest.LeakCheck(t)
	a, _ := nstest.NewNS(t, "a")
	b, _ := nstest.NewNS(t, "b")
	w, h := start(t)
	fds := func() int {
		files, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	if err := w.Watch("k", a); err != nil {
		t.Fatal(err)
	}
	n := fds()
	for _, ns := range []*netns.NS{a, b, a, a, b} {
		if err := w.Watch("k", ns); err != nil {
			t.Fatal(err)
		}
	}
	if fds() != n {
		t.Errorf("%d descriptors, %d before", fds(), n)
	}
	inside(t, b, "nft", "add", "table", "inet", "y")
	until(t, "told", func() bool { return h.of("k") > 0 })
	w.Close()
	if err := w.Watch("k", a); err == nil {
		t.Error("watches after Close")
	}
	if fds() >= n {
		t.Error("something is open after Close")
	}
}
