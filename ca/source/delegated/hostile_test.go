package delegated_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/warren-mesh/warren/ca/fakeagent"
	"github.com/warren-mesh/warren/ca/source/delegated"
	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/internal/nstest"
)

// What was proven before SPIRE was asked is looked at again when it has answered: its answer is about what the process was
// somewhere in between.
func TestTheProofIsLookedAtAgain(t *testing.T) {
	var n *node
	moved := make(chan string, 64)
	n = newNode(t, delegated.PID, func(a *fakeagent.Agent) {
		a.Before = func(_ context.Context, ref string) error {
			if pid, ok := strings.CutPrefix(ref, "pid:"); ok {
				n.move(t, pid, uidB)
				moved <- ref
			}
			return nil
		}
	})
	pid, _ := n.process(t, uidA)
	n.agent.Give(ref(pid), bar)
	said := 0
	err := n.source.Watch(t.Context(), n.pod(uidA), bar, func(svid.Update) { said++ })
	if said > 0 || err == nil || !strings.Contains(err.Error(), "is of pod") {
		t.Errorf("believed %d times, %v", said, err)
	}
	if got := <-moved; got != ref(pid) {
		t.Errorf("asked about %s", got)
	}
}

// A stream is cut when its process ends, whether SPIRE says anything after that or not.
func TestTheStreamIsCutWhenTheProcessEnds(t *testing.T) {
	n := newNode(t, delegated.PID, nil)
	pid, end := n.process(t, uidA)
	n.agent.Give(ref(pid), bar)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := n.source.Watch(ctx, n.pod(uidA), bar, func(svid.Update) { end() })
	if !errors.Is(err, svid.ErrProcessEnded) || ctx.Err() != nil {
		t.Errorf("%v, though its process has ended", err)
	}
}

// move puts a process into another pod.
func (n *node) move(t *testing.T, pid, uid string) {
	text := "0::/kubepods/pod" + uid + "/" + strings.Repeat("a1", 32) + "\n"
	if err := os.WriteFile(filepath.Join(n.proc, pid, "cgroup"), []byte(text), 0o600); err != nil {
		t.Error(err)
	}
}

// A thousand pods that start at once, each attested by a process of its own: eight at a time, and all are served.
func TestBurst(t *testing.T) {
	const pods = 1000
	n := newNode(t, delegated.PID, nil)
	uid := func(i int) string { return fmt.Sprintf("2c48913c-b29f-11e7-9350-%012x", i) }
	var wg sync.WaitGroup
	const workers = 8
	for w := range workers {
		wg.Go(func() {
			for i := w; i < pods; i += workers {
				pid, _ := n.process(t, uid(i))
				n.agent.Give(ref(pid), bar)
			}
		})
	}
	wg.Wait()
	leases := make([]*svid.Lease, pods)
	for i := range leases {
		leases[i] = n.certs.Acquire(n.pod(uid(i)), bar)
	}
	for end := time.Now().Add(3 * time.Minute); len(leases) > 0; {
		switch _, err := leases[0].Identity(t.Context()); {
		case err == nil:
			leases = leases[1:]
		case time.Now().After(end):
			t.Fatalf("%d pods have no certificate: %v", len(leases), err)
		}
	}
	if most := n.agent.MostAtOnce(); most > 8+1 { // and the bundles'
		t.Errorf("%d streams waited at once", most)
	}
}

const inPIDNamespace = "WARREN_TEST_PIDS"

