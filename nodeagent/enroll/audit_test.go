package enroll_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/internal/nswatch"
	"github.com/warren-mesh/warren/nodeagent/enroll"
	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/xds/translate"
)

// sockets are the proxy's listeners in one pod.
type sockets struct {
	mu   sync.Mutex
	list []net.Listener
	mute bool // it takes connections and does nothing
	wg   sync.WaitGroup
}

func (s *sockets) open(t testing.TB, in *sandbox) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) > 0 {
		return
	}
	for _, port := range []string{"15001", "15006", "15008"} {
		var l net.Listener
		if err := in.netns.Do(func() (err error) { l, err = net.Listen("tcp4", "0.0.0.0:"+port); return err }); err != nil {
			t.Error(err)
			return
		}
		s.list = append(s.list, l)
		s.wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				s.mu.Lock()
				mute := s.mute
				s.mu.Unlock()
				s.wg.Go(func() {
					defer c.Close()
					if mute {
						_, _ = io.Copy(io.Discard, c) // until the other end is tired of it
					}
				})
			}
		})
	}
}

func (s *sockets) set(mute bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mute = mute
}

func (s *sockets) close() {
	s.mu.Lock()
	for _, l := range s.list {
		l.Close()
	}
	s.list = nil
	s.mu.Unlock()
	s.wg.Wait()
}

// withAudit gives the agent eyes, and a pod whose listeners are real.
func (n *node) withAudit() *nswatch.Watcher {
	w, err := nswatch.New()
	if err != nil {
		n.t.Fatal(err)
	}
	n.config = func(c *enroll.Config) { c.Watch, c.SelfProbe = w, true }
	n.start()
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() { defer close(done); _ = w.Run(ctx, n.e.Changed) }()
	n.t.Cleanup(func() { n.stop(); cancel(); <-done })
	return w
}

func (n *node) proof(uid string) enroll.Proof {
	for _, r := range n.e.Report() {
		if r.UID == uid {
			return r.Proof
		}
	}
	return ""
}

// TestAudit: what is taken away from a pod comes back, and what cannot is told.
func TestAudit(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	n.times.Inspect = 1 << 40 // nothing is found by taking turns
	w := n.withAudit()
	f, _ := n.proxy()
	s := n.sandbox("app", "a", "uid-a", "c1")
	inPod(t, s.netns, "ip", "link", "set", "lo", "up")
	var socks sockets
	t.Cleanup(func() { n.stop(); socks.close(); w.Close() }) // before the namespace goes
	f.OnAdd(func(context.Context, string, zds.Info) error { socks.open(t, s); return nil })
	n.world.pod("app", "a", "uid-a")
	n.mustAdd(s)
	n.until("it is proven", func() bool { return n.proof("uid-a") == enroll.ProofWhole })

	if err := n.backend.StopCapture(s.netns); err != nil {
		t.Fatal(err)
	}
	n.until("the rules are back", func() bool { return n.captured(s) })
	inPod(t, s.netns, "ip", "rule", "del", "pref", "32764")
	n.until("the routing rule is back", func() bool { return n.captured(s) })
	inPod(t, s.netns, "iptables", "-t", "nat", "-I", "OUTPUT", "-j", "ACCEPT") // before ours
	n.until("the jump is the first again", func() bool { return n.captured(s) })

	socks.close()
	n.until("the listeners are back", func() bool {
		missing := slices.ContainsFunc(n.e.Report(), func(r enroll.Report) bool { return r.Proof != enroll.ProofWhole })
		socks.mu.Lock()
		defer socks.mu.Unlock()
		return len(socks.list) == 3 && !missing
	})
}

// TestAuditOfDNS: a pod whose DNS goes to a port on which nobody listens is not well, and
// loses nothing to that; it is when somebody does.
func TestAuditOfDNS(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	w := n.withAudit()
	f, _ := n.proxy()
	s := n.sandbox("app", "a", "uid-a", "c1")
	inPod(t, s.netns, "ip", "link", "set", "lo", "up")
	var socks sockets
	t.Cleanup(func() { n.stop(); socks.close(); w.Close() })
	f.OnAdd(func(context.Context, string, zds.Info) error { socks.open(t, s); return nil })
	n.world.pod("app", "a", "uid-a", func(p *corev1.Pod) {
		p.Annotations = map[string]string{translate.AnnotationDNSCapture: "true"}
	})
	n.mustAdd(s)
	n.until("it is told", func() bool {
		r := n.report("uid-a")
		return r.Proof == enroll.ProofListeners && strings.Contains(r.Flaw, "15053")
	})
	n.sweeps()
	if events := f.Events(); slices.Contains(events, "del uid-a") {
		t.Errorf("the proxy was told %v", events)
	}
	var dns net.Listener
	if err := s.netns.Do(func() (err error) { dns, err = net.Listen("tcp4", "127.0.0.1:15053"); return err }); err != nil {
		t.Fatal(err)
	}
	defer dns.Close()
	n.until("it is proven", func() bool { return n.proof("uid-a") == enroll.ProofWhole })
}

