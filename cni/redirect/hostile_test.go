package redirect

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
)

// Rules that a pod may have written, to be read as something else.
const (
	commentWithARule = `
		iptables -t nat -A OUTPUT -m comment --comment "x
-A OUTPUT --modprobe /x -j WARREN_OUTPUT
:WARREN_PRERT - [0:0]
*mangle
-A OUTPUT -j WARREN_OUTPUT" -j ACCEPT`
	jumpsWithConditions = `
		iptables -t nat -N PODS
		iptables -t nat -A PODS -p udp -j WARREN_OUTPUT
		iptables -t nat -A PODS -p tcp -j ACCEPT
		iptables -t nat -A PODS -j WARREN_OUTPUT
		iptables -t nat -A PODS -p tcp -m comment --comment "a \" b" -g WARREN_PRERT
		iptables -t nat -A PODS -j WARREN_OUTPUT
		iptables -t nat -A PODS -p udp -j RETURN`
)

// What a pod wrote into its rules must not come back to it, or to us, through
// the document that iptables-restore gets: that program runs as the host's root.
func TestNoTextOfThePodInTheDocument(t *testing.T) {
	variants(t, func(t *testing.T, b *iptables) {
		pod, _ := nstest.NewNS(t, "pod")
		apply(t, b, pod, Defaults())
		sh(t, b, pod, commentWithARule)
		sh(t, b, pod, jumpsWithConditions)
		have, err := parseSave(sh(t, b, pod, "iptables-save"))
		if err != nil {
			t.Fatal(err)
		}
		var clear document
		for _, name := range tableNames() {
			clear.clear(have.table(name))
		}
		for _, doc := range []string{clear.String(), transition(IPv4, Rules(Defaults()), have)} {
			for line := range strings.Lines(doc) {
				words := strings.Fields(line)
				if words[0] == "-D" && !slices.Contains([]string{
					"-D PREROUTING -j WARREN_PRERT", "-D OUTPUT -j WARREN_OUTPUT", "-D PODS -j WARREN_OUTPUT",
					"-D PODS 1", "-D PODS 4"}, strings.TrimSpace(line)) {
					t.Errorf("the document has %q", line)
				}
			}
			if strings.Contains(doc, "modprobe") {
				t.Errorf("the pod's words are in the document:\n%s", doc)
			}
		}
		apply(t, b, pod, Defaults())
		if err := b.Remove(pod); err != nil {
			t.Fatal(err)
		}
		left := snapshot(t, b, pod)
		for _, want := range []string{"-A PODS -p tcp -j ACCEPT\n-A PODS -p udp -j RETURN\n", "-m comment --comment \"x\n"} {
			if !strings.Contains(left, want) {
				t.Errorf("a rule of the pod's own is gone, want %q in:\n%s", want, left)
			}
		}
		if after, err := parseSave(sh(t, b, pod, "iptables-save")); err != nil || after.table("nat").hasOwn() || after.table("mangle").hasOwn() {
			t.Errorf("%v, Remove left:\n%s", err, left)
		}
	})
}

func TestOddChainsStayOutOfTheDocument(t *testing.T) {
	for _, name := range []string{"--modprobe=/x", "-F", "", "a;b", "a\tb", "a*b", "a/b", "é"} {
		var d document
		d.unjump(table{"nat", []chain{{name, []string{"-j WARREN_OUTPUT", "-p tcp -j WARREN_OUTPUT"}}}}, ownChains(), ownChains())
		if d.Len() > 0 {
			t.Errorf("of a chain named %q: %q", name, d.String())
		}
	}
}

// holdLock takes the lock on the namespace as a process in it can that has no
// privilege at all, until the test ends.
func holdLock(t *testing.T, ns *netns.NS) {
	t.Helper()
	cmd := exec.Command("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs",
		"flock", "--exclusive", "/proc/self/ns/net", "sh", "-c", "echo held; exec cat")
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "held\n" {
		t.Fatalf("%q, %v", line, err)
	}
}

