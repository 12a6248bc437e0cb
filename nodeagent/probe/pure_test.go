package probe

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func addrs(texts ...string) (all []netip.Addr) {
	for _, t := range texts {
		all = append(all, netip.MustParseAddr(t))
	}
	return all
}

func TestClaims(t *testing.T) {
	c := claims{}
	members := func() string {
		var all []string
		for a, owner := range c.members() {
			all = append(all, a.String()+"="+owner)
		}
		slices.Sort(all)
		return strings.Join(all, " ")
	}
	for i, step := range []struct {
		uid   string
		addrs []netip.Addr
		want  string
	}{
		{"old", addrs("10.0.0.1", "fd00::1"), "10.0.0.1=old fd00::1=old"},
		{"new", addrs("10.0.0.1"), "10.0.0.1=new fd00::1=old"},
		{"old", addrs("10.0.0.1", "fd00::1"), "10.0.0.1=old fd00::1=old"}, // a late update of the old one
		{"old", nil, "10.0.0.1=new"},
		{"old", nil, "10.0.0.1=new"},
		{"new", addrs("10.0.0.2"), "10.0.0.2=new"},
		{"new", nil, ""},
	} {
		if c.set(step.uid, step.addrs); members() != step.want {
			t.Errorf("step %d: %s, want %s", i, members(), step.want)
		}
	}
	if len(c) > 0 {
		t.Errorf("left: %v", c)
	}
}

// Of two with one address the one that is shown already stays.
func TestClaimsOf(t *testing.T) {
	pods := map[string][]netip.Addr{"a": addrs("10.0.0.1"), "b": addrs("10.0.0.1")}
	ip := netip.MustParseAddr("10.0.0.1")
	for shown, want := range map[string]string{"": "b", "a": "a", "b": "b", "gone": "b"} {
		c := claimsOf(pods, map[netip.Addr]string{ip: shown})
		if got := c.members()[ip]; got != want || len(c[ip]) != 2 {
			t.Errorf("%q is shown: %v", shown, c)
		}
	}
}

