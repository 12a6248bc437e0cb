package probe_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/nodeagent/probe"
)

// What the whole package is for: who is let through, with each backend and
// limit, in both families.
func TestLetsThrough(t *testing.T) {
	for _, backend := range backends() {
		t.Run(backend, func(t *testing.T) {
			nstest.LeakCheck(t)
			node := nstest.New(t).Node("a")
			pod, other := node.Pod("in"), node.Pod("out")
			p := newProbe(t, node, backend, probe.WholeHost)
			defer p.Close()
			if err := p.Sync(ctx(t), map[string][]netip.Addr{"uid-1": {pod.IP4, pod.IP6}}); err != nil {
				t.Fatal(err)
			}
			host := start(t, node.NS, "dial", "anything", 0, "")
			for _, tt := range []struct {
				name string
				ip   netip.Addr
				pod  *nstest.Pod
				want func(netip.Addr) bool
			}{
				{"v4", pod.IP4, pod, is(redirect.ProbeIP4())},
				{"v6", pod.IP6, pod, is(redirect.ProbeIP6())},
				{"a pod outside, v4", other.IP4, other, isNot(redirect.ProbeIP4())},
				{"a pod outside, v6", other.IP6, other, isNot(redirect.ProbeIP6())},
			} {
				a := listen(t, tt.pod, tt.ip)
				host.dial(t, a.at)
				if from := a.from(t); !tt.want(from) {
					t.Errorf("%s: the connection came from %s\n%s", tt.name, from, ruleset(t, node.NS))
				}
			}
			// A pod is not the host, even on the same node.
			a := listen(t, pod, pod.IP4)
			start(t, other.NS, "dial", "anything", 0, "").dial(t, a.at)
			if from := a.from(t); from != other.IP4 {
				t.Errorf("a pod's connection came from %s, not %s", from, other.IP4)
			}
			if diffs, err := p.Verify(ctx(t)); err != nil || len(diffs) > 0 {
				t.Errorf("verify: %v %q", err, diffs)
			}
		})
	}
}

func is(want netip.Addr) func(netip.Addr) bool {
	return func(got netip.Addr) bool { return got == want }
}
func isNot(x netip.Addr) func(netip.Addr) bool { return func(got netip.Addr) bool { return got != x } }

// kubelet is told by its cgroup where it has one, or else by its user.
func TestLimit(t *testing.T) {
	for _, backend := range backends() {
		t.Run(backend, func(t *testing.T) {
			node := nstest.New(t).Node("a")
			pod := node.Pod("in")
			dir, base := cgroups(t, "kubelet.service", "ssh.service", "kubepods.slice")
			dir2 := dir + "/kubelet.service"
			const user = 4242
			start(t, node.NS, "dial", "kubelet", user, dir2)
			// A pod's process may call itself so.
			start(t, pod.NS, "dial", "kubelet", 0, dir+"/ssh.service")
			start(t, node.NS, "dial", "kubelet", 0, dir+"/kubepods.slice")
			p := newProbe(t, node, backend, probe.OnlyKubelet)
			defer p.Close()
			l := p.State().Limit
			want := probe.ByCgroup
			if backend == redirect.NameLegacy { // no slice of the host's is around it
				want = probe.ByUser
			}
			if l.Kind != want {
				t.Fatalf("limit: %s", l)
			}
			if want == probe.ByCgroup && l.Cgroups[0].Path != base+"/kubelet.service" {
				t.Errorf("limit: %s", l)
			}
			if err := p.Add(ctx(t), "uid-1", []netip.Addr{pod.IP4, pod.IP6}); err != nil {
				t.Fatal(err)
			}
			for _, ip := range []netip.Addr{pod.IP4, pod.IP6} {
				probeIP := redirect.ProbeIP4()
				if ip.Is6() {
					probeIP = redirect.ProbeIP6()
				}
				a := listen(t, pod, ip)
				for _, tt := range []struct {
					name         string
					user         uint32
					cgroup       string
					byCg, byUser bool
				}{
					{"kubelet", user, dir2, true, true},
					{"another of its user", user, dir + "/ssh.service", false, true},
					{"root in its cgroup", 0, dir2, true, false},
					{"root", 0, dir + "/ssh.service", false, false},
					{"a pod on the host's network", 0, dir + "/kubepods.slice", false, false},
				} {
					start(t, node.NS, "dial", "dialer", tt.user, tt.cgroup).dial(t, a.at)
					through := tt.byCg
					if want == probe.ByUser {
						through = tt.byUser
					}
					if from := a.from(t); (from == probeIP) != through {
						t.Errorf("%s: came from %s, want it let through: %v\n%s", tt.name, from, through, ruleset(t, node.NS))
					}
				}
			}
		})
	}
}

// What there was before is what is there after.
func TestRemove(t *testing.T) {
	for _, backend := range backends() {
		t.Run(backend, func(t *testing.T) {
			node := nstest.New(t).Node("a")
			pod := node.Pod("in")
			for _, before := range []string{"nothing", "others' rules"} {
				if before != "nothing" {
					program := "iptables"
					if backend == redirect.NameLegacy {
						program = backend
					}
					output(t, node.NS, program, "-t", "nat", "-A", "POSTROUTING", "-s", "10.0.0.0/8", "-j", "MASQUERADE")
					output(t, node.NS, "ipset", "create", "other", "hash:ip")
				}
				want := ruleset(t, node.NS)
				p := newProbe(t, node, backend, probe.WholeHost)
				if err := p.Sync(ctx(t), map[string][]netip.Addr{"uid-1": {pod.IP4, pod.IP6}}); err != nil {
					t.Fatal(err)
				}
				during := ruleset(t, node.NS)
				p.Close()
				if got := ruleset(t, node.NS); got != during {
					t.Errorf("Close changed something:\n%s", got)
				}
				// Another process uninstalls.
				p = newProbe(t, node, backend, probe.WholeHost)
				if err := p.Remove(ctx(t)); err != nil {
					t.Fatal(err)
				}
				got := ruleset(t, node.NS)
				if backend == redirect.NameLegacy { // the kernel keeps tables of this variant, empty
					got, want = rulesOnly(got), rulesOnly(want)
				}
				if got != want || !strings.Contains(during, "arren") {
					t.Errorf("over %s: before\n%s\nafter\n%s", before, want, got)
				}
				if err := p.Remove(ctx(t)); err != nil {
					t.Errorf("once more: %v", err)
				}
				if err := p.Add(ctx(t), "uid", []netip.Addr{pod.IP4}); err == nil {
					t.Error("Add after Remove is no error")
				}
				p.Close()
			}
		})
	}
}

// rulesOnly leaves out empty tables' chains.
func rulesOnly(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, ":") && !strings.HasPrefix(line, "*") && !strings.HasPrefix(line, "COMMIT") {
			b.WriteString(line)
		}
	}
	return b.String()
}
