package enroll_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/nodeagent/enroll"
)

// conns are a pod's connections and its policies, as the test sets them.
type conns struct {
	mu      sync.Mutex
	all     []enroll.Conn
	carried map[uint64]bool // by the proxy
	denied  map[uint64]bool
	ended   []uint64
	stuck   bool
	blind   error
	lists   int   // calls of List
	unseen  error // of List
	bound   int   // what Carried says
	mute    error // of Carried
}

func (c *conns) List(*netns.NS) ([]enroll.Conn, int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lists++
	if c.unseen != nil {
		return nil, 0, c.unseen
	}
	return slices.DeleteFunc(slices.Clone(c.all), func(o enroll.Conn) bool { return c.carried[o.Cookie] }), 0, nil
}

func (c *conns) Carried(*netns.NS) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bound, c.mute
}

func (c *conns) Alive(_ *netns.NS, some []enroll.Conn) ([]enroll.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(some), func(o enroll.Conn) bool { return !slices.Contains(c.all, o) }), nil
}

func (c *conns) End(_ *netns.NS, some []enroll.Conn) ([]enroll.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stuck {
		return some, errors.New("the kernel cannot")
	}
	for _, o := range some {
		c.ended = append(c.ended, o.Cookie)
		c.all = slices.DeleteFunc(c.all, func(x enroll.Conn) bool { return x == o })
	}
	return nil, nil
}

func (c *conns) Denied(_ context.Context, _ string, some []enroll.Conn) (denied []enroll.Conn, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range some {
		if c.denied[o.Cookie] {
			denied = append(denied, o)
		}
	}
	return denied, c.blind
}

func (c *conns) set(do func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	do()
}

func (n *node) withConns(c *conns) {
	n.config = func(cfg *enroll.Config) { cfg.Connections, cfg.Policies = c, c }
}

func (n *node) report(uid string) enroll.Report {
	for _, r := range n.e.Report() {
		if r.UID == uid {
			return r
		}
	}
	return enroll.Report{}
}

// TestConnectionsOfBefore: they are counted, survive a restart of the agent, and those
// that a policy forbids are ended when it does, and no others.
func TestConnectionsOfBefore(t *testing.T) {
	nstest.LeakCheck(t)
	c := &conns{all: []enroll.Conn{{Cookie: 1, Inbound: true}, {Cookie: 2, Inbound: true}, {Cookie: 3}}, denied: map[uint64]bool{}}
	n := newNode(t)
	n.withConns(c)
	n.start()
	n.proxy()
	n.outside("p", "uid-p", "c1")
	n.world.pod("plain", "p", "uid-p", labelled("ambient"))
	n.until("they are counted", func() bool { return n.report("uid-p").Before == 3 })
	n.stop()
	n.start()
	n.until("they are counted still", func() bool { return n.report("uid-p").Before == 3 })
	// Strict mTLS comes. It says nothing of what the pod has made to others.
	c.set(func() { c.denied[2], c.denied[3] = true, true })
	n.until("it is ended", func() bool {
		return n.report("uid-p").Before == 2 && n.notices.about("p", "1 connections without mTLS")
	})
	if !slices.Equal(c.ended, []uint64{2}) {
		t.Errorf("ended %v", c.ended)
	}
	c.set(func() { c.all = nil })
	n.until("they have ended by themselves", func() bool { return n.report("uid-p").Before == 0 })
}

// TestManyConnectionsOfBefore: an agent that has written down some of many knows all of
// them after a restart, and ends those that a policy forbids; those that the rules let
// through are none.
func TestManyConnectionsOfBefore(t *testing.T) {
	nstest.LeakCheck(t)
	c := &conns{denied: map[uint64]bool{}}
	const many = 300
	for i := range uint64(many) {
		c.all = append(c.all, enroll.Conn{Cookie: i + 1, Inbound: true, Local: netip.MustParseAddrPort("10.1.2.3:80"), Remote: netip.MustParseAddrPort("10.1.9.9:1000")})
	}
	n := newNode(t)
	n.withConns(c)
	n.start()
	n.proxy()
	n.outside("p", "uid-p", "c1")
	n.world.pod("plain", "p", "uid-p", labelled("ambient"))
	n.until("they are counted", func() bool { return n.report("uid-p").Before == many })
	n.stop()
	c.set(func() {
		c.all = append(c.all, enroll.Conn{Cookie: 4711, Inbound: true, Remote: netip.AddrPortFrom(redirect.ProbeIP4(), 1000)})
	})
	n.start()
	n.until("the kernel was asked again", func() (asked bool) {
		c.set(func() { asked = c.lists > 1 })
		return asked
	})
	n.until("they are counted still", func() bool { return n.report("uid-p").Before == many })
	c.set(func() {
		for i := range uint64(5000) {
			c.denied[i+1] = true
		}
	})
	n.until("all are ended", func() bool { return n.report("uid-p").Before == 0 })
	c.set(func() {
		if len(c.ended) != many || slices.Contains(c.ended, 4711) {
			t.Errorf("%d ended, kubelet's probe among them: %t", len(c.ended), slices.Contains(c.ended, 4711))
		}
	})
}