// TestAuditOfLegacy: the kernel tells nobody of changes there, and no pod's turn comes.
func TestAuditOfLegacy(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	n.times.Inspect = 1 << 40
	b, err := redirect.Named(redirect.NameLegacy)
	nstest.Need(t, err)
	n.backend = b
	w := n.withAudit()
	n.proxy()
	var pods []*sandbox
	socks := make([]sockets, 5)
	for i := range socks {
		name := fmt.Sprint("p", i)
		s := n.sandbox("app", name, "uid-"+name, "c"+name)
		inPod(t, s.netns, "ip", "link", "set", "lo", "up")
		socks[i].open(t, s)
		n.world.pod("app", name, "uid-"+name)
		n.mustAdd(s)
		pods = append(pods, s)
	}
	t.Cleanup(func() { // before the namespaces go
		n.stop()
		for i := range socks {
			socks[i].close()
		}
		w.Close()
	})
	for round := range 2 {
		for i, s := range pods {
			n.until("it was looked at", func() bool { return n.proof(fmt.Sprint("uid-p", i)) == enroll.ProofWhole && n.captured(s) })
			inPod(t, s.netns, "iptables-legacy", "-t", "nat", "-F")
		}
		for _, s := range pods {
			n.until(fmt.Sprintf("the rules are back, the %d. time", round+1), func() bool { return n.captured(s) })
		}
	}
}

// TestAddressIsPublishedLate: the object says a pod's new address after the kernel has
// told of it, and kubelet's probes reach it then, and no address that the pod has lost.
func TestAddressIsPublishedLate(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	n.times.Inspect = 1 << 40
	probed := &probes{of: map[string][]netip.Addr{}}
	n.config = func(c *enroll.Config) { c.Probes = probed }
	n.start()
	n.proxy()
	s := n.sandbox("app", "a", "uid-a", "c1")
	inPod(t, s.netns, "ip", "link", "set", "lo", "up")
	inPod(t, s.netns, "ip", "addr", "add", "10.1.2.3/32", "dev", "lo")
	n.world.pod("app", "a", "uid-a", address("10.1.2.3"))
	n.mustAdd(s)
	n.until("it is probed", func() bool {
		return fmt.Sprint(probed.ips("uid-a")) == "[10.1.2.3]" && n.proof("uid-a") == enroll.ProofWhole
	})
	inPod(t, s.netns, "ip", "addr", "add", "10.1.2.4/32", "dev", "lo")
	inPod(t, s.netns, "ip", "addr", "del", "10.1.2.3/32", "dev", "lo")
	n.world.pod("app", "a", "uid-a", address("10.1.2.4"))
	n.until("it is probed there", func() bool { return fmt.Sprint(probed.ips("uid-a")) == "[10.1.2.4]" })
	n.world.pod("app", "a", "uid-a", address("10.1.2.4"), address("10.1.2.77"))
	const lie = "addresses that it does not have: [10.1.2.77]"
	n.until("it is told what the object says", func() bool { return n.notices.about("a", lie) })
	if w := n.report("uid-a").Warnings; len(w) != 1 || !strings.Contains(w[0], lie) {
		t.Errorf("warnings %q", w)
	}
}

// probes are what the host lets kubelet's probes through to.
type probes struct {
	mu sync.Mutex
	of map[string][]netip.Addr // by UID
}

func (p *probes) Add(_ context.Context, uid string, ips []netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.of[uid] = ips
	return nil
}

func (p *probes) Del(ctx context.Context, uid string) error { return p.Add(ctx, uid, nil) }

func (p *probes) ips(uid string) []netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.of[uid]
}

