package delegated_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/warren-mesh/warren/ca/fakeagent"
	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/source/delegated"
	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/internal/owner"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	uidA = "2c48913c-b29f-11e7-9350-020968147796"
	uidB = "9f5d3a10-0c4e-4f7a-8b1d-7a2f6c1e0b55"
)

var (
	td    = spiffeid.RequireTrustDomainFromString("td.test")
	bar   = spiffeid.RequireFromPath(td, "/ns/foo/sa/bar")
	other = spiffeid.RequireFromPath(td, "/ns/foo/sa/other")
)

const realProc = "/proc"

// node is a /proc in which real processes are in the pods that a test says, and an agent that attests them.
type node struct {
	proc   string
	ns     netns.ID
	agent  *fakeagent.Agent
	admin  string
	source *delegated.Source
	certs  *svid.Manager
}

func newNode(t *testing.T, mode delegated.Mode, change func(*fakeagent.Agent)) *node {
	t.Helper()
	return newNodeIn(t, t.TempDir(), mode, change)
}

// newNodeIn is newNode with a given /proc. In the kernel's, numbers are not the host's where a test has a PID namespace.
func newNodeIn(t *testing.T, proc string, mode delegated.Mode, change func(*fakeagent.Agent)) *node {
	t.Helper()
	a, err := fakeagent.New(td, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(a)
	}
	ctx, cancel := context.WithCancel(context.Background())
	at, stop, err := a.Serve(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	n := &node{proc: proc, agent: a, admin: at.Admin}
	if proc != realProc {
		n.link(t, "/proc/self/ns/pid", "1/ns/pid")
	}
	ns, err := netns.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	n.ns = ns.ID()
	ns.Close()
	n.source, err = delegated.New(delegated.Config{Address: at.Admin, Mode: mode, Proc: n.proc, SameNumbers: proc == realProc, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	n.certs = svid.New(svid.Config{Watcher: n.source})
	done := make(chan error, 1)
	go func() { done <- n.certs.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, n.source.Close()); err != nil {
			t.Error(err)
		}
		stop()
	})
	return n
}

func (n *node) link(t *testing.T, to, name string) {
	t.Helper()
	at := filepath.Join(n.proc, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.Symlink(to, at)); err != nil {
		t.Fatal(err)
	}
}

// process starts one that is seen in a pod. end kills it and waits for it.
func (n *node) process(t *testing.T, uid string) (pid int, end func()) {
	t.Helper()
	return n.processIn(t, uid, strings.Repeat("a1", 32), "sleep")
}

func (n *node) processIn(t *testing.T, uid, container, program string) (pid int, end func()) {
	t.Helper()
	cmd := exec.Command(program, "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid = cmd.Process.Pid
	ended := false
	end = func() {
		if !ended {
			ended = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(end)
	for _, name := range []string{"stat", "comm", "ns/net"} {
		n.link(t, fmt.Sprintf("/proc/%d/%s", pid, name), fmt.Sprintf("%d/%s", pid, name))
	}
	text := "0::/kubepods/pod" + uid + "/" + container + "\n"
	if err := os.WriteFile(filepath.Join(n.proc, strconv.Itoa(pid), "cgroup"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return pid, end
}

func (n *node) pod(uid string) svid.Pod {
	return svid.Pod{UID: uid, Namespace: "foo", Name: "p", ServiceAccount: "bar", Netns: n.ns}
}

func get(t *testing.T, l *svid.Lease) *mtls.Identity {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		i, err := l.Identity(t.Context())
		if err == nil {
			return i
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func ref(pid int) string { return fmt.Sprint("pid:", pid) }

func TestPIDOfThePod(t *testing.T) {
	n := newNode(t, delegated.PID, nil)
	stranger, _ := n.process(t, uidB)
	n.agent.Give(ref(stranger), other)
	pid, _ := n.process(t, uidA)
	n.agent.Give(ref(pid), bar)
	if i := get(t, n.certs.Acquire(n.pod(uidA), bar)); i.ID() != bar {
		t.Errorf("got %s", i.ID())
	}
}

// Entries may be of one container of a pod only.
func TestAnotherContainerOfThePod(t *testing.T) {
	n := newNode(t, delegated.PID, nil)
	first, _ := n.process(t, uidA)
	second, _ := n.process(t, uidA)
	n.agent.Give(ref(first), other)
	n.agent.Give(ref(second), bar)
	get(t, n.certs.Acquire(n.pod(uidA), bar))
}

// SPIRE's stream goes on when its process has ended, and the PID may be another pod's by then.
func TestStreamEndsWithItsProcess(t *testing.T) {
	open := make(chan string, 64)
	n := newNode(t, delegated.PID, func(a *fakeagent.Agent) {
		a.Before = func(_ context.Context, ref string) error {
			if ref != "bundles" {
				open <- ref
			}
			return nil
		}
	})
	first, end := n.process(t, uidA)
	n.agent.Give(ref(first), bar)
	l := n.certs.Acquire(n.pod(uidA), bar)
	i := get(t, l)
	if got := <-open; got != ref(first) {
		t.Fatalf("attested %s", got)
	}
	second, _ := n.process(t, uidA)
	n.agent.Give(ref(second), bar)
	end()
	n.agent.Rotate(bar) // which the old stream must not bring
	for got := range open {
		if got == ref(second) {
			break
		}
		if got == ref(first) {
			t.Errorf("attested %s, which has ended", got)
		}
	}
	for end := time.Now().Add(time.Minute); get(t, l) == i; {
		if time.Now().After(end) {
			t.Fatal("the new process brought nothing")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestProof(t *testing.T) {
	tests := map[string]struct {
		change func(t *testing.T, n *node, pid int)
		want   string
	}{
		"another network namespace": {func(t *testing.T, n *node, _ int) { n.ns.Ino++ }, "network namespace"},
		"no process":                {func(t *testing.T, n *node, pid int) { remove(t, n, pid) }, "no running container"},
		"two pods in one path": {func(t *testing.T, n *node, pid int) {
			write(t, n, pid, "0::/kubepods/pod"+uidA+"/"+strings.Repeat("a1", 32)+"/kubepods/pod"+uidB+"/"+strings.Repeat("b2", 32)+"\n")
		}, "no running container"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, delegated.PID, nil)
			pid, _ := n.process(t, uidA)
			n.agent.Give(ref(pid), bar)
			tt.change(t, n, pid)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if i, err := n.certs.Acquire(n.pod(uidA), bar).Identity(ctx); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, %v; want an error with %q", i, err, tt.want)
			}
		})
	}
}

func remove(t *testing.T, n *node, pid int) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(n.proc, strconv.Itoa(pid))); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, n *node, pid int, cgroup string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(n.proc, strconv.Itoa(pid), "cgroup"), []byte(cgroup), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Selectors say what we know, and nothing else.
func TestSelectors(t *testing.T) {
	n := newNode(t, delegated.Selectors, nil)
	n.agent.Give("selectors:k8s:ns:foo,k8s:sa:bar,k8s:pod-uid:"+uidA+",k8s:pod-name:p", bar)
	get(t, n.certs.Acquire(n.pod(uidA), bar))
}

// A root that is added reaches certificates that are in use, one that goes leaves them.
func TestBundles(t *testing.T) {
	n := newNode(t, delegated.Selectors, nil)
	n.agent.Give("selectors:k8s:ns:foo,k8s:sa:bar,k8s:pod-uid:"+uidA+",k8s:pod-name:p", bar)
	l := n.certs.Acquire(n.pod(uidA), bar)
	if got := len(get(t, l).Roots()); got != 1 {
		t.Fatalf("%d roots", got)
	}
	if err := n.agent.AddRoot(); err != nil {
		t.Fatal(err)
	}
	roots(t, l, 2)
	n.agent.DropRoot()
	roots(t, l, 1)
}

func roots(t *testing.T, l *svid.Lease, want int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); len(get(t, l).Roots()) != want; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d roots, want %d", len(get(t, l).Roots()), want)
		}
	}
}

// A partner's bundle that cannot be read costs the partner; our own, and the certificates of pods, go on.
func TestBundleThatCannotBeRead(t *testing.T) {
	n := newNode(t, delegated.Selectors, nil)
	n.agent.Give("selectors:k8s:ns:foo,k8s:sa:bar,k8s:pod-uid:"+uidA+",k8s:pod-name:p", bar)
	good, bad := spiffeid.RequireTrustDomainFromString("good.test"), spiffeid.RequireTrustDomainFromString("bad.test")
	n.agent.Federate(bad, &x509.Certificate{Raw: []byte("junk")})
	n.agent.Federate(good, n.agent.Roots()...)
	l := n.certs.Acquire(n.pod(uidA), bar)
	for _, want := range []int{1, 2} {
		if err := n.agent.AddRoot(); err != nil { // which reaches the pod all the same
			t.Fatal(err)
		}
		roots(t, l, want+1)
		if all := get(t, l).Federated(); len(all) != want || len(all[good]) != 1 {
			t.Errorf("accepts %v, want %d trust domains", all, want)
		}
		n.agent.Federate(bad, n.agent.Roots()...)
	}
}

// When our own bundle cannot be read any more, SVIDs are judged by the last one that could.
func TestOwnBundleThatCannotBeRead(t *testing.T) {
	n := newNode(t, delegated.Selectors, nil)
	n.agent.Give("selectors:k8s:ns:foo,k8s:sa:bar,k8s:pod-uid:"+uidA+",k8s:pod-name:p", bar)
	l := n.certs.Acquire(n.pod(uidA), bar)
	before := get(t, l)
	n.agent.Federate(td, &x509.Certificate{Raw: []byte("junk")})
	for range 2 { // one may come before the bundle
		n.agent.Rotate(bar)
		for end := time.Now().Add(time.Minute); get(t, l) == before; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("no renewal came")
			}
		}
		before = get(t, l)
	}
	if got := len(before.Federated()); got != 0 {
		t.Errorf("accepts %d other trust domains", got)
	}
}

func TestConfigRefuses(t *testing.T) {
	for _, cfg := range []delegated.Config{
		{Address: "/run/admin.sock"},
		{Address: "unix://admin.sock"},
		{Address: "unix:///run/admin.sock", Mode: "guess"},
	} {
		if s, err := delegated.New(cfg); err == nil {
			s.Close()
			t.Errorf("took %+v", cfg)
		}
	}
}

// Whoever can put a socket at the path could be the agent.
func TestAStrangersSocket(t *testing.T) {
	if os.Geteuid() != 0 {
		nstest.Need(t, errors.New("needs root, to give a folder away"))
	}
	n := newNode(t, delegated.PID, nil)
	n.process(t, uidA)
	if err := os.Chown(filepath.Dir(strings.TrimPrefix(n.admin, "unix://")), 12345, 12345); err != nil {
		t.Fatal(err)
	}
	for name, agents := range map[string]owner.Trusted{"refused": nil, "named": {12345}} {
		s, err := delegated.New(delegated.Config{Address: n.admin, Proc: n.proc, Agents: agents, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		err = s.Watch(ctx, n.pod(uidA), bar, func(svid.Update) { cancel() })
		if refused := strings.Contains(fmt.Sprint(err), "belongs to uid 12345"); refused != (agents == nil) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
		s.Close()
	}
}