// TestConnectionsThatCannotBeJudged: it is said so, and none is ended.
func TestConnectionsThatCannotBeJudged(t *testing.T) {
	nstest.LeakCheck(t)
	c := &conns{all: []enroll.Conn{{Cookie: 1, Inbound: true}}, blind: errors.New("no administration socket")}
	n := newNode(t)
	n.withConns(c)
	n.start()
	n.proxy()
	n.outside("p", "uid-p", "c1")
	n.world.pod("plain", "p", "uid-p", labelled("ambient"))
	n.until("it is said", func() bool { return strings.Contains(n.report("uid-p").BeforeNote, "no administration socket") })
	c.set(func() { c.blind, c.denied, c.stuck = nil, map[uint64]bool{1: true}, true })
	n.until("it is said that they stay", func() bool { return strings.Contains(n.report("uid-p").BeforeNote, "the kernel cannot") })
	if len(c.ended) > 0 {
		t.Errorf("ended %v", c.ended)
	}
}

// TestCarriedIsNotOutside: a pod that changes its mind has connections that the proxy
// carries, which are none of before, and others that nobody has captured while it was
// leaving, which are, whatever became of the agent meanwhile.
func TestCarriedIsNotOutside(t *testing.T) {
	nstest.LeakCheck(t)
	c := &conns{all: []enroll.Conn{{Cookie: 1}}, carried: map[uint64]bool{2: true}, denied: map[uint64]bool{3: true}}
	n := newNode(t)
	n.times.Drain = time.Minute
	n.withConns(c)
	n.start()
	_, stop := n.proxy()
	s := n.outside("p", "uid-p", "c1")
	n.world.pod("plain", "p", "uid-p", labelled("ambient"))
	n.until("it is in", func() bool { return n.phase("uid-p") == enroll.PhaseEnrolled })
	c.set(func() { c.all = append(c.all, enroll.Conn{Cookie: 2, Inbound: true}) })
	n.flows.set(1)
	n.world.pod("plain", "p", "uid-p")
	n.until("it leaves", func() bool { return n.phase("uid-p") == enroll.PhaseLeaving && !n.captured(s) })
	c.set(func() { c.all = append(c.all, enroll.Conn{Cookie: 3, Inbound: true}) })
	stop()
	n.stop()
	asked := n.flows.asked()
	n.start()
	n.proxy()
	n.until("it leaves anew", func() bool { return n.flows.asked() > asked })
	n.world.pod("plain", "p", "uid-p", labelled("ambient"))
	n.until("what was not captured is ended, as a policy wants", func() bool {
		return n.phase("uid-p") == enroll.PhaseEnrolled && n.notices.about("p", "1 connections without mTLS")
	})
	if got := n.report("uid-p").Before; got != 1 || !slices.Equal(c.ended, []uint64{3}) {
		t.Errorf("%d are outside, %v were ended; want the one that the proxy never had, and the one of the time between", got, c.ended)
	}
}

// TestProxyThatEndsCarries: the proxy that answers has no connection of a leaving pod, or
// cannot say, as one that is not ready, and another one that was told to end has: the pod is
// not left before that has ended too, or its time.
func TestProxyThatEndsCarries(t *testing.T) {
	for name, c := range map[string]struct {
		late bool
		err  error
	}{
		"to the end": {}, "to the deadline": {late: true},
		"to the end, by the kernel alone":      {err: errors.New("the proxy does not serve it")},
		"to the deadline, by the kernel alone": {late: true, err: errors.New("no proxy")},
	} {
		t.Run(name, func(t *testing.T) { leaveCarried(t, c.late, c.err) })
	}
}

