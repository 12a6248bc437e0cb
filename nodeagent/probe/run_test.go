package probe_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/nodeagent/probe"
)

// What others do to our rules is found, told, and put right.
func TestRepair(t *testing.T) {
	for _, backend := range backends() {
		t.Run(backend, func(t *testing.T) {
			node := nstest.New(t).Node("a")
			pod := node.Pod("in")
			p := newProbe(t, node, backend, probe.WholeHost)
			defer p.Close()
			if err := p.Sync(ctx(t), map[string][]netip.Addr{"uid-1": {pod.IP4, pod.IP6}}); err != nil {
				t.Fatal(err)
			}
			host, a := start(t, node.NS, "dial", "anything", 0, ""), listen(t, pod, pod.IP4)
			ipt := backend
			if backend == "nftables" {
				ipt = redirect.NameNFT
			}
			for _, tt := range []struct {
				what string // is done
				nft  bool   // to the nftables backend; else to the others
				cmd  []string
			}{
				{"POSTROUTING flushed", false, []string{ipt, "-t", "nat", "-F", "POSTROUTING"}},
				{"nat flushed", false, []string{ipt, "-t", "nat", "-F"}},
				{"a rule before ours", false, []string{ipt, "-t", "nat", "-I", "POSTROUTING", "-j", "MASQUERADE"}},
				{"our jump once more", false, []string{ipt, "-t", "nat", "-A", "POSTROUTING", "-j", "WARREN_POSTRT"}},
				{"our rule gone", false, []string{ipt, "-t", "nat", "-D", "WARREN_POSTRT", "1"}},
				{"a rule more in ours", false, []string{ipt, "-t", "nat", "-I", "WARREN_POSTRT", "-j", "RETURN"}},
				{"another rule for ours", false, []string{ipt, "-t", "nat", "-R", "WARREN_POSTRT", "1", "-p", "udp", "-j", "RETURN"}},
				{"the set flushed", false, []string{"ipset", "flush", "warren-probes-v4"}},
				{"an address gone", false, []string{"ipset", "del", "warren-probes-v4", pod.IP4.String()}},
				{"an address more", false, []string{"ipset", "add", "warren-probes-v4", "10.1.2.3"}},
				{"everything flushed", true, []string{"nft", "flush", "ruleset"}},
				{"our table deleted", true, []string{"nft", "delete", "table", "inet", "warren-probes"}},
				{"our chain flushed", true, []string{"nft", "flush", "chain", "inet", "warren-probes", "postrouting"}},
				{"a rule more in ours", true, []string{"nft", "insert", "rule", "inet", "warren-probes", "postrouting", "accept"}},
				{"our set flushed", true, []string{"nft", "flush", "set", "inet", "warren-probes", "pods-v4"}},
				{"an address more", true, []string{"nft", "add", "element", "inet", "warren-probes", "pods-v4", "{ 10.1.2.3 }"}},
				{"our hook moved", true, []string{"nft", "delete chain inet warren-probes postrouting; add chain inet warren-probes postrouting { type nat hook postrouting priority 200; }"}},
			} {
				if tt.nft != (backend == "nftables") {
					continue
				}
				output(t, node.NS, tt.cmd[0], tt.cmd[1:]...)
				if diffs, err := p.Verify(ctx(t)); err != nil || len(diffs) == 0 {
					t.Errorf("%s: verify finds nothing: %v", tt.what, err)
				}
				check(t, p)
				if diffs, err := p.Verify(ctx(t)); err != nil || len(diffs) > 0 {
					t.Errorf("%s: not put right: %v %q", tt.what, err, diffs)
				}
				host.dial(t, a.at)
				if from := a.from(t); from != redirect.ProbeIP4() {
					t.Errorf("%s: then the connection came from %s\n%s", tt.what, from, ruleset(t, node.NS))
				}
			}
		})
	}
}

// check looks until there is nothing left to do: the first place is left to
// others for a while.
func check(t *testing.T, p *probe.Probe) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err := p.Check(ctx(t)); err != nil {
			t.Fatal(err)
		}
		if diffs, err := p.Verify(ctx(t)); err == nil && len(diffs) == 0 {
			return
		}
	}
}