func TestLimitTo(t *testing.T) {
	own := Cgroup{"system.slice/kubelet.service", 7}
	slice := Cgroup{"system.slice", 5}
	for _, tt := range []struct {
		name    string
		found   []kubelet
		lasting bool
		want    string
	}{
		{"none", nil, false, "any process of the host's network (no kubelet was found among the host's processes)"},
		{"its own", []kubelet{{UID: 3, Cgroup: own, Lasting: slice}}, false, "processes in cgroup system.slice/kubelet.service"},
		{"its slice", []kubelet{{Cgroup: own, Lasting: slice}}, true, "processes in cgroup system.slice (a cgroup that outlives kubelet, as iptables-legacy needs)"},
		{"no slice", []kubelet{{Cgroup: own}}, true, "processes of the host's network that run as user 0 (no cgroup around kubelet outlives it and holds no pods, as iptables-legacy needs)"},
		{"shared", []kubelet{{UID: 3, Shared: "why\nnot"}}, false, "processes of the host's network that run as user 3 (why; not)"},
		{"two of one", []kubelet{{Cgroup: own}, {Cgroup: own}}, false, "processes in cgroup system.slice/kubelet.service"},
		{"two", []kubelet{{Cgroup: own}, {Cgroup: Cgroup{"k", 1}}}, false, "processes in cgroup k, system.slice/kubelet.service"},
		{"one of two shared", []kubelet{{UID: 3, Cgroup: own}, {UID: 1, Shared: "why"}}, false, "processes of the host's network that run as user 1, 3 (why)"},
	} {
		if got := limitTo(tt.found, tt.lasting).String(); got != tt.want {
			t.Errorf("%s: %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

func TestProcFiles(t *testing.T) {
	if path, ok := unified("12:cpu:/x\n0::/system.slice/kubelet.service\n"); !ok || path != "/system.slice/kubelet.service" {
		t.Errorf("%q %v", path, ok)
	}
	if _, ok := unified("12:cpu:/x\n"); ok {
		t.Error("found a hierarchy of version 2")
	}
	stat := "77 (a) b (c) S 1 77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 424242 1 1"
	if got := started(stat); got != "424242" {
		t.Errorf("%q", got)
	}
	for _, text := range []string{"", "77", "77 (x)", ")"} {
		if got := started(text); got != "" {
			t.Errorf("%q: %q", text, got)
		}
	}
	if id, err := user("Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t5\t5\t5\n"); err != nil || id != 4 {
		t.Errorf("%d %v", id, err)
	}
	if _, err := user("Uid:\t1\n"); err == nil {
		t.Error("read a user out of nothing")
	}
	for path, want := range map[string]bool{"system.slice/kubelet.service": true, "": false, "a/../b": false, `a\x2db`: false, "a b": false, "a\nb": false, `a"b`: false} {
		if plainPath(path) != want {
			t.Errorf("plainPath(%q) is not %v", path, want)
		}
	}
}

// The first place is contended for with patience, everything else is not.
func TestCalm(t *testing.T) {
	var c calm
	now := time.Now()
	moved, gone := []drift{{place: true}}, []drift{{place: true}, {}}
	var acted []time.Duration
	for at := time.Duration(0); at < 3*time.Minute; at += time.Second {
		if c.mayAct(moved, now.Add(at)) {
			acted = append(acted, at/time.Second)
		}
		if !c.mayAct(gone, now.Add(at)) {
			t.Fatal("waits although a rule is missing")
		}
	}
	if d := cmp.Diff([]time.Duration{0, 1, 3, 7, 15, 31, 61, 91, 121, 151}, acted); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	c.quiet(now.Add(time.Hour))
	if c.patience != 0 {
		t.Error("never calm again")
	}
}

// The words that others have to act upon.
func TestJudge(t *testing.T) {
	pod := netip.MustParseAddr("10.0.0.1")
	probe := netip.MustParseAddr("169.254.7.127")
	lost := result{pod: "p", addr: pod, want: probe, err: errors.New("timeout")}
	narrow := Limit{Kind: ByCgroup}
	for _, tt := range []struct {
		name   string
		f      facts
		rs     []result
		finds  string
		broken bool
		word   string
	}{
		{"all well", facts{limit: narrow}, []result{{want: probe, from: probe}}, "", false, ""},
		{"no ipset", facts{limit: narrow, setup: fmt.Errorf("x: %w", errNoIPSet)}, nil, FoundNoIPSet, true, "modprobe"},
		{"no rules", facts{limit: narrow, setup: errors.New("x")}, nil, FoundNoRules, true, "CAP_NET_ADMIN"},
		{"no ip6tables", facts{limit: narrow, v6: true, no6: "x"}, nil, FoundNoIP6Tables, true, "Install ip6tables"},
		{"no ip6tables, no IPv6", facts{limit: narrow, no6: "x"}, nil, "", false, ""},
		{"by user", facts{limit: Limit{Kind: ByUser, Users: []uint32{0}}}, nil, FoundWide, false, "run as user 0"},
		{"as configured", facts{limit: Limit{Kind: ByNothing}, asked: WholeHost}, nil, "", false, ""},
		{"BPF masquerade", facts{limit: narrow, plugin: plugin{cilium: true, ciliumBPF: true}}, []result{{want: probe, from: pod}}, FoundSource, true, "bpf.masquerade=false"},
		{"Cilium", facts{limit: narrow, plugin: plugin{cilium: true}}, []result{lost}, FoundNoAnswer, true, "169.254.7.127/32 by a CiliumClusterwideNetworkPolicy"},
		{"Calico", facts{limit: narrow, plugin: plugin{calicoBPF: true}}, []result{lost}, FoundNoAnswer, true, "3.29"},
		{"AWS", facts{limit: narrow, plugin: plugin{awsBranch: true}}, []result{lost}, FoundNoAnswer, true, "POD_SECURITY_GROUP_ENFORCING_MODE=standard"},
		{"untried", facts{limit: narrow}, []result{{untried: errors.New("x")}}, FoundNotTested, false, "could not be tried"},
	} {
		found := judge(tt.f, tt.rs)
		names, text, broken := "", "", false
		for _, f := range found {
			names, text, broken = names+f.Name, text+f.String(), broken || f.Broken
		}
		if names != tt.finds || broken != tt.broken || !strings.Contains(text, tt.word) {
			t.Errorf("%s: %v\nwant %s, broken %v, with %q", tt.name, found, tt.finds, tt.broken, tt.word)
		}
	}
}

// Equal cgroups have equal marks, another of the same path has not, and what
// only the mark knows is not in the rule.
func TestMarks(t *testing.T) {
	spec := func(id uint64) string {
		return specs(rules{limit: Limit{Kind: ByCgroup, Cgroups: []Cgroup{{"k.slice/k", id}}}, ip4: netip.MustParseAddr("169.254.7.127")}, false)[0]
	}
	if one, again := tag(spec(1)), tag(spec(1)); one != again || one == tag(spec(2)) {
		t.Error("the marks do not tell cgroups apart")
	}
	if got := ruleOf(spec(1)); strings.Contains(got, "#") || !strings.HasSuffix(got, "--to-source 169.254.7.127") {
		t.Error(got)
	}
}