func leaveCarried(t *testing.T, late bool, mute error) {
	nstest.LeakCheck(t)
	c := &conns{bound: 1}
	n := newNode(t)
	n.times.Drain, n.times.Blind = time.Minute, time.Millisecond
	if late {
		n.times.Drain = 500 * time.Millisecond
	}
	n.flows.err = mute
	n.withConns(c)
	n.start()
	f, _ := n.proxy()
	n.world.pod("app", "a", "uid-a")
	s := n.sandbox("app", "a", "uid-a", "c1")
	n.mustAdd(s)
	n.world.pod("app", "a", "uid-a", labelled("none"))
	if !late {
		n.until("it is seen", func() bool { return n.log.has("a proxy that ends still carries", "uid-a") })
		asked := n.flows.asked()
		n.until("the proxy has been asked again", func() bool { return n.flows.asked() > asked+2 })
		if n.phase("uid-a") != enroll.PhaseLeaving || n.captured(s) || len(f.Pods()) == 0 || !strings.Contains(inPod(t, s.netns, "ip", "rule"), "fwmark") {
			t.Errorf("the pod is %s, redirected: %t, the proxy has %v, or the way of answers is gone", n.phase("uid-a"), n.captured(s), f.Pods())
		}
		c.set(func() { c.bound = 0 })
	}
	n.until("it has left", func() bool { return n.phase("uid-a") == enroll.PhaseLeft })
	if !n.clean(s) {
		t.Error("something was left behind")
	}
}

// TestNobodyCanSay: where neither proxy nor kernel says what is carried, a while is enough.
func TestNobodyCanSay(t *testing.T) {
	nstest.LeakCheck(t)
	c := &conns{bound: 1, mute: errors.New("no sockets today")}
	n := newNode(t)
	n.times.Drain, n.times.Blind = time.Hour, 300*time.Millisecond
	n.flows.err = errors.New("no proxy")
	n.withConns(c)
	n.start()
	n.proxy()
	n.world.pod("app", "a", "uid-a")
	n.mustAdd(n.sandbox("app", "a", "uid-a", "c1"))
	n.world.pod("app", "a", "uid-a", labelled("none"))
	n.until("it has left", func() bool { return n.phase("uid-a") == enroll.PhaseLeft })
}

// TestConnectionsThatWereNotSeen: a look that failed when the pod was captured is made up for.
func TestConnectionsThatWereNotSeen(t *testing.T) {
	nstest.LeakCheck(t)
	c := &conns{all: []enroll.Conn{{Cookie: 1, Inbound: true}, {Cookie: 2}}, denied: map[uint64]bool{1: true}, unseen: errors.New("no sockets today")}
	n := newNode(t)
	n.withConns(c)
	n.start()
	n.proxy()
	n.outside("p", "uid-p", "c1")
	n.world.pod("plain", "p", "uid-p", labelled("ambient"))
	n.until("it is said", func() bool {
		return n.phase("uid-p") == enroll.PhaseEnrolled && strings.Contains(n.report("uid-p").BeforeNote, "no sockets today")
	})
	c.set(func() { c.unseen = nil })
	n.until("what a policy forbids is ended", func() bool {
		return n.report("uid-p").Before == 1 && n.report("uid-p").BeforeNote == "" && n.notices.about("p", "1 connections without mTLS")
	})
}

// TestWhatWasNotSeenIsNotForgotten: an agent that could not look at a pod's connections
// leaves that to the next one, and what it has found later, too.
func TestWhatWasNotSeenIsNotForgotten(t *testing.T) {
	nstest.LeakCheck(t)
	c := &conns{all: []enroll.Conn{{Cookie: 4711, Inbound: true}, {Cookie: 2}}, unseen: errors.New("no sockets today")}
	n := newNode(t)
	n.withConns(c)
	n.start()
	n.proxy()
	n.outside("p", "uid-p", "c1")
	n.world.pod("plain", "p", "uid-p", labelled("ambient"))
	n.until("it is said", func() bool {
		return n.phase("uid-p") == enroll.PhaseEnrolled && strings.Contains(n.report("uid-p").BeforeNote, "no sockets today")
	})
	n.stop()
	c.set(func() { c.unseen = nil })
	n.start()
	n.until("they are counted", func() bool { return n.report("uid-p").Before == 2 })
	n.until("that is written down", func() bool {
		text, _ := os.ReadFile(filepath.Join(n.state(), "attachments", "c1-eth0.json"))
		return strings.Contains(string(text), `"cookie": 4711`) && !strings.Contains(string(text), "beforeUnseen")
	})
	n.stop()
	c.set(func() { c.unseen, c.denied = errors.New("no sockets today"), map[uint64]bool{4711: true} })
	n.start()
	n.until("what a policy forbids is ended", func() bool {
		return n.report("uid-p").Before == 1 && n.notices.about("p", "1 connections without mTLS")
	})
}

