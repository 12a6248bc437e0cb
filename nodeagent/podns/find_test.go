package podns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/internal/podproc"
)

const (
	uidA  = "2c48913c-b29f-11e7-9350-020968147796"
	uidB  = "9f5d3a10-0c4e-4f7a-8b1d-7a2f6c1e0b55"
	hashA = "f0e1d2c3b4a5968778695a4b3c2d1e0f" // a static pod's
)

var (
	idA      = strings.Repeat("a1", 32)
	idB      = strings.Repeat("b2", 32)
	sandboxA = strings.Repeat("5a", 32)
)

func TestMain(m *testing.M) { nstest.Main(m) }

// start starts a process in a namespace, until the test ends.
func start(t *testing.T, ns *netns.NS, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

// node is a /proc that is made up, but for the namespaces.
type node struct {
	t    *testing.T
	proc string
	next int
}

func newNode(t *testing.T) *node {
	n := &node{t: t, proc: t.TempDir(), next: 100}
	n.mounted()
	return n
}

// process adds one, in the namespace that a real process is in.
func (n *node) process(cgroup string, started int, ns *netns.NS) int {
	n.t.Helper()
	real := start(n.t, ns, "sleep", "1000").Process.Pid
	n.next++
	n.write(n.next, cgroup, started)
	if err := os.Symlink(fmt.Sprintf("/proc/%d/ns", real), filepath.Join(n.proc, strconv.Itoa(n.next), "ns")); err != nil {
		n.t.Fatal(err)
	}
	return n.next
}

func (n *node) write(pid int, cgroup string, started int) {
	n.t.Helper()
	dir := filepath.Join(n.proc, strconv.Itoa(pid))
	err := errors.Join(os.MkdirAll(dir, 0o700),
		os.WriteFile(filepath.Join(dir, "cgroup"), []byte(cgroup), 0o600),
		os.WriteFile(filepath.Join(dir, "stat"), fmt.Appendf(nil, "%d (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 %d 0", pid, started), 0o600))
	if err != nil {
		n.t.Fatal(err)
	}
}

// mounted says which namespaces the host's first process has mounted.
func (n *node) mounted(all ...*netns.NS) {
	n.t.Helper()
	text := "22 27 0:21 / /proc rw - proc proc rw\n"
	for i, ns := range all {
		text += fmt.Sprintf("%d 24 0:4 net:[%d] /run/netns/cni-%d rw shared:5 - nsfs nsfs rw\n", 600+i, ns.ID().Ino, i)
	}
	dir := filepath.Join(n.proc, "1")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "mountinfo"), []byte(text), 0o600)); err != nil {
		n.t.Fatal(err)
	}
}

// find asks for pods, and closes what comes.
func (n *node) find(pods ...Wanted) map[string]Found {
	n.t.Helper()
	found, err := New(n.proc).Find(n.t.Context(), pods)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, f := range found {
		if f.NS != nil {
			f.NS.Close()
		}
	}
	return found
}

// expect says what a pod's namespace must be; nil is an error.
func expect(t *testing.T, f Found, ns *netns.NS, err error) {
	t.Helper()
	switch {
	case ns == nil && (f.NS != nil || !errors.Is(f.Err, err)):
		t.Errorf("found %+v, want the error %v", f, err)
	case ns != nil && (f.NS == nil || f.Err != nil || f.NS.ID() != ns.ID()):
		t.Errorf("found %+v, want %s", f, ns.ID())
	}
}

func cgroupOf(uid, container string) string {
	return "0::/kubepods/burstable/pod" + uid + "/" + container + "\n"
}