// No probe fails and none comes from elsewhere while agents come and go.
func TestRestart(t *testing.T) {
	for _, backend := range backends() {
		t.Run(backend, func(t *testing.T) {
			node := nstest.New(t).Node("a")
			pod := node.Pod("in")
			dir, _ := cgroups(t, "kubelet.service")
			kubelet := start(t, node.NS, "dial", "kubelet", 0, dir+"/kubelet.service")
			all := map[string][]netip.Addr{"uid-1": {pod.IP4, pod.IP6}}
			p := newProbe(t, node, backend, probe.OnlyKubelet)
			defer func() { p.Close() }()
			if err := p.Sync(ctx(t), all); err != nil {
				t.Fatal(err)
			}
			a := listen(t, pod, pod.IP4)
			var stop atomic.Bool
			done := make(chan int)
			go func() {
				n := 0
				for ; !stop.Load(); n++ {
					kubelet.dial(t, a.at)
					if from := a.from(t); from != redirect.ProbeIP4() {
						t.Errorf("probe %d came from %s", n, from)
					}
				}
				done <- n
			}()
			for i := range 15 {
				p.Close()
				p = newProbe(t, node, backend, probe.OnlyKubelet)
				var err error
				switch i % 3 {
				case 0:
					err = p.Sync(ctx(t), all)
				case 1:
					err = p.Add(ctx(t), "uid-2", []netip.Addr{netip.MustParseAddr("10.1.2.3")})
				case 2:
					err = p.Check(ctx(t))
				}
				if err != nil {
					t.Error(err)
				}
			}
			stop.Store(true)
			if n := <-done; n < 10 {
				t.Errorf("only %d probes were made", n)
			} else {
				t.Logf("%d probes in 15 restarts", n)
			}
		})
	}
}

// kubelet restarted has another cgroup of the same path.
func TestKubeletRestarts(t *testing.T) {
	for _, backend := range backends() {
		t.Run(backend, func(t *testing.T) {
			node := nstest.New(t).Node("a")
			pod := node.Pod("in")
			dir, _ := cgroups(t, "kubelet.service")
			kubelet := start(t, node.NS, "dial", "kubelet", 0, dir+"/kubelet.service")
			p := newProbe(t, node, backend, probe.OnlyKubelet)
			defer p.Close()
			if err := p.Add(ctx(t), "uid-1", []netip.Addr{pod.IP4}); err != nil {
				t.Fatal(err)
			}
			before := p.State().Limit
			a := listen(t, pod, pod.IP4)
			kubelet.stop()
			remove(t, dir+"/kubelet.service")
			if err := p.Check(ctx(t)); err != nil {
				t.Errorf("while kubelet is down: %v", err)
			}
			if err := os.Mkdir(dir+"/kubelet.service", 0o755); err != nil {
				t.Fatal(err)
			}
			kubelet = start(t, node.NS, "dial", "kubelet", 0, dir+"/kubelet.service")
			if err := p.Check(ctx(t)); err != nil {
				t.Fatal(err)
			}
			kubelet.dial(t, a.at)
			if from := a.from(t); from != redirect.ProbeIP4() {
				t.Errorf("the connection came from %s; limit before %v, now %v\n%s", from, before, p.State().Limit, ruleset(t, node.NS))
			}
		})
	}
}

// The end of the old pod takes nothing from the new one of the same address,
// also when the agent was restarted in between.
func TestAddressMoves(t *testing.T) {
	for _, backend := range backends() {
		t.Run(backend, func(t *testing.T) {
			node := nstest.New(t).Node("a")
			pod := node.Pod("in")
			p := newProbe(t, node, backend, probe.WholeHost)
			defer func() { p.Close() }()
			host, a := start(t, node.NS, "dial", "anything", 0, ""), listen(t, pod, pod.IP4)
			through := func(want bool, when string) {
				t.Helper()
				host.dial(t, a.at)
				if from := a.from(t); (from == redirect.ProbeIP4()) != want {
					t.Errorf("%s: the connection came from %s", when, from)
				}
				if diffs, err := p.Verify(ctx(t)); err != nil || len(diffs) > 0 {
					t.Errorf("%s: verify: %v %q", when, err, diffs)
				}
			}
			do := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			mapped := netip.AddrFrom16(pod.IP4.As16())
			do(p.Add(ctx(t), "old", []netip.Addr{mapped, pod.IP6}))
			through(true, "an address in IPv6's form")
			do(p.Add(ctx(t), "new", []netip.Addr{pod.IP4}))
			do(p.Del(ctx(t), "old"))
			through(true, "the old pod is gone")
			if text := ruleset(t, node.NS); !strings.Contains(text, `"new"`) || strings.Contains(text, `"old"`) || strings.Contains(text, pod.IP6.String()) {
				t.Errorf("the sets:\n%s", text)
			}
			p.Close()
			p = newProbe(t, node, backend, probe.WholeHost)
			do(p.Del(ctx(t), "old"))
			through(true, "the old pod is gone once more")
			do(p.Del(ctx(t), "new"))
			through(false, "the new pod is gone")
			do(p.Add(ctx(t), "one", []netip.Addr{pod.IP4}))
			do(p.Add(ctx(t), "one", nil))
			through(false, "the pod lost its address")
			do(p.Sync(ctx(t), map[string][]netip.Addr{"b": {pod.IP4}, "a": {pod.IP4}}))
			do(p.Del(ctx(t), "b"))
			through(true, "one of two with an address is gone")
			do(p.Sync(ctx(t), nil))
			through(false, "nobody is there")
		})
	}
}