// TestWhatCannotBeWrittenDownIsAnotherTime: the folder of records is away for a moment.
func TestWhatCannotBeWrittenDownIsAnotherTime(t *testing.T) {
	nstest.LeakCheck(t)
	c := &conns{all: []enroll.Conn{{Cookie: 4711, Inbound: true}}, unseen: errors.New("no sockets today")}
	n := newNode(t)
	n.withConns(c)
	n.start()
	n.proxy()
	n.outside("p", "uid-p", "c1")
	n.world.pod("plain", "p", "uid-p", labelled("ambient"))
	n.until("it is said", func() bool {
		return n.phase("uid-p") == enroll.PhaseEnrolled && strings.Contains(n.report("uid-p").BeforeNote, "no sockets today")
	})
	records := filepath.Join(n.state(), "attachments")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Rename(records, records+".away"))
	c.set(func() { c.unseen = nil })
	n.until("it cannot be written down", func() bool { return n.log.has("cannot write down a pod's connections", "uid-p") })
	must(os.Rename(records+".away", records))
	n.until("it is written down", func() bool {
		text, _ := os.ReadFile(filepath.Join(records, "c1-eth0.json"))
		return strings.Contains(string(text), `"cookie": 4711`) && !strings.Contains(string(text), "beforeUnseen")
	})
}

// istio makes a pod one that Istio's agent has redirected and left.
func (n *node) istio(s *sandbox) { n.istioAs(s, "") }

// istioAs is istio, with the rules in some form.
func (n *node) istioAs(s *sandbox, form string) {
	n.t.Helper()
	if err := n.backend.Apply(s.netns, redirect.Defaults()); err != nil {
		n.t.Fatal(err)
	}
	if err := redirect.GiveBack(n.backend, s.netns, redirect.Defaults(), form); err != nil {
		n.t.Fatal(err)
	}
	if got := n.foreign(s); len(got) == 0 {
		n.t.Fatal("no rules of Istio's were made")
	}
}

func (n *node) foreign(s *sandbox) []string {
	n.t.Helper()
	all, err := n.backend.Foreign(s.netns)
	if err != nil {
		n.t.Fatal(err)
	}
	return all
}

// TestTakenOverAndGivenBack: a pod of Istio's joins with our rules in the place of
// theirs, and theirs are there again when the mesh leaves a node that Istio is on.
func TestTakenOverAndGivenBack(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	find := n.withFinder()
	n.start()
	f, _ := n.proxy()
	s := n.sandbox("app", "a", "uid-a", "c1")
	n.istio(s)
	find.set("uid-a", s)
	n.world.pod("app", "a", "uid-a", marked, address("10.1.2.3"))
	n.until("it is taken over", func() bool { return n.phase("uid-a") == enroll.PhaseEnrolled })
	if len(n.foreign(s)) > 0 || !n.captured(s) || len(f.Pods()) != 1 {
		t.Errorf("left of Istio: %v, redirected: %t, proxy: %v", n.foreign(s), n.captured(s), f.Pods())
	}
	n.world.namespace("istio-system", nil)
	n.rival(corev1.PodRunning)
	if err := n.e.Retire(within(t), "the mesh leaves this node"); err != nil {
		t.Fatal(err)
	}
	if len(n.foreign(s)) == 0 || n.captured(s) {
		t.Errorf("left of Istio: %v, redirected by us: %t", n.foreign(s), n.captured(s))
	}
	if m, _ := n.e.Marks(); len(m) > 0 || len(f.Pods()) != 1 {
		t.Errorf("marks %v, proxy %v: the pod is to go on until Istio has it", m, f.Pods())
	}
}