// The kernel gives the number of a process that has ended to one of another pod: while SPIRE looks, and while its stream
// goes on. It runs in a PID namespace of its own, where the next number can be said.
func TestPIDsAreUsedAgain(t *testing.T) {
	if os.Getenv(inPIDNamespace) != "" {
		t.Run("while SPIRE looks", reusedBefore)
		t.Run("while the stream goes on", reusedAfter)
		t.Run("which are not the host's", notTheHosts)
		return
	}
	if os.Geteuid() != 0 {
		nstest.Need(t, errors.New("needs root, for a PID namespace"))
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestPIDsAreUsedAgain$", "-test.v", "-test.timeout=4m")
	cmd.Env = append(os.Environ(), inPIDNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) {
		nstest.Need(t, fmt.Errorf("no PID namespace can be made here: %w", err))
	}
	if err != nil || strings.Count(string(out), "--- PASS") != 4 {
		t.Errorf("%v\n%s", err, out)
	}
}

// realNode is a node whose /proc and control groups are the kernel's.
func realNode(t *testing.T, before func(ref string)) *node {
	t.Helper()
	// Unshareflags have made what is mounted here ours alone.
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	return newNodeIn(t, realProc, delegated.PID, func(a *fakeagent.Agent) {
		a.Before = func(_ context.Context, ref string) error {
			if before != nil && strings.HasPrefix(ref, "pid:") {
				before(ref)
			}
			return nil
		}
	})
}

// spawn starts a process in a pod's control group; at says which number it has to have, zero for any.
func spawn(t *testing.T, uid string, at int) *exec.Cmd {
	t.Helper()
	dir := podGroup(t, uid)
	for range 200 {
		if at != 0 {
			if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(at-1)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command("/bin/sh", "-c", "echo $$ >"+dir+"/cgroup.procs; exec sleep 600")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if at == 0 || cmd.Process.Pid == at {
			t.Cleanup(func() { reap(cmd) })
			awaitSleep(t, cmd)
			return cmd
		}
		reap(cmd) // a thread of ours was given the number
	}
	t.Fatalf("no process could be given the number %d", at)
	return nil
}

func reap(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

func awaitSleep(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid))
		if err == nil && strings.TrimSpace(string(text)) == "sleep" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("process %d: %q, %v", cmd.Process.Pid, text, err)
		}
	}
}

// podGroup makes the control group of a pod's container, which goes when its processes have.
func podGroup(t *testing.T, uid string) string {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		if _, err := os.Stat(root + "/cgroup.procs"); err != nil {
			continue
		}
		top := filepath.Join(root, "kubepods-warren-"+strconv.Itoa(os.Getppid())+strings.ReplaceAll(t.Name(), "/", "-"))
		dir := filepath.Join(top, "pod"+uid, strings.Repeat("a1", 32))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			for at := dir; at != root; at = filepath.Dir(at) {
				for range 100 { // a process that has ended leaves a moment later
					if err := syscall.Rmdir(at); err != syscall.EBUSY {
						break
					}
					time.Sleep(time.Millisecond)
				}
			}
		})
		return dir
	}
	nstest.Need(t, errors.New("no control groups are mounted in /sys/fs/cgroup"))
	return ""
}

func reusedBefore(t *testing.T) {
	var victim *exec.Cmd
	var once sync.Once
	replaced := make(chan struct{})
	n := realNode(t, func(string) {
		once.Do(func() {
			defer close(replaced)
			pid := victim.Process.Pid
			reap(victim)
			spawn(t, uidB, pid)
		})
	})
	victim = spawn(t, uidA, 0)
	n.agent.Give(ref(victim.Process.Pid), bar)
	said := 0
	err := n.source.Watch(t.Context(), n.pod(uidA), bar, func(svid.Update) { said++ })
	<-replaced
	if said > 0 || err == nil {
		t.Errorf("believed %d times, %v", said, err)
	}
}

func reusedAfter(t *testing.T) {
	n := realNode(t, nil)
	first := spawn(t, uidA, 0)
	pid := first.Process.Pid
	n.agent.Give(ref(pid), bar)
	l := n.certs.Acquire(n.pod(uidA), bar)
	i := get(t, l)
	reap(first)
	spawn(t, uidB, pid)
	for range 20 { // which the stream of before would bring, as SPIRE's does
		n.agent.Rotate(bar)
		time.Sleep(5 * time.Millisecond)
	}
	if got := l.Held(); got != nil && !got.NotAfter().Equal(i.NotAfter()) || got != nil && got.Chain()[0].SerialNumber.Cmp(i.Chain()[0].SerialNumber) != 0 {
		t.Errorf("pod A was given %s by the process of pod B", got)
	}
	n.agent.Give(ref(pid), other)
	if i := get(t, n.certs.Acquire(n.pod(uidB), other)); i.ID() != other {
		t.Errorf("pod B was given %s", i)
	}
}

// Process 1 is of our own container there, so that the numbers are the container's.
func notTheHosts(t *testing.T) {
	s, err := delegated.New(delegated.Config{Address: "unix:///run/admin.sock", Log: slog.New(slog.DiscardHandler)})
	if err == nil {
		s.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "hostPID") {
		t.Errorf("processes are named by the numbers of a container: %v", err)
	}
}
