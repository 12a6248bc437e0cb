package probe_test

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/nodeagent/probe"
)

// What the self-test finds on nodes that are in order and on some that are not,
// and that it leaves nothing behind.
func TestSelfTest(t *testing.T) {
	const masquerade = `add table ip m; add chain ip m p { type nat hook postrouting priority 10; };
		add rule ip m p ip daddr != 192.0.2.0/24 masquerade`
	for _, tt := range []struct {
		name    string
		nft     string                                     // on the host
		pod     func(t *testing.T, pod *nstest.Pod)        // in the pod
		standIn bool                                       // there is no pod to try
		addrs   func(pod *nstest.Pod) (addrs []netip.Addr) // that are tried
		want    []string                                   // findings that say so
		words   []string                                   // in them
	}{
		{name: "in order, a stand-in", standIn: true},
		{name: "in order, a pod"},
		{name: "masquerade before", nft: masquerade, addrs: v4, want: []string{probe.FoundSource}, words: []string{"arrived from 10.99.1.1", "chain p of table m, priority 10"}},
		{name: "masquerade before, a stand-in", nft: masquerade, standIn: true, addrs: v4, want: []string{probe.FoundSource}},
		{
			name: "masquerade before, pod in the mesh", nft: masquerade, addrs: v4, pod: redirected,
			want: []string{probe.FoundSource}, words: []string{"the pod's own rules took it"},
		},
		{
			name: "answers to the source are dropped", addrs: v4, want: []string{probe.FoundNoAnswer}, words: []string{"169.254.7.127", "NetworkPolicy"},
			nft: `add table ip d; add chain ip d p { type filter hook prerouting priority -310; }; add rule ip d p ip daddr 169.254.7.127 drop`,
		},
		{
			name: "the same with Cilium's interface", addrs: v4, want: []string{probe.FoundNoAnswer}, words: []string{"bpf.hostLegacyRouting=true"},
			nft: `add table ip d; add chain ip d p { type filter hook prerouting priority -310; }; add rule ip d p ip daddr 169.254.7.127 drop`,
			pod: func(t *testing.T, pod *nstest.Pod) {
				output(t, pod.Node.NS, "ip", "link", "add", "cilium_host", "type", "bridge")
			},
		},
		{
			name: "nothing reaches the pod", addrs: v4, want: []string{probe.FoundUnreachable}, words: []string{"whatever its source"},
			nft: `add table ip d; add chain ip d p { type filter hook postrouting priority 300; }; add rule ip d p ip daddr 10.99.1.2 drop`,
		},
		{
			name: "strict rp_filter in the pod", addrs: v4, want: []string{probe.FoundRPFilter}, words: []string{"strict on eth0", "through other"},
			pod: func(t *testing.T, pod *nstest.Pod) {
				output(t, pod.NS, "ip", "link", "add", "other", "type", "bridge")
				output(t, pod.NS, "ip", "link", "set", "other", "up")
				output(t, pod.NS, "ip", "route", "add", "169.254.0.0/16", "dev", "other")
				write(t, pod.NS, "/proc/sys/net/ipv4/conf/eth0/rp_filter", "1")
			},
		},
	} {
		all := backends()
		if strings.HasSuffix(tt.nft, " drop") { // what is waited for in vain is so with each
			all = []string{"nftables"}
		}
		for _, backend := range all {
			t.Run(tt.name+"/"+backend, func(t *testing.T) {
				nstest.LeakCheck(t)
				node := nstest.New(t).Node("a")
				pod := node.Pod("in")
				if tt.nft != "" {
					output(t, node.NS, "nft", tt.nft)
				}
				if tt.pod != nil {
					tt.pod(t, pod)
				}
				p := newProbe(t, node, backend, probe.WholeHost)
				defer p.Close()
				if err := p.Sync(ctx(t), map[string][]netip.Addr{"uid": {netip.MustParseAddr("10.1.2.3")}}); err != nil {
					t.Fatal(err)
				}
				before := ruleset(t, node.NS) + output(t, node.NS, "ip", "route") + output(t, node.NS, "ip", "-br", "link")
				var targets []probe.Target
				if !tt.standIn {
					targets = []probe.Target{{Name: "shop/cart-0", NS: pod.NS, Addrs: []netip.Addr{pod.IP4, pod.IP6}}}
					if tt.addrs != nil {
						targets[0].Addrs = tt.addrs(pod)
					}
				}
				began := time.Now()
				found := p.SelfTest(ctx(t), targets...)
				t.Logf("took %v", time.Since(began))
				var names []string
				text := ""
				for _, f := range found {
					if f.What == "" || f.Fix == "" {
						t.Errorf("%s has no words", f.Name)
					}
					names = append(names, f.Name)
					text += f.String() + "\n"
				}
				t.Log(text)
				if d := cmp.Diff(tt.want, names); d != "" {
					t.Errorf("findings (-want +got):\n%s", d)
				}
				for _, w := range tt.words {
					if !strings.Contains(text, w) {
						t.Errorf("the findings lack %q", w)
					}
				}
				after := ruleset(t, node.NS) + output(t, node.NS, "ip", "route") + output(t, node.NS, "ip", "-br", "link")
				if d := cmp.Diff(before, after); d != "" {
					t.Errorf("the self-test left (-before +after):\n%s", d)
				}
			})
		}
	}
}

func v4(pod *nstest.Pod) []netip.Addr { return []netip.Addr{pod.IP4} }

// redirected makes the pod one in the mesh: what is not from the probes' source
// goes to port 15006, where the proxy listens.
func redirected(t *testing.T, pod *nstest.Pod) {
	b, err := redirect.Detect()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Apply(pod.NS, redirect.Defaults()); err != nil {
		t.Fatal(err)
	}
	l, err := pod.Listen("tcp", ":15006")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

func write(t *testing.T, ns *netns.NS, path, value string) {
	t.Helper()
	if err := ns.Do(func() error { return os.WriteFile(path, []byte(value), 0) }); err != nil {
		t.Fatal(err)
	}
}

// Whoever else is let through is named.
func TestSelfTestLimit(t *testing.T) {
	node := nstest.New(t).Node("a")
	p := newProbe(t, node, "nftables", probe.OnlyKubelet)
	defer p.Close()
	found := p.SelfTest(ctx(t))
	if len(found) != 1 || found[0].Name != probe.FoundWide || found[0].Broken || !strings.Contains(found[0].What, "any process of the host's network (no kubelet was found") {
		t.Errorf("%v", found)
	}
}