func TestFind(t *testing.T) {
	nstest.LeakCheck(t)
	pods := nstest.New(t).Node("n")
	a, b := pods.Pod("a"), pods.Pod("b")
	own, _ := nstest.NewNS(t, "own") // that a pod's process made for itself
	here, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	ips := []netip.Addr{a.IP4}
	tests := []struct {
		name string
		make func(n *node)
		want Wanted
		ns   *netns.NS
		err  error
	}{
		{"the only process", func(n *node) { n.process(cgroupOf(uidA, idA), 10, a.NS) }, Wanted{UID: uidA, IPs: ips}, a.NS, nil},
		{"no process", func(n *node) { n.process(cgroupOf(uidB, idA), 10, a.NS) }, Wanted{UID: uidA}, nil, ErrNoProcess},
		{"on the host's network", func(n *node) { n.process(cgroupOf(uidA, idA), 10, here) }, Wanted{UID: uidA}, nil, ErrHostNetwork},
		{"one that went to the host's network", func(n *node) {
			n.process(cgroupOf(uidA, idA), 5, here)
			n.process(cgroupOf(uidA, idA), 10, a.NS)
		}, Wanted{UID: uidA}, a.NS, nil},
		{"the sandbox is older", func(n *node) {
			n.process(cgroupOf(uidA, idA), 20, own)
			n.process(cgroupOf(uidA, sandboxA), 10, a.NS)
		}, Wanted{UID: uidA}, a.NS, nil},
		{"the sandbox started in the same tick", func(n *node) {
			n.process(cgroupOf(uidA, idA), 10, own)
			n.process(cgroupOf(uidA, sandboxA), 10, a.NS)
		}, Wanted{UID: uidA, Containers: []string{idA}}, a.NS, nil},
		{"no sandbox, and the application's first process has moved", func(n *node) {
			n.process(cgroupOf(uidA, idA), 10, own)
			n.process(cgroupOf(uidA, idB), 20, a.NS)
			n.mounted(a.NS, b.NS)
		}, Wanted{UID: uidA}, a.NS, nil},
		{"it gave its own namespace the pod's address", func(n *node) {
			n.process(cgroupOf(uidA, sandboxA), 10, a.NS)
			n.process(cgroupOf(uidA, idA), 20, own)
		}, Wanted{UID: uidA, IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}, a.NS, nil}, // which own has, too
		{"its status lies about its addresses", func(n *node) {
			n.process(cgroupOf(uidA, sandboxA), 10, a.NS)
			n.process(cgroupOf(uidA, idA), 20, b.NS)
		}, Wanted{UID: uidA, IPs: []netip.Addr{b.IP4}}, nil, ErrNotItsIPs},
		{"a sandbox that was replaced lives on", func(n *node) {
			n.process(cgroupOf(uidA, idB), 10, b.NS)
			n.process(cgroupOf(uidA, idA), 20, a.NS)
			n.mounted(a.NS, b.NS)
		}, Wanted{UID: uidA, IPs: ips}, a.NS, nil},
		{"by its container", func(n *node) { n.process("0::/../crio-"+idA+".scope\n", 10, a.NS) }, Wanted{UID: uidA, Containers: []string{idA}}, a.NS, nil},
		{"a container that plays the pod", func(n *node) {
			n.process("0::/kubepods/pod"+uidB+"/"+idB+"/kubepods/pod"+uidA+"/"+idA+"\n", 5, b.NS)
			n.process(cgroupOf(uidA, sandboxA), 10, a.NS)
		}, Wanted{UID: uidA}, a.NS, nil},
		{"a static pod", func(n *node) { n.process(cgroupOf(hashA, idA), 10, a.NS) }, Wanted{UID: hashA}, a.NS, nil},
		{"files that are too long, or gone", func(n *node) {
			n.write(7, string(make([]byte, podproc.MaxFile+1)), 10)
			n.write(8, cgroupOf(uidA, idA), 10) // no namespace: it has ended
			n.process(cgroupOf(uidA, idA), 20, a.NS)
		}, Wanted{UID: uidA}, a.NS, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			tt.make(n)
			expect(t, n.find(tt.want)[tt.want.UID], tt.ns, tt.err)
		})
	}
}

