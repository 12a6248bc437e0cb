package redirect

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/nstest"
)

func natively(t *testing.T) *native {
	t.Helper()
	nstest.Require(t)
	nstest.LeakCheck(t)
	b, err := Named(NameNFTables)
	if err != nil {
		t.Fatal(err)
	}
	return b.(*native)
}

func TestVerifySaysWhatDiffersInNFTables(t *testing.T) {
	const (
		probe   = "ip saddr == 169.254.7.127/32 meta l4proto == tcp accept"
		inbound = "ip daddr != 127.0.0.1/32 meta l4proto == tcp tcp dport != 15008 tcp flags & (fin | syn | rst | ack) == syn meta mark & 0xfff != 0x539 redirect to :15006"
	)
	tests := []struct {
		name, tamper string
		want         []string // prefixes
	}{
		{"missing rules", "nft flush chain ip warren nat-prerouting", []string{
			"ip warren nat-prerouting: rule 1 is missing: " + probe,
			"ip warren nat-prerouting: rule 2 is missing: " + inbound}},
		{"a rule too many", "nft insert rule ip warren nat-output tcp dport 443 accept", []string{
			"ip warren nat-output: rule 1 should not be there: meta(into=00000001 key=00000010) cmp("}},
		{"a rule twice", "nft add rule ip warren nat-prerouting " + probe, []string{
			"ip warren nat-prerouting: rule 3 should not be there: "}},
		{"the order", "nft flush chain ip warren nat-prerouting; nft add rule ip warren nat-prerouting '" + inbound + "'; nft add rule ip warren nat-prerouting " + probe, []string{
			"ip warren nat-prerouting: out of order from rule 1 on, which should be: " + probe}},
		{"another port", "nft flush chain ip6 warren nat-output; nft add rule ip6 warren nat-output meta l4proto tcp redirect to :1", []string{
			"ip6 warren nat-output: rule 1 should not be there: ",
			"ip6 warren nat-output: rule 1 is missing: ", "ip6 warren nat-output: rule 2 is missing: ",
			"ip6 warren nat-output: rule 3 is missing: ", "ip6 warren nat-output: rule 4 is missing: "}},
		// The library's reader does not know this expression: to it the rule is ours.
		{"a condition that is never true", "nft flush chain ip warren nat-prerouting; nft add rule ip warren nat-prerouting " + probe + "; " +
			"nft add rule ip warren nat-prerouting osf name '\"none\"' '" + inbound + "'", []string{
			"ip warren nat-prerouting: rule 2 should not be there: osf(",
			"ip warren nat-prerouting: rule 2 is missing: " + inbound}},
		{"now and then", "nft flush chain ip warren nat-prerouting; nft add rule ip warren nat-prerouting " + probe + "; " +
			"nft add rule ip warren nat-prerouting numgen random mod 2 == 0 '" + inbound + "'", []string{
			"ip warren nat-prerouting: rule 2 should not be there: numgen(",
			"ip warren nat-prerouting: rule 2 is missing: " + inbound}},
		{"asleep", "nft add table ip warren '{ flags dormant; }'", []string{"ip warren: the table is dormant"}},
		{"no chain", "nft flush chain ip warren nat-output; nft delete chain ip warren nat-output", []string{
			"ip warren nat-output: the chain is missing"}},
		{"a chain too many", "nft add chain ip warren more", []string{"ip warren more: the chain should not be there"}},
		{"elsewhere", "nft flush chain ip warren nat-output; nft delete chain ip warren nat-output; " +
			"nft add chain ip warren nat-output '{ type nat hook postrouting priority 100; }'", []string{
			"ip warren nat-output: the chain should be of type nat hook output priority -101; policy accept, and is nat hook postrouting priority 100; policy accept",
			"ip warren nat-output: rule 1 is missing", "ip warren nat-output: rule 2 is missing",
			"ip warren nat-output: rule 3 is missing", "ip warren nat-output: rule 4 is missing"}},
		{"on no hook", "nft flush chain ip warren mangle-output; nft delete chain ip warren mangle-output; nft add chain ip warren mangle-output", []string{
			"ip warren mangle-output: the chain should be of type route hook output priority -151; policy accept, and is on no hook",
			"ip warren mangle-output: rule 1 is missing", "ip warren mangle-output: rule 2 is missing", "ip warren mangle-output: rule 3 is missing"}},
		{"another policy", "nft add chain ip warren mangle-output '{ policy drop; }'", []string{
			"ip warren mangle-output: the chain should be of type route hook output priority -151; policy accept, and is route hook output priority -151; policy drop"}},
		{"no table", "nft delete table ip6 warren", []string{"ip6 warren: the table is missing"}},
		{"no routes", "ip rule del pref 32764; ip -6 route flush table 100", []string{
			"ip rule: missing: fwmark 0x111/0xfff lookup 100 pref 32764",
			"ip6 route: missing in table 100: local default dev lo"}},
		{"somebody else's business", bystanders + "; nft add table inet theirs; nft add chain inet theirs c '{ type nat hook output priority -100; }'", nil},
	}
	b := natively(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pod, _ := nstest.NewNS(t, "pod")
			apply(t, b, pod, Defaults())
			right := snapshot(t, b, pod)
			sh(t, b, pod, tt.tamper)
			got, err := b.Verify(pod, Defaults())
			if err != nil {
				t.Fatal(err)
			}
			same := func(want, got string) bool { return strings.HasPrefix(got, want) }
			if len(got) != len(tt.want) || !cmp.Equal(tt.want, got, cmp.Comparer(func(a, b string) bool { return same(a, b) || same(b, a) })) {
				t.Errorf("Verify (-want +got):\n%s", cmp.Diff(tt.want, got))
			}
			apply(t, b, pod, Defaults())
			if len(tt.want) > 0 {
				if d := cmp.Diff(right, snapshot(t, b, pod)); d != "" {
					t.Errorf("Apply did not mend it:\n%s", d)
				}
			}
		})
	}
}