// Any process in the pod can lock the pod's namespace.
func TestThePodHoldsOurLock(t *testing.T) {
	backends(t, func(t *testing.T, b Backend) {
		pod, _ := nstest.NewNS(t, "pod")
		before := snapshot(t, b, pod)
		t.Cleanup(func() { // after the lock is released
			if d := cmp.Diff(before, snapshot(t, b, pod)); d != "" {
				t.Errorf("Remove left:\n%s", d)
			}
		})
		holdLock(t, pod)
		switch b := b.(type) {
		case *iptables:
			b.patience = 50 * time.Millisecond
		case *native:
			b.patience = 50 * time.Millisecond
		}
		apply(t, b, pod, Defaults())
		if err := b.Remove(pod); err != nil {
			t.Error(err)
		}
	})
}

// Callers in one process wait for each other also where the lock is not theirs.
func TestTurns(t *testing.T) {
	var turns turns
	id, other := netns.ID{Dev: 1, Ino: 1}, netns.ID{Dev: 1, Ino: 2}
	done, err := turns.take(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if end, err := turns.take(t.Context(), other); err != nil {
		t.Error(err)
	} else {
		end()
	}
	second := make(chan func())
	go func() {
		end, err := turns.take(t.Context(), id)
		if err != nil {
			t.Error(err)
		}
		second <- end
	}()
	select {
	case <-second:
		t.Error("two at once")
	case <-time.After(20 * time.Millisecond):
		done()
		(<-second)()
	}
	if len(turns.taken) != 0 {
		t.Errorf("%d turns are still taken", len(turns.taken))
	}
}

// The rules that are read are the pod's to choose, up to maxOutput of them.
func TestManyRulesAreReadInTime(t *testing.T) {
	const n = 90_000
	var text strings.Builder
	text.WriteString("*nat\n")
	for i := range n {
		fmt.Fprintf(&text, ":c%d - [0:0]\n", i)
	}
	for i := range n {
		fmt.Fprintf(&text, "-A c%d -j WARREN_OUTPUT\n", n-1-i)
	}
	if text.Len() > maxOutput {
		t.Fatalf("%d bytes would not be read", text.Len())
	}
	start := time.Now()
	have, err := parseSave(text.String())
	if err != nil {
		t.Fatal(err)
	}
	diffs := cutDiffs(diffRules(IPv4, Rules(Defaults()), have))
	if took := time.Since(start); took > OpTimeout { // linear, it takes a twentieth of a second
		t.Errorf("took %s", took)
	}
	if len(diffs) > maxDiffs+1 {
		t.Errorf("%d differences", len(diffs))
	}
}

// Verify's texts are for logs and terminals.
func TestShown(t *testing.T) {
	long := strings.Repeat("x", 10*maxShown)
	tests := []struct{ text, want string }{
		{"-p tcp -j ACCEPT", "-p tcp -j ACCEPT"},
		{"a\x1b[2Jb", `"a\x1b[2Jb"`},
		{"a\nb", `"a\nb"`},
		{"right-to-left \u202e", `"right-to-left \u202e"`},
		{"\xff", "?"},
		{long, long[:maxShown] + "…"},
	}
	for _, tt := range tests {
		if got := shown(tt.text); got != tt.want {
			t.Errorf("shown(%q) = %q, want %q", tt.text, got, tt.want)
		}
	}
}

func TestVerifyShowsNoControlCharacters(t *testing.T) {
	variants(t, func(t *testing.T, b *iptables) {
		pod, _ := nstest.NewNS(t, "pod")
		apply(t, b, pod, Defaults())
		sh(t, b, pod, `
			iptables -t nat -A WARREN_OUTPUT -m comment --comment "$(printf '\033[2J')" -j ACCEPT
			iptables -t nat -I OUTPUT 1 -m comment --comment "$(printf 'a\nb')" -j ACCEPT`)
		verify(t, b, pod, Defaults(), []string{
			`ip nat OUTPUT: the jump to WARREN_OUTPUT is rule 2; before it stands: "-m comment --comment \"a\nb\" -j ACCEPT"`,
			`ip nat WARREN_OUTPUT: rule 5 should not be there: "-m comment --comment \"\x1b[2J\" -j ACCEPT"`,
		})
	})
}

// A table that iptables cannot read is not an empty one.
func TestTableThatIPTablesCannotRead(t *testing.T) {
	nstest.Require(t)
	_, err := exec.LookPath("nft")
	nstest.Need(t, err)
	b, err := Named(NameNFT)
	if err != nil {
		t.Fatal(err)
	}
	pod, _ := nstest.NewNS(t, "pod")
	apply(t, b, pod, Defaults())
	sh(t, b.(*iptables), pod, "nft add rule ip nat OUTPUT meta mark set jhash ip saddr mod 7")
	_, errVerify := b.Verify(pod, Defaults())
	for _, err := range []error{errVerify, b.Apply(pod, Defaults()), b.StopCapture(pod), b.Remove(pod)} {
		if err == nil || !strings.Contains(err.Error(), "what iptables cannot read") {
			t.Errorf("error %v", err)
		}
	}
}

// Istio's agent can do without iptables, which then sees nothing of it.
func TestForeignTables(t *testing.T) {
	backends(t, func(t *testing.T, b Backend) {
		_, err := exec.LookPath("nft")
		nstest.Need(t, err)
		pod, _ := nstest.NewNS(t, "pod")
		sh(t, b, pod, "nft add table inet istio-ambient-nat; nft add table ip6 istio-ambient-raw; nft add table inet own")
		got, err := b.Foreign(pod)
		want := []string{"nftables inet istio-ambient-nat", "nftables ip6 istio-ambient-raw"}
		slices.Sort(got)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("found %q, %v; want %q", got, err, want)
		}
	})
}