func TestFindManyAtOnce(t *testing.T) {
	nstest.LeakCheck(t)
	a, _ := nstest.NewNS(t, "a")
	b, _ := nstest.NewNS(t, "b")
	n := newNode(t)
	n.process(cgroupOf(uidA, sandboxA), 10, a)
	first := n.process(cgroupOf(uidB, idB), 10, b)
	n.process(cgroupOf(uidB, idA), 20, a)
	found := n.find(Wanted{UID: uidA}, Wanted{UID: uidB}, Wanted{UID: uidB}, Wanted{UID: hashA})
	expect(t, found[uidA], a, nil)
	expect(t, found[uidB], b, nil)
	expect(t, found[hashA], nil, ErrNoProcess)
	if f := found[uidB]; f.Container != idB || f.Proof.PID != first || f.Proof.Strays != 1 || f.Path != filepath.Join(n.proc, strconv.Itoa(first), "ns/net") {
		t.Errorf("found %+v", f)
	}
}

// One namespace is one pod's: whose process was there first.
func TestFindGivesNoNamespaceTwice(t *testing.T) {
	nstest.LeakCheck(t)
	a, _ := nstest.NewNS(t, "a")
	for _, tt := range []struct{ startA, startB int }{{10, 20}, {20, 10}} {
		n := newNode(t)
		n.process(cgroupOf(uidA, idA), tt.startA, a)
		n.process(cgroupOf(uidB, idB), tt.startB, a)
		found := n.find(Wanted{UID: uidA}, Wanted{UID: uidB})
		if tt.startA < tt.startB {
			expect(t, found[uidA], a, nil)
			expect(t, found[uidB], nil, ErrAnothers)
		} else {
			expect(t, found[uidA], nil, ErrAnothers)
			expect(t, found[uidB], a, nil)
		}
	}
}