// TestNotGivenToWhoNeverCame: an agent of Istio's that was announced and never ran, or never
// was ready, serves no pod, so that none is given to it when the mesh leaves; one that is
// being replaced, or was ready until a while ago, does.
func TestNotGivenToWhoNeverCame(t *testing.T) {
	for name, c := range map[string]struct {
		before, rival func(*node)
		given         bool
	}{
		"never came":        {nil, func(n *node) { n.rival(corev1.PodPending) }, false},
		"never was ready":   {nil, func(n *node) { n.rivalCrashes(time.Second) }, false},
		"is being replaced": {func(n *node) { n.rival(corev1.PodRunning) }, func(n *node) { n.rival(corev1.PodPending) }, true},
		"was seen ready":    {func(n *node) { n.rival(corev1.PodRunning) }, func(n *node) { n.rivalCrashes(0) }, true},
		"was ready":         {nil, func(n *node) { n.rivalCrashes(time.Minute) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			nstest.LeakCheck(t)
			n := newNode(t)
			n.times.Rival = time.Minute
			n.world.namespace("istio-system", nil)
			n.start()
			f, _ := n.proxy()
			n.world.pod("app", "a", "uid-a")
			s := n.sandbox("app", "a", "uid-a", "c1")
			n.mustAdd(s)
			if c.before != nil {
				c.before(n)
				n.until("it is seen", func() bool { return n.e.Rival() != "" })
			}
			c.rival(n)
			if err := n.e.Retire(within(t), "the mesh leaves this node"); err != nil {
				t.Fatal(err)
			}
			if got := len(n.foreign(s)) > 0; got != c.given || n.captured(s) || !c.given && (!n.clean(s) || len(f.Pods()) > 0) {
				t.Errorf("Istio's rules: %t, want %t; ours: %t; the proxy has %v", got, c.given, n.captured(s), f.Pods())
			}
		})
	}
}

// TestWhatCannotBeTakenOver: the pod is left as it is, and the proxy is not even asked to
// listen beside the one that serves it.
func TestWhatCannotBeTakenOver(t *testing.T) {
	for name, c := range map[string]struct {
		istio          bool
		script, reason string
	}{
		"a sidecar's": {false, "iptables -t nat -N ISTIO_REDIRECT", "another mesh has redirected this pod"},
		"made twice":  {true, "for v in nft legacy; do iptables-$v -t nat -N ISTIO_OUTPUT 2>/dev/null || true; done", "twice"},
	} {
		t.Run(name, func(t *testing.T) {
			nstest.LeakCheck(t)
			n := newNode(t)
			find := n.withFinder()
			n.start()
			f, _ := n.proxy()
			s := n.sandbox("app", "a", "uid-a", "c1")
			if c.istio {
				n.istio(s)
			}
			inPod(t, s.netns, "sh", "-e", "-c", c.script)
			routes := inPod(t, s.netns, "ip", "rule")
			find.set("uid-a", s)
			n.world.pod("app", "a", "uid-a", address("10.1.2.3"))
			n.until("it is told why", func() bool { return n.notices.about("a", c.reason) })
			n.until("it is outside", func() bool { return n.phase("uid-a") == enroll.PhaseLeft })
			if len(n.foreign(s)) == 0 || n.captured(s) {
				t.Errorf("left of theirs: %v, redirected by us: %t", n.foreign(s), n.captured(s))
			}
			if got := inPod(t, s.netns, "ip", "rule"); got != routes || c.istio != strings.Contains(got, "fwmark") {
				t.Errorf("the routes were\n%sand are\n%s", routes, got)
			}
			if slices.Contains(f.Events(), "add uid-a") {
				t.Errorf("the proxy was told %v", f.Events())
			}
			n.world.remove("app", "a")
		})
	}
}