func TestBrokenAttributes(t *testing.T) {
	for _, msg := range []string{"", "abc", "\xff\xff\x01\x00", "\x00\x00\x01\x00", "\x05\x00\x02\x00x"} {
		if name := attributeString([]byte(msg), 1); name != "" {
			t.Errorf("%q names %q", msg, name)
		}
	}
}

// A table changes at once or not at all.
func TestATableIsAtomic(t *testing.T) {
	variants(t, func(t *testing.T, b *iptables) {
		pod, _ := nstest.NewNS(t, "pod")
		apply(t, b, pod, Defaults())
		before := snapshot(t, b, pod)
		broken := Rules(Defaults())
		nat := slices.IndexFunc(broken, func(t Table) bool { return t.Name == "nat" && t.Family == IPv4 })
		broken[nat] = Rules(with(func(c *Config) { c.VirtualInterfaces = []string{"vm0"} }))[nat]
		broken[nat].Rules = append(broken[nat].Rules, Rule{Chain: ChainOutput, Why: "refused", Action: Action{}})
		err := b.session(pod, "apply", func(ctx context.Context, s *session) error { _, err := s.apply(ctx, IPv4, broken); return err })
		if err == nil || !strings.Contains(err.Error(), "unknown-verb") {
			t.Errorf("error %v", err)
		}
		if d := cmp.Diff(before, snapshot(t, b, pod)); d != "" {
			t.Errorf("a table was changed in part:\n%s", d)
		}
	})
}

// Another of us, without the lock, changes the rules back each time.
func TestApplyLooksAgainWithoutTheLock(t *testing.T) {
	pod, _ := nstest.NewNS(t, "pod")
	dir := t.TempDir()
	script := func(name, body string) string {
		path := dir + "/" + name
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	runs := dir + "/runs"
	never := tool{script("save", "exit 0"), script("restore", "echo x >>"+runs)}
	b := &iptables{limits: limits{OpTimeout, 10 * time.Millisecond, &turns{}}, name: "x", tools: map[Family]tool{IPv4: never}}
	own, err := pod.Reopen()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if err := unix.Flock(int(own.File().Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	err = b.Apply(pod, with(func(c *Config) { c.IPv6 = false }))
	text, _ := os.ReadFile(runs)
	if err == nil || !strings.Contains(err.Error(), "changed again") || string(text) != "x\nx\nx\n" {
		t.Errorf("error %v after %q", err, text)
	}
}
