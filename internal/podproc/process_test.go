package podproc_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/podproc"
)

// sleeper starts a process that ends when the test says so.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func open(t *testing.T, pid int) *podproc.Process {
	t.Helper()
	p, err := podproc.Open("/proc", pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// A process that nobody has waited for keeps its PID, its control groups and its start time; it is over all the same.
func TestZombieHasEnded(t *testing.T) {
	cmd := sleeper(t)
	p := open(t, cmd.Process.Pid)
	if err := p.Alive(); err != nil {
		t.Fatalf("alive: %v", err)
	}
	waited := make(chan error, 1)
	go func() { waited <- p.Wait(t.Context()) }()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Errorf("Wait: %v", err)
	}
	if err := p.Alive(); !errors.Is(err, podproc.ErrEnded) {
		t.Errorf("Alive of a zombie: %v", err)
	}
	if _, err := podproc.Open("/proc", cmd.Process.Pid); !errors.Is(err, podproc.ErrEnded) {
		t.Errorf("Open of a zombie: %v", err)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	p := open(t, sleeper(t).Process.Pid)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := p.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait: %v", err)
	}
	if err := p.Alive(); err != nil {
		t.Errorf("Alive: %v", err)
	}
}

// A process that is of no pod proves nothing, whatever its namespace.
func TestProveNeedsThePod(t *testing.T) {
	p := open(t, os.Getpid())
	ns, err := netns.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	for _, uid := range []string{"", "2c48913c-b29f-11e7-9350-020968147796"} {
		if err := p.Prove(uid, ns.ID()); err == nil {
			t.Errorf("Prove(%q) of a process of the host", uid)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, pid := range []int{-1, 0, 1 << 22} {
		if p, err := podproc.Open("/proc", pid); err == nil {
			p.Close()
			t.Errorf("opened process %d", pid)
		}
	}
}