// TestTakeOverThatFails: when Istio's rules cannot be removed, the pod is Istio's again,
// and ours as soon as they can.
func TestTakeOverThatFails(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	find := n.withFinder()
	real, err := exec.LookPath("iptables-legacy-restore")
	nstest.Need(t, err)
	broken := filepath.Join(t.TempDir(), "broken")
	tools := t.TempDir()
	script := "#!/bin/sh\n[ ! -e " + broken + " ] || { echo out of order >&2; exit 1; }\nexec " + real + " \"$@\"\n"
	if err := os.WriteFile(filepath.Join(tools, "iptables-legacy-restore"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", tools+":"+os.Getenv("PATH"))
	n.backend, err = redirect.Named(redirect.NameNFT)
	nstest.Need(t, err)
	n.start()
	f, _ := n.proxy()
	s := n.sandbox("app", "a", "uid-a", "c1")
	n.istioAs(s, redirect.NameLegacy)
	if err := os.WriteFile(broken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	was, routes := n.foreign(s), inPod(t, s.netns, "ip", "rule")
	find.set("uid-a", s)
	n.world.pod("app", "a", "uid-a", marked, address("10.1.2.3"))
	n.until("it is told why", func() bool { return n.notices.about("a", "out of order") })
	n.until("it is outside", func() bool { return n.phase("uid-a") == enroll.PhaseLeft && len(f.Pods()) == 0 })
	n.stop()
	if got := n.foreign(s); !slices.Equal(got, was) || n.captured(s) {
		t.Errorf("left of theirs: %v, redirected by us: %t", got, n.captured(s))
	}
	if got := inPod(t, s.netns, "ip", "rule"); got != routes || !strings.Contains(got, "fwmark") {
		t.Errorf("the routes were\n%sand are\n%s", routes, got)
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.proxy()
	n.until("it is taken over", func() bool {
		return n.phase("uid-a") == enroll.PhaseEnrolled && n.captured(s) && len(n.foreign(s)) == 0
	})
}

// TestRetire: pods leave for good, those without an object too.
func TestRetire(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	n.times.Drain = -1
	n.start()
	f, _ := n.proxy()
	a, b := n.sandbox("app", "a", "uid-a", "c1"), n.sandbox("app", "b", "uid-b", "c2")
	for name, s := range map[string]*sandbox{"a": a, "b": b} {
		n.world.pod("app", name, "uid-"+name)
		n.mustAdd(s)
	}
	n.world.remove("app", "b")
	n.flows.set(5) // connections that do not end
	began := time.Now()
	n.flows.since = func(since time.Time) {
		if since.Before(began) {
			t.Errorf("what was carried %s before the pods left is asked for", began.Sub(since))
		}
	}
	if err := n.e.Retire(within(t), "the mesh leaves this node"); err != nil {
		t.Fatal(err)
	}
	if !n.clean(a) || !n.clean(b) || len(f.Pods()) > 0 {
		t.Errorf("left behind: %v", f.Pods())
	}
}

// inOrder is a backend that counts what is done to pods.
type inOrder struct {
	redirect.Backend
	mu            sync.Mutex
	stopped, gone int
	early         int // pods of which the rules went while others were captured
	all           int
}

func (b *inOrder) StopCapture(ns *netns.NS) error {
	err := b.Backend.StopCapture(ns)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stopped++
	return err
}

func (b *inOrder) Remove(ns *netns.NS) error {
	b.mu.Lock()
	if b.stopped < b.all {
		b.early++
	}
	b.gone++
	b.mu.Unlock()
	return b.Backend.Remove(ns)
}

// TestAllHaveTheirNetworkFirst: when the mesh leaves a node, nothing more is done to any
// pod before each of them has its network back; the agent may be killed in the middle.
// WARREN_LEAVING_PODS says how many there are.
func TestAllHaveTheirNetworkFirst(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	pods := 20
	if many, err := strconv.Atoi(os.Getenv("WARREN_LEAVING_PODS")); err == nil {
		pods = many
	}
	b := &inOrder{Backend: n.backend, all: pods}
	n.config = func(c *enroll.Config) { c.Backend = b }
	n.start()
	n.proxy()
	for i := range pods {
		name := fmt.Sprint("p", i)
		n.world.pod("app", name, "uid-"+name)
		n.mustAdd(n.sandbox("app", name, "uid-"+name, "c-"+name))
	}
	if err := n.e.Retire(within(t), "the mesh leaves this node"); err != nil {
		t.Fatal(err)
	}
	if b.stopped != pods || b.gone != pods || b.early > 0 {
		t.Errorf("of %d pods %d were let and %d done, %d of these too early", pods, b.stopped, b.gone, b.early)
	}
}