// All tables of both families change at once or not at all.
func TestNFTablesChangeAtOnce(t *testing.T) {
	b := natively(t)
	pod, _ := nstest.NewNS(t, "pod")
	apply(t, b, pod, Defaults())
	before := snapshot(t, b, pod)
	broken := Rules(with(func(c *Config) { c.VirtualInterfaces = []string{"vm0"} }))
	last := &broken[len(broken)-1]
	// The kernel refuses it, after everything else: nat sets no zones.
	last.Rules = append(last.Rules, Rule{Chain: ChainOutput, Why: "refused", Match: Match{Proto: "icmp"}, Action: Action{Verb: Track}})
	err := b.work(pod, "apply", func(ctx context.Context, s *nativeSession) error {
		_, err := s.apply(ctx, broken)
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "nftables") {
		t.Errorf("error %v", err)
	}
	if d := cmp.Diff(before, snapshot(t, b, pod)); d != "" {
		t.Errorf("it was changed in part:\n%s", d)
	}
	unknown := Rules(Defaults())
	unknown[0].Rules[0].Action = Action{}
	err = b.work(pod, "apply", func(ctx context.Context, s *nativeSession) error {
		_, err := s.apply(ctx, unknown)
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "unknown-verb") {
		t.Errorf("error %v", err)
	}
}

// A pod can fill our table; what is there is read up to a bound, and goes whole.
func TestTooManyNFTablesRules(t *testing.T) {
	b := natively(t)
	pod, _ := nstest.NewNS(t, "pod")
	apply(t, b, pod, Defaults())
	path := filepath.Join(t.TempDir(), "many")
	if err := os.WriteFile(path, []byte("table ip warren {\nchain nat-output {\n"+strings.Repeat("ip daddr 10.0.0.1 tcp dport 1-10 accept\n", 30_000)+"}\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sh(t, b, pod, "nft -f "+path)
	if _, err := b.Verify(pod, Defaults()); err == nil || !strings.Contains(err.Error(), "too many rules") {
		t.Errorf("error %v", err)
	}
	if err := b.Remove(pod); err != nil {
		t.Error(err)
	}
	if left := sh(t, b, pod, "nft list ruleset"); left != "" {
		t.Errorf("Remove left:\n%.1000s", left)
	}
	apply(t, b, pod, Defaults())
}

func TestNFTablesBounds(t *testing.T) {
	nstest.LeakCheck(t)
	pod, _ := nstest.NewNS(t, "pod")
	t.Run("the namespace is locked", func(t *testing.T) {
		own, err := pod.Reopen()
		if err != nil {
			t.Fatal(err)
		}
		defer own.Close()
		if err := unix.Flock(int(own.File().Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		b := &native{limits{50 * time.Millisecond, lockPatience, &turns{}}}
		if err := b.Apply(pod, Defaults()); err == nil || !strings.Contains(err.Error(), "another process is at work") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("the namespace is gone", func(t *testing.T) {
		gone, err := pod.Dup()
		if err != nil {
			t.Fatal(err)
		}
		gone.Close()
		b := &native{limits{time.Second, 0, &turns{}}}
		if err := b.Apply(gone, Defaults()); !errors.Is(err, os.ErrClosed) {
			t.Errorf("error %v, want %v", err, os.ErrClosed)
		}
	})
}

// What we send and what the kernel prints of it differ in attributes and flags
// that say nothing; all others count.
func TestDescribe(t *testing.T) {
	sent := func(e ...expr.Any) string {
		list, err := marshalled(IPv4, e)
		if err != nil {
			t.Fatal(err)
		}
		return describe(list)
	}
	redirect := &expr.Redir{RegisterProtoMin: 1}
	for name, same := range map[string]*expr.Redir{
		"the other end of the range": {RegisterProtoMin: 1, RegisterProtoMax: 1},
		"that there is a port":       {RegisterProtoMin: 1, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED},
	} {
		if a, b := sent(redirect), sent(same); a != b {
			t.Errorf("%s: %s and %s", name, a, b)
		}
	}
	for name, e := range map[string][]expr.Any{
		"another range":  {&expr.Redir{RegisterProtoMin: 1, RegisterProtoMax: 2}},
		"a random port":  {&expr.Redir{RegisterProtoMin: 1, Flags: unix.NF_NAT_RANGE_PROTO_RANDOM}},
		"not that":       {compare(true, []byte{1})},
		"that":           {compare(false, []byte{1})},
		"another's load": {&expr.Ct{Key: expr.CtKeyMARK, Register: 1}},
		"a store":        {&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true}},
		"drop":           {&expr.Verdict{Kind: expr.VerdictDrop}},
		"accept":         {&expr.Verdict{Kind: expr.VerdictAccept}},
		"return":         {&expr.Verdict{Kind: expr.VerdictReturn}},
		"jump":           {&expr.Verdict{Kind: expr.VerdictJump, Chain: "a"}},
		"jump elsewhere": {&expr.Verdict{Kind: expr.VerdictJump, Chain: "b"}},
		"nothing":        nil,
	} {
		for other, o := range map[string][]expr.Any{"ours": {redirect}, "twice": append(e[:len(e):len(e)], e...)} {
			if len(e) > 0 && sent(e...) == sent(o...) {
				t.Errorf("%s and %s are both %s", name, other, sent(e...))
			}
		}
	}
	if describe([]byte{1, 2, 3}) != "" {
		t.Error("broken attributes are described")
	}
}

func FuzzDescribe(f *testing.F) {
	for _, r := range Rules(Defaults())[0].Rules {
		exprs, err := r.exprs(IPv4)
		if err != nil {
			f.Fatal(err)
		}
		list, err := marshalled(IPv4, exprs)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(list)
	}
	f.Fuzz(func(t *testing.T, list []byte) {
		if text := describe(list); len(text) > 20*len(list)+100 {
			t.Errorf("%d bytes are described by %d", len(list), len(text))
		}
		leads(list, "x")
		readTuple(list)
		chainHeads(IPv4, list)
		chainHeads(IPv6, list)
	})
}