// A PID that has become another process's between two looks.
func TestConfirm(t *testing.T) {
	nstest.LeakCheck(t)
	a, _ := nstest.NewNS(t, "a")
	b, _ := nstest.NewNS(t, "b")
	n := newNode(t)
	pid := n.process(cgroupOf(uidA, idA), 10, a)
	seen, ns, err := look(n.proc, pid)
	if err != nil {
		t.Fatal(err)
	}
	ns.Close()
	f := New(n.proc)
	if ns, err := f.confirm(seen); err != nil {
		t.Error(err)
	} else {
		ns.Close()
	}
	other := n.process(cgroupOf(uidA, idA), 10, b)
	for name, change := range map[string]func(){
		"another process": func() { n.write(pid, cgroupOf(uidA, idA), 11) },
		"another pod":     func() { n.write(pid, cgroupOf(uidB, idA), 10) },
		"another namespace": func() {
			n.write(pid, cgroupOf(uidA, idA), 10)
			link := filepath.Join(n.proc, strconv.Itoa(pid), "ns")
			target, err := os.Readlink(filepath.Join(n.proc, strconv.Itoa(other), "ns"))
			if err = errors.Join(err, os.Remove(link), os.Symlink(target, link)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		change()
		if ns, err := f.confirm(seen); err == nil {
			ns.Close()
			t.Errorf("%s is taken for the one that was seen", name)
		}
	}
}

func TestFindStops(t *testing.T) {
	n := newNode(t)
	n.write(7, cgroupOf(uidA, idA), 10)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if _, err := New(n.proc).Find(ctx, []Wanted{{UID: uidA}}); !errors.Is(err, why) {
		t.Errorf("error %v, want %v", err, why)
	}
	if _, err := New(filepath.Join(n.proc, "none")).Find(t.Context(), []Wanted{{UID: uidA}}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

// What was opened stays that process's: the handle of one that has ended is no
// other's, even if its PID is.
func TestLookHasOneHandle(t *testing.T) {
	nstest.LeakCheck(t)
	a, _ := nstest.NewNS(t, "a")
	cmd := start(t, a, "sleep", "1000")
	dir, err := os.Open(fmt.Sprintf("/proc/%d", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	path := fmt.Sprintf("/proc/self/fd/%d/", dir.Fd())
	ns, err := netns.Open(path + "ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if ns.ID() != a.ID() {
		t.Errorf("it is in %s, want %s", ns.ID(), a.ID())
	}
	ns.Close()
	cmd.Process.Kill()
	cmd.Wait()
	if _, err := podproc.ReadPlace(path + "cgroup"); err == nil {
		t.Error("the handle of a process that has ended can be read")
	}
}

// group makes a control group, in the hierarchy that is mounted there, until the
// test ends, and returns what puts a process into it.
func group(t *testing.T, hierarchy, path string) (join func(*exec.Cmd)) {
	t.Helper()
	root := filepath.Join(hierarchy, fmt.Sprintf("warren-podns-%d", os.Getpid()))
	dir := filepath.Join(root, path)
	nstest.Need(t, os.MkdirAll(dir, 0o755))
	t.Cleanup(func() { // after the processes were killed
		for deadline := time.Now().Add(10 * time.Second); os.Remove(dir) != nil && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond) // they are on their way out
		}
		for at := filepath.Dir(dir); at != hierarchy && os.Remove(at) == nil; at = filepath.Dir(at) {
		}
	})
	return func(cmd *exec.Cmd) {
		t.Helper()
		nstest.Need(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0))
	}
}

// Real processes in real control groups, with one that makes itself a namespace
// with the pod's address, as root of a user namespace of its own.
func TestFindRealProcesses(t *testing.T) {
	var hierarchies []string
	for _, h := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids"} {
		if _, err := os.Stat(filepath.Join(h, "cgroup.procs")); err == nil {
			hierarchies = append(hierarchies, h)
		}
	}
	if len(hierarchies) == 0 {
		nstest.Need(t, errors.New("no control groups are mounted"))
	}
	for _, h := range hierarchies {
		t.Run(h, func(t *testing.T) {
			nstest.LeakCheck(t)
			pod := nstest.New(t).Node("n").Pod("pod")
			uid := fmt.Sprintf("%08x-0000-4000-8000-%012x", os.Getpid(), len(h))
			slice := "kubepods.slice/kubepods-pod" + under(uid) + ".slice/cri-containerd-"
			sandbox, container := group(t, h, slice+sandboxA+".scope"), group(t, h, slice+idA+".scope")
			// In order of their start; a tick is ten milliseconds.
			pause := start(t, pod.NS, "sleep", "1000")
			time.Sleep(50 * time.Millisecond)
			moved := start(t, pod.NS, "unshare", "--user", "--map-root-user", "--net", "sh", "-ec", "ip link set lo up; ip addr add "+pod.IP4.String()+" dev lo; exec sleep 1000")
			app := start(t, pod.NS, "sleep", "1000")
			sandbox(pause)
			container(moved)
			container(app)
			own := func() (id netns.ID) {
				if ns, err := netns.Open(fmt.Sprintf("/proc/%d/ns/net", moved.Process.Pid)); err == nil {
					id = ns.ID()
					ns.Close()
				}
				return id
			}
			for deadline := time.Now().Add(10 * time.Second); own() == pod.NS.ID(); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					nstest.Need(t, errors.New("no user namespace is to be had"))
				}
			}
			want := Wanted{UID: uid, IPs: []netip.Addr{pod.IP4}, Containers: []string{idA}}
			for _, step := range []struct {
				name string
				do   func()
				pid  int
			}{
				{"with a sandbox", func() {}, pause.Process.Pid},
				{"without", func() { pause.Process.Kill(); pause.Wait() }, app.Process.Pid},
			} {
				step.do()
				found, err := New("/proc").Find(t.Context(), []Wanted{want})
				if err != nil {
					t.Fatal(err)
				}
				f := found[uid]
				if f.NS != nil {
					defer f.NS.Close()
				}
				if !f.Proof.Held && step.pid == app.Process.Pid {
					nstest.Need(t, errors.New("what is mounted on the host cannot be seen from here"))
				}
				expect(t, f, pod.NS, nil)
				if f.Proof.PID != step.pid || f.Proof.Strays != 1 {
					t.Errorf("%s: the proof is %+v, want process %d", step.name, f.Proof, step.pid)
				}
			}
		})
	}
}

func under(uid string) string { return strings.ReplaceAll(uid, "-", "_") }