// Another backend than the last agent's takes over, and leaves nothing of it.
func TestBackendChanges(t *testing.T) {
	node := nstest.New(t).Node("a")
	pod := node.Pod("in")
	host, a := start(t, node.NS, "dial", "anything", 0, ""), listen(t, pod, pod.IP4)
	marks := map[string]string{"nftables": "table inet warren-probes", redirect.NameNFT: "xt match", redirect.NameLegacy: "\n-A WARREN_POSTRT"}
	for _, backend := range append(backends(), backends()...) {
		p := newProbe(t, node, backend, probe.WholeHost)
		if err := p.Sync(ctx(t), map[string][]netip.Addr{"uid-1": {pod.IP4}}); err != nil {
			t.Fatal(err)
		}
		p.Close()
		host.dial(t, a.at)
		if from := a.from(t); from != redirect.ProbeIP4() {
			t.Errorf("%s: the connection came from %s", backend, from)
		}
		text := ruleset(t, node.NS)
		for other, mark := range marks {
			if strings.Contains(text, mark) != (other == backend) {
				t.Errorf("with %s, what %s makes is there: %v\n%s", backend, other, strings.Contains(text, mark), text)
			}
		}
		if strings.Contains(text, "Name: warren-probes") != (backend != "nftables") {
			t.Errorf("with %s, the ipsets:\n%s", backend, text)
		}
	}
}

