package redirect

import (
	"net"
	"strings"
	"testing"

	"github.com/warren-mesh/warren/internal/nstest"
)

// TestLegacyDigest: it changes with each change of the tables, also with one that leaves
// them as large as they were, and not with traffic.
func TestLegacyDigest(t *testing.T) {
	nstest.Require(t)
	b, err := Named(NameLegacy)
	nstest.Need(t, err)
	nstest.LeakCheck(t)
	ns, _ := nstest.NewNS(t, "pod")
	sh(t, b, ns, "ip link set lo up")
	digest := func() uint64 {
		d, err := LegacyDigest(ns)
		if err != nil || d == 0 {
			t.Fatal(d, err)
		}
		return d
	}
	seen := map[uint64]string{digest(): "nothing"}
	for _, change := range []string{
		"iptables -t nat -A OUTPUT -p tcp --dport 81 -j ACCEPT", "iptables -t nat -R OUTPUT 1 -p tcp --dport 82 -j ACCEPT",
		"ip6tables -t mangle -N X", "ip6tables -t mangle -A X -j ACCEPT", "ip6tables -t mangle -F X",
	} {
		sh(t, b, ns, change)
		d := digest()
		if was, ok := seen[d]; ok && change != "ip6tables -t mangle -F X" {
			t.Errorf("after %q it is as after %q", change, was)
		}
		seen[d] = change
	}
	sh(t, b, ns, "iptables -t mangle -A OUTPUT -d 127.0.0.0/8 -j ACCEPT")
	before := digest()
	err = ns.Do(func() error {
		c, err := net.Dial("udp", "127.0.0.1:9")
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("x")) // nobody is there; the rule has counted it
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if counted := sh(t, b, ns, "iptables -t mangle -L OUTPUT -v -n -x"); strings.Contains(counted, " 0        0 ACCEPT") {
		t.Fatalf("nothing was counted:\n%s", counted)
	}
	if after := digest(); after != before {
		t.Error("traffic changes it")
	}
}

func BenchmarkLegacyDigest(b *testing.B) {
	nstest.Require(b)
	backend, err := Named(NameLegacy)
	nstest.Need(b, err)
	ns, _ := nstest.NewNS(b, "pod")
	if err := backend.Apply(ns, Defaults()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := LegacyDigest(ns); err != nil {
			b.Fatal(err)
		}
	}
}