// TestSilentProxy: it listens and does not answer.
func TestSilentProxy(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	n.times.Inspect = 1 << 40 // what is not right is looked at all the same
	w := n.withAudit()
	f, _ := n.proxy()
	s := n.sandbox("app", "a", "uid-a", "c1")
	inPod(t, s.netns, "ip", "link", "set", "lo", "up")
	var socks sockets
	t.Cleanup(func() { n.stop(); socks.close(); w.Close() }) // before the namespace goes
	socks.set(true)
	f.OnAdd(func(context.Context, string, zds.Info) error { socks.open(t, s); return nil })
	n.world.pod("app", "a", "uid-a")
	n.mustAdd(s)
	n.until("it is told", func() bool { return n.proof("uid-a") == enroll.ProofSilent })
	socks.set(false)
	n.until("it is proven", func() bool { return n.proof("uid-a") == enroll.ProofWhole })
}

// TestTwoSandboxes: the audit follows a pod into its next namespace, and forgets one
// that has gone.
func TestAuditFollows(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	n.times.Inspect = 1 << 40
	w := n.withAudit()
	n.proxy()
	n.world.pod("app", "a", "uid-a")
	older, newer := n.sandbox("app", "a", "uid-a", "c1"), n.sandbox("app", "a", "uid-a", "c2")
	t.Cleanup(func() { n.stop(); w.Close() })
	for _, s := range []*sandbox{older, newer} {
		n.mustAdd(s)
		n.until("it is looked at", func() bool { p := n.proof("uid-a"); return p != enroll.ProofNone && p != "" })
		if err := n.backend.StopCapture(s.netns); err != nil {
			t.Fatal(err)
		}
		n.until("the rules are back", func() bool { return n.captured(s) })
	}
	n.world.pod("app", "a", "uid-a", func(p *corev1.Pod) { p.Labels = map[string]string{"istio.io/dataplane-mode": "none"} })
	n.until("it has left", func() bool { return n.phase("uid-a") == enroll.PhaseLeft })
	if n.proof("uid-a") != "" || !n.clean(newer) {
		t.Errorf("proof %q of a pod outside", n.proof("uid-a"))
	}
	if strings.Contains(n.reason("uid-a"), "rules") {
		t.Error(n.reason("uid-a"))
	}
}

// TestTeardownIsQuiet: a sandbox that the runtime takes away, its loopback first, is no
// drift to warn of; one whose loopback only went down is mended.
func TestTeardownIsQuiet(t *testing.T) {
	nstest.LeakCheck(t)
	n := newNode(t)
	n.times.Inspect = 1 << 40
	w := n.withAudit()
	n.proxy()
	boxes := map[string]*sandbox{}
	for _, name := range []string{"a", "b", "c"} {
		boxes[name] = n.sandbox("app", name, "uid-"+name, "c-"+name)
		inPod(t, boxes[name].netns, "ip", "link", "set", "lo", "up")
	}
	t.Cleanup(func() { n.stop(); w.Close() }) // before the namespaces go
	begin := func(name string, edit ...func(*corev1.Pod)) *sandbox {
		n.world.pod("app", name, "uid-"+name, edit...)
		n.mustAdd(boxes[name])
		n.until("it is looked at", func() bool { p := n.proof("uid-" + name); return p != enroll.ProofNone && p != "" })
		return boxes[name]
	}
	a := begin("a")
	inPod(t, a.netns, "ip", "link", "set", "lo", "down")
	n.until("it is seen", func() bool { return n.proof("uid-a") == enroll.ProofRules })
	if err := n.client.Del(within(t), a.key, "uid-a"); err != nil {
		t.Fatal(err)
	}
	if n.log.has("rules were not right") {
		t.Error("warned of a sandbox that was taken away")
	}
	b := begin("b")
	inPod(t, b.netns, "ip", "link", "set", "lo", "down")
	n.until("the rules are back", func() bool { return n.proof("uid-b") != enroll.ProofRules && n.captured(b) })
	if !n.log.has("rules were not right", "pod=app/b") {
		t.Error("not told of it")
	}
	// Of one that is being deleted nobody needs to be told.
	c := begin("c", func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} })
	if err := n.backend.StopCapture(c.netns); err != nil {
		t.Fatal(err)
	}
	n.until("the rules are back", func() bool { return n.captured(c) })
	if n.log.has("rules were not right", "pod=app/c") {
		t.Error("warned of a pod that goes")
	}
}