func TestRun(t *testing.T) {
	node := nstest.New(t).Node("a")
	pod := node.Pod("in")
	p, err := probe.New(probe.Config{Backend: "nftables", Limit: probe.WholeHost, NS: node.NS, Interval: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	runCtx, cancel := context.WithCancel(ctx(t))
	done := make(chan error)
	go func() { done <- p.Run(runCtx) }()
	if err := p.Add(ctx(t), "uid-1", []netip.Addr{pod.IP4}); err != nil {
		t.Fatal(err)
	}
	output(t, node.NS, "nft", "flush", "ruleset")
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if strings.Contains(ruleset(t, node.NS), pod.IP4.String()) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("Run does not put back what was flushed")
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
}

// One bad address or pod holds up no other.
func TestRefuses(t *testing.T) {
	node := nstest.New(t).Node("a")
	pod := node.Pod("in")
	p := newProbe(t, node, "nftables", probe.WholeHost)
	defer p.Close()
	err := p.Sync(ctx(t), map[string][]netip.Addr{
		"good":      {pod.IP4},
		"half-good": {{}, node.IP4, netip.MustParseAddr("::ffff:" + node.IP4.String()), netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("ff02::1"), netip.IPv4Unspecified(), pod.IP6},
		"bad uid\n": {pod.IP6},
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"pod half-good: address 1, invalid IP: it is not an IP address",
		"pod half-good: address 2, " + node.IP4.String() + ": it is this node's own",
		"pod half-good: address 3, " + node.IP4.String() + ": it is this node's own",
		"address 4, fe80::1%eth0: it has a zone", "127.0.0.1: it is a loopback address", "ff02::1: it is a multicast", "0.0.0.0: it is the unspecified",
		`pod UID "bad uid\n"`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
	text := ruleset(t, node.NS)
	for _, ip := range []netip.Addr{pod.IP4, pod.IP6} {
		if !strings.Contains(text, ip.String()) {
			t.Errorf("%s is not let through:\n%s", ip, text)
		}
	}
	if strings.Contains(text, node.IP4.String()) {
		t.Errorf("the node's address is let through:\n%s", text)
	}
	if _, err := probe.New(probe.Config{Backend: "ebtables", Limit: "all", IP4: pod.IP6}); err == nil || !strings.Contains(err.Error(), `limit "all"`) || !strings.Contains(err.Error(), "want an IPv4") {
		t.Errorf("a wrong configuration: %v", err)
	}
	if _, err := probe.New(probe.Config{Backend: "ebtables", NS: node.NS}); err == nil || !strings.Contains(err.Error(), `"ebtables"`) {
		t.Errorf("a wrong backend: %v", err)
	}
}

// Whether rules by cgroup work is tried with the agent's own cgroup, on the node
// or in a container, which sees another root of cgroups.
func TestTrial(t *testing.T) {
	for _, backend := range []string{redirect.NameNFT, "nftables"} {
		for _, mode := range []string{"limit", "limit contained"} {
			node := nstest.New(t).Node("a")
			dir, base := cgroups(t, "kubelet.service", "pods.slice/agent.service")
			kubelet := start(t, node.NS, "dial", "kubelet", 0, dir+"/kubelet.service")
			proc := hostProc(t, kubelet.cmd.Process.Pid)
			agent := start(t, node.NS, mode, "agent", 0, dir+"/pods.slice/agent.service", "BACKEND="+backend, "PROC="+proc)
			want := "processes in cgroup " + base + "/kubelet.service trial: <nil>"
			if got := agent.line(); got != want {
				t.Errorf("%s, %s: %s\nwant %s", mode, backend, got, want)
			}
		}
	}
}

// A contained agent that may not see the host's cgroups says so, and takes
// kubelet's user.
func TestNoCgroups(t *testing.T) {
	node := nstest.New(t).Node("a")
	dir, _ := cgroups(t, "kubelet.service", "pods.slice/agent.service")
	kubelet := start(t, node.NS, "dial", "kubelet", 0, dir+"/kubelet.service")
	proc := hostProc(t, kubelet.cmd.Process.Pid)
	if err := os.Remove(filepath.Join(proc, "1")); err != nil {
		t.Fatal(err)
	}
	agent := start(t, node.NS, "limit contained", "agent", 0, dir+"/pods.slice/agent.service", "BACKEND=nftables", "PROC="+proc)
	got := agent.line()
	for _, want := range []string{"run as user 0", "cannot be seen from here", "1/ns/cgroup: no such file"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in: %s", want, got)
		}
	}
}

// hostProc is a host's /proc with two processes: the first, and another.
func hostProc(t *testing.T, pid int) string {
	t.Helper()
	dir := t.TempDir()
	own, other := strconv.Itoa(os.Getpid()), strconv.Itoa(pid)
	for link, to := range map[string]string{"1": own, other: other} {
		if err := os.Symlink(filepath.Join("/proc", to), filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// With iptables-legacy it is the slice around kubelet that is let through,
// because everybody's changes to the table fail once a cgroup of a rule's is gone.
func TestOthersWhileKubeletIsDown(t *testing.T) {
	for _, backend := range []string{redirect.NameNFT, redirect.NameLegacy} {
		t.Run(backend, func(t *testing.T) {
			node := nstest.New(t).Node("a")
			pod := node.Pod("in")
			dir, base := cgroups(t, "kubelet.service", "ssh.service")
			elsewhere, _ := cgroups(t, "x.service")
			kubelet := start(t, node.NS, "dial", "kubelet", 0, dir+"/kubelet.service")
			p := newProbe(t, node, backend, probe.OnlyKubelet)
			defer p.Close()
			if err := p.Add(ctx(t), "uid-1", []netip.Addr{pod.IP4}); err != nil {
				t.Fatal(err)
			}
			a := listen(t, pod, pod.IP4)
			wide := backend == redirect.NameLegacy
			for _, tt := range []struct {
				cgroup string
				want   bool
			}{{dir + "/ssh.service", wide}, {elsewhere + "/x.service", false}} {
				start(t, node.NS, "dial", "other", 0, tt.cgroup).dial(t, a.at)
				if from := a.from(t); (from == redirect.ProbeIP4()) != tt.want {
					t.Errorf("limit %s: from %s it came from %s", p.State().Limit, tt.cgroup, from)
				}
			}
			if path := p.State().Limit.Cgroups[0].Path; (path == base) != wide {
				t.Errorf("limit: %s", p.State().Limit)
			}
			kubelet.dial(t, a.at)
			if from := a.from(t); from != redirect.ProbeIP4() {
				t.Errorf("kubelet's came from %s", from)
			}
			kubelet.stop()
			remove(t, dir+"/kubelet.service")
			output(t, node.NS, backend, "-t", "nat", "-A", "POSTROUTING", "-s", "192.0.2.1", "-j", "ACCEPT")
			if err := p.Check(ctx(t)); err != nil {
				t.Errorf("while kubelet is down: %v", err)
			}
		})
	}
}

// Who holds iptables' lock does not hold up the pods that come and go.
func TestLockHeld(t *testing.T) {
	node := nstest.New(t).Node("a")
	pod := node.Pod("in")
	p := newProbe(t, node, redirect.NameLegacy, probe.WholeHost)
	defer p.Close()
	if err := p.Sync(ctx(t), nil); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(os.Getenv("XTABLES_LOCKFILE"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	checked := make(chan error)
	go func() { checked <- p.Check(ctx(t)) }()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) { // until it waits for the lock
		short, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		_, err := p.Verify(short)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) || time.Now().After(end) {
			break
		}
	}
	short, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := p.Add(short, "uid-1", []netip.Addr{pod.IP4}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Add with the lock held by another: %v", err)
	}
	lock.Close()
	<-checked
	if err := p.Check(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if text := ruleset(t, node.NS); !strings.Contains(text, pod.IP4.String()) {
		t.Errorf("the address did not follow:\n%s", text)
	}
}
