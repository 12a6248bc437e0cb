package redirect

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	goiptables "github.com/coreos/go-iptables/iptables"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// variants runs a test with each of the host's iptables variants.
func variants(t *testing.T, test func(t *testing.T, b *iptables)) {
	nstest.Require(t)
	for _, name := range []string{NameNFT, NameLegacy} {
		t.Run(name, func(t *testing.T) {
			b, err := Named(name)
			if err != nil {
				t.Fatal(err)
			}
			nstest.LeakCheck(t)
			test(t, b.(*iptables))
		})
	}
}

// backends runs a test with each backend.
func backends(t *testing.T, test func(t *testing.T, b Backend)) {
	variants(t, func(t *testing.T, b *iptables) { test(t, b) })
	t.Run(NameNFTables, func(t *testing.T) {
		b, err := Named(NameNFTables)
		if err != nil {
			t.Fatal(err)
		}
		nstest.LeakCheck(t)
		test(t, b)
	})
}

// sh runs a script in a namespace, with iptables and ip6tables being b's.
func sh(t *testing.T, b Backend, ns *netns.NS, script string) string {
	t.Helper()
	_, variant, _ := strings.Cut(b.Name(), "-")
	if b.Name() == NameNFTables {
		variant = "nft" // it has no programs; these are for the rules of others
	}
	var out strings.Builder
	cmd := exec.Command("sh", "-euc", regexp.MustCompile(`\b(ip6?tables)\b`).ReplaceAllString(script, "$1-"+variant))
	cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE=/proc/self/comm")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := errors.Join(ns.Do(cmd.Start), cmd.Wait()); err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	return out.String()
}

// snapshot is all that may change: rules, without comments, counters and empty
// built-in tables, and routing.
func snapshot(t *testing.T, b Backend, ns *netns.NS) string {
	t.Helper()
	natively := ""
	if b.Name() == NameNFTables {
		natively = "nft --stateless list ruleset 2>/dev/null; "
	}
	text := sh(t, b, ns, natively+`
		iptables-save; echo ---; ip6tables-save; echo ---
		ip -4 rule; ip -6 rule; ip -4 route show table all; ip -6 route show table all`)
	text = regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(text, "")
	text = regexp.MustCompile(`\[\d+:\d+\]`).ReplaceAllString(text, "[]")
	return regexp.MustCompile(`\*\w+\n(:\w+ ACCEPT \[\]\n)*COMMIT\n`).ReplaceAllString(text, "")
}

func apply(t *testing.T, b Backend, ns *netns.NS, c Config) {
	t.Helper()
	if err := b.Apply(ns, c); err != nil {
		t.Fatal(err)
	}
	verify(t, b, ns, c, nil)
}

func verify(t *testing.T, b Backend, ns *netns.NS, c Config, want []string) {
	t.Helper()
	got, err := b.Verify(ns, c)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("Verify (-want +got):\n%s", d)
	}
}

// bystanders are rules of somebody else, which must stay as they are.
const bystanders = `
	iptables -t nat -N THEIRS; iptables -t nat -A THEIRS -p tcp -m comment --comment "not -j ours" -j RETURN
	iptables -t nat -A OUTPUT -d 192.0.2.77/32 -j THEIRS
	iptables -t nat -A PREROUTING -p udp -j ACCEPT
	iptables -A INPUT -p tcp --dport 1 -j DROP
	ip6tables -t mangle -A OUTPUT -p udp -j MARK --set-mark 0x4000/0x4000
	ip rule add fwmark 0x4000/0x4000 lookup 7 pref 7000`

// The scenarios of the golden files, in the kernel: applied, read back by
// iptables itself, applied again, taken away.
func TestScenariosInTheKernel(t *testing.T) {
	backends(t, func(t *testing.T, b Backend) {
		for _, s := range scenarios() {
			t.Run(s.name, func(t *testing.T) {
				pod, _ := nstest.NewNS(t, "pod")
				sh(t, b, pod, bystanders)
				before := snapshot(t, b, pod)

				apply(t, b, pod, s.c)
				if s.name == "default" || s.name == "all" { // the others have no further rules
					alone, _ := nstest.NewNS(t, "alone")
					apply(t, b, alone, s.c)
					readBack(t, b, alone, s.c)
				}
				first := snapshot(t, b, pod)
				apply(t, b, pod, s.c)
				if d := cmp.Diff(first, snapshot(t, b, pod)); d != "" {
					t.Errorf("applied again, it is not the same:\n%s", d)
				}
				for range 2 { // the second has nothing to do
					if err := b.Remove(pod); err != nil {
						t.Fatal(err)
					}
					if d := cmp.Diff(before, snapshot(t, b, pod)); d != "" {
						t.Errorf("Remove left (-before +after):\n%s", d)
					}
				}
			})
		}
	})
}

// readBack asks somebody who knows nothing of how we print and parse.
func readBack(t *testing.T, b Backend, ns *netns.NS, c Config) {
	t.Helper()
	if b, ok := b.(*iptables); ok {
		readBackIPTables(t, b, ns, c)
		return
	}
	compiled(t, ns, c)
}

// compiled asks nft what it thinks of the rules, and what it makes of their
// texts: it must be the same as what we made.
func compiled(t *testing.T, ns *netns.NS, c Config) {
	t.Helper()
	other, _ := nstest.NewNS(t, "compiled")
	b := &native{defaultLimits()}
	for _, f := range c.families() {
		path := filepath.Join(t.TempDir(), "rules")
		if err := os.WriteFile(path, []byte(script(f, baseChains(f, Rules(c)))), 0o600); err != nil {
			t.Fatal(err)
		}
		sh(t, b, other, "nft -f "+path)
	}
	sh(t, b, other, `
		ip rule add fwmark 0x111/0xfff lookup 100 pref 32764; ip -6 rule add fwmark 0x111/0xfff lookup 100 pref 32764
		ip route add local 0.0.0.0/0 dev lo table 100; ip -6 route add local ::/0 dev lo table 100`)
	verify(t, b, other, c, nil)
	const list = "nft --stateless list ruleset"
	if d := cmp.Diff(sh(t, b, other, list), sh(t, b, ns, list)); d != "" {
		t.Errorf("nft makes of the texts (-) another thing than we do (+):\n%s", d)
	}
}

// readBackIPTables asks go-iptables.
func readBackIPTables(t *testing.T, b *iptables, ns *netns.NS, c Config) {
	t.Helper()
	t.Setenv("XTABLES_LOCKFILE", "/proc/self/comm") // rootless, the host's cannot be opened
	protos := map[Family]goiptables.Protocol{IPv4: goiptables.ProtocolIPv4, IPv6: goiptables.ProtocolIPv6}
	err := ns.Do(func() error {
		for _, table := range Rules(c) {
			ipt, err := goiptables.New(goiptables.IPFamily(protos[table.Family]),
				goiptables.Path(strings.TrimSuffix(b.tools[table.Family].save, "-save")))
			if err != nil {
				return err
			}
			for _, own := range ownChains() {
				rules := table.chain(own.name)
				if len(rules) == 0 {
					continue
				}
				listed, err := ipt.List(table.Name, own.name)
				if err != nil {
					return err
				}
				if len(listed)-1 != len(rules) { // the first declares the chain
					t.Errorf("%s %s %s: %d rules, want %d: %q", table.Family, table.Name, own.name, len(listed)-1, len(rules), listed)
				}
				for _, r := range rules {
					if ok, err := ipt.Exists(table.Name, own.name, strings.Fields(r.spec())...); err != nil || !ok {
						t.Errorf("%s %s: iptables does not find %s (%v)", table.Family, table.Name, r.spec(), err)
					}
				}
				jumps, err := ipt.List(table.Name, own.builtin)
				if err != nil {
					return err
				}
				if len(jumps) < 2 || jumps[1] != "-A "+own.builtin+" -j "+own.name {
					t.Errorf("%s %s: %s begins %q, want our jump", table.Family, table.Name, own.builtin, jumps)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Whatever was there before, Apply leads to the same.
func TestFromOneScenarioToAnother(t *testing.T) {
	backends(t, func(t *testing.T, b Backend) {
		pod, _ := nstest.NewNS(t, "pod")
		before := snapshot(t, b, pod)
		all := scenarios()
		fresh := map[string]string{}
		for range 2 { // in both orders
			for _, s := range all {
				apply(t, b, pod, s.c)
				got := snapshot(t, b, pod)
				if want, ok := fresh[s.name]; ok && got != want {
					t.Errorf("%s differs by what was there before:\n%s", s.name, cmp.Diff(want, got))
				}
				fresh[s.name] = got
			}
			slices.Reverse(all)
		}
		if err := b.Remove(pod); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(before, snapshot(t, b, pod)); d != "" {
			t.Errorf("Remove left:\n%s", d)
		}
	})
}

func TestVerifySaysWhatDiffers(t *testing.T) {
	const probe = "-s 169.254.7.127/32 -p tcp -j ACCEPT"
	tests := []struct {
		name, tamper string
		want         []string
		keeps        bool // something that is not ours to take away
	}{
		{"a missing rule", "iptables -t nat -D WARREN_PRERT 1",
			[]string{"ip nat WARREN_PRERT: rule 1 is missing: " + probe}, false},
		{"a rule too many", "iptables -t nat -I WARREN_OUTPUT 2 -p tcp --dport 443 -j RETURN",
			[]string{"ip nat WARREN_OUTPUT: rule 2 should not be there: -p tcp -m tcp --dport 443 -j RETURN"}, false},
		{"another port", "ip6tables -t nat -R WARREN_PRERT 2 -p tcp -j REDIRECT --to-ports 1",
			[]string{
				"ip6 nat WARREN_PRERT: rule 2 should not be there: -p tcp -j REDIRECT --to-ports 1",
				"ip6 nat WARREN_PRERT: rule 2 is missing: ! -d ::1/128 -p tcp -m tcp ! --dport 15008 --tcp-flags FIN,SYN,RST,ACK SYN -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006"}, false},
		{"the order", "iptables -t nat -D WARREN_PRERT 1; iptables -t nat -A WARREN_PRERT " + probe,
			[]string{"ip nat WARREN_PRERT: out of order from rule 1 on, which should be: " + probe}, false},
		{"a rule twice", "iptables -t nat -A WARREN_PRERT " + probe,
			[]string{"ip nat WARREN_PRERT: rule 3 should not be there: " + probe}, false},
		{"no jump", "iptables -t mangle -D OUTPUT 1",
			[]string{"ip mangle OUTPUT: the jump to WARREN_OUTPUT is missing"}, false},
		{"two jumps", "iptables -t mangle -A OUTPUT -j WARREN_OUTPUT",
			[]string{"ip mangle OUTPUT: rule 2 jumps to WARREN_OUTPUT once more"}, false},
		{"a conditional jump", "iptables -t nat -R PREROUTING 1 -p tcp -j WARREN_PRERT",
			[]string{
				"ip nat PREROUTING: rule 1 should not lead to WARREN_PRERT: -p tcp -j WARREN_PRERT",
				"ip nat PREROUTING: the jump to WARREN_PRERT is missing"}, false},
		{"something before the jump", "iptables -t nat -I OUTPUT 1 -p tcp -j ACCEPT",
			[]string{"ip nat OUTPUT: the jump to WARREN_OUTPUT is rule 2; before it stands: -p tcp -j ACCEPT"}, true},
		{"a way in from elsewhere", "iptables -t mangle -A INPUT -g WARREN_OUTPUT",
			[]string{"ip mangle INPUT: rule 1 should not lead to WARREN_OUTPUT: -g WARREN_OUTPUT"}, false},
		{"no chain", "iptables -t mangle -D PREROUTING 1; iptables -t mangle -F WARREN_PRERT; iptables -t mangle -X WARREN_PRERT",
			[]string{"ip mangle WARREN_PRERT: the chain is missing"}, false},
		{"a chain too many", "iptables -t raw -N WARREN_OUTPUT",
			[]string{"ip raw WARREN_OUTPUT: the chain should not be there"}, false},
		{"no routes", "ip rule del pref 32764; ip -6 route flush table 100",
			[]string{
				"ip rule: missing: fwmark 0x111/0xfff lookup 100 pref 32764",
				"ip6 route: missing in table 100: local default dev lo"}, false},
		{"other routes", "ip rule del pref 32764; ip rule add fwmark 0x111 lookup 100 pref 32764; ip route replace blackhole default table 100",
			[]string{
				"ip rule: missing: fwmark 0x111/0xfff lookup 100 pref 32764",
				"ip route: missing in table 100: local default dev lo"}, true},
		{"nothing", "iptables -t nat -F; iptables -t nat -X", []string{
			"ip nat WARREN_PRERT: the chain is missing",
			"ip nat WARREN_OUTPUT: the chain is missing"}, false},
		{"somebody else's business", bystanders, nil, true},
	}
	variants(t, func(t *testing.T, b *iptables) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				pod, _ := nstest.NewNS(t, "pod")
				apply(t, b, pod, Defaults())
				right := snapshot(t, b, pod)
				sh(t, b, pod, tt.tamper)
				verify(t, b, pod, Defaults(), tt.want)
				apply(t, b, pod, Defaults())
				if len(tt.want) > 0 && !tt.keeps {
					if d := cmp.Diff(right, snapshot(t, b, pod)); d != "" {
						t.Errorf("Apply did not mend it:\n%s", d)
					}
				}
			})
		}
	})
}

func TestStopCapture(t *testing.T) {
	backends(t, func(t *testing.T, b Backend) {
		pod, _ := nstest.NewNS(t, "pod")
		before := snapshot(t, b, pod)
		c := with(func(c *Config) { c.DNS = true })
		apply(t, b, pod, c)
		for range 2 {
			if err := b.StopCapture(pod); err != nil {
				t.Fatal(err)
			}
			diffs, err := b.Verify(pod, c)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range diffs {
				if !regexp.MustCompile(`nat.* missing|mangle.*is missing: .*(drop|DROP)$`).MatchString(d) {
					t.Errorf("unexpected: %s", d)
				}
			}
			if rules := sh(t, b, pod, "iptables-save; nft list ruleset"); strings.Contains(rules, "redirect to") || strings.Contains(rules, "REDIRECT") || len(diffs) == 0 {
				t.Errorf("it still captures:\n%s", rules)
			}
		}
		if err := b.Remove(pod); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(before, snapshot(t, b, pod)); d != "" {
			t.Errorf("Remove left:\n%s", d)
		}
	})
}

func TestForeign(t *testing.T) {
	backends(t, func(t *testing.T, b Backend) {
		const istio = "iptables -t nat -N ISTIO_OUTPUT; ip6tables -t mangle -N ISTIO_PRERT"
		want := []string{"ip nat ISTIO_OUTPUT", "ip6 mangle ISTIO_PRERT"}
		for _, name := range []string{NameNFT, NameLegacy} {
			theirs, err := Named(name)
			if err != nil {
				t.Fatal(err)
			}
			pod, _ := nstest.NewNS(t, "pod")
			apply(t, b, pod, Defaults())
			sh(t, theirs, pod, "iptables -t nat -N OTHER; iptables -t filter -A FORWARD -j ACCEPT; ip6tables -t mangle -A OUTPUT -p udp -j ACCEPT")
			if found, err := b.Foreign(pod); err != nil || len(found) != 0 {
				t.Errorf("found %q, %v in a pod of ours", found, err)
			}
			sh(t, theirs, pod, istio)
			if found, err := b.Foreign(pod); err != nil || !slices.Equal(found, want) {
				t.Errorf("made with %s: found %q, %v; want %q", name, found, err, want)
			}
		}
	})
}

func TestWithoutIPv6(t *testing.T) {
	variants(t, func(t *testing.T, b *iptables) {
		node := nstest.New(t).Node("n")
		no6 := &iptables{limits: limits{b.timeout, b.patience, b.turns}, name: b.name, tools: map[Family]tool{IPv4: b.tools[IPv4]}}

		t.Run("disabled in the pod", func(t *testing.T) {
			pod := node.Pod("disabled", nstest.NoIPv6()).NS
			before := snapshot(t, b, pod)
			apply(t, b, pod, Defaults())
			if err := b.Remove(pod); err != nil {
				t.Error(err)
			}
			if d := cmp.Diff(before, snapshot(t, b, pod)); d != "" {
				t.Errorf("Remove left:\n%s", d)
			}
		})
		t.Run("no ip6tables, no address", func(t *testing.T) {
			pod := node.Pod("v4", nstest.NoIPv6()).NS
			apply(t, no6, pod, Defaults())
			if err := no6.Remove(pod); err != nil {
				t.Error(err)
			}
		})
		t.Run("no ip6tables, but an address", func(t *testing.T) {
			pod := node.Pod("v6").NS
			before := snapshot(t, b, pod)
			if err := no6.Apply(pod, Defaults()); !errors.Is(err, ErrNoIP6Tables) {
				t.Errorf("Apply: %v, want %v", err, ErrNoIP6Tables)
			}
			if d := cmp.Diff(before, snapshot(t, b, pod)); d != "" {
				t.Errorf("a refused Apply changed:\n%s", d)
			}
			apply(t, no6, pod, with(func(c *Config) { c.IPv6 = false }))
		})
	})
}

// A runtime may bring the loopback up beside us instead of before.
func TestLoopbackDown(t *testing.T) {
	backends(t, func(t *testing.T, b Backend) {
		ns, _ := nstest.NewNS(t, "lodown")
		sh(t, b, ns, "ip link set lo down")
		c := Defaults()
		apply(t, b, ns, c)
		if diffs, err := b.Verify(ns, c); err != nil || len(diffs) > 0 {
			t.Errorf("%v, %v", diffs, err)
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	backends(t, func(t *testing.T, b Backend) {
		pod, _ := nstest.NewNS(t, "pod")
		var wg sync.WaitGroup
		for _, s := range scenarios()[:4] {
			wg.Go(func() {
				for range 3 {
					if err := b.Apply(pod, s.c); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		apply(t, b, pod, Defaults())
		readBack(t, b, pod, Defaults())
	})
}

// iptables' own lock is held for as long as somebody else on the host likes.
func TestHostLockIsNotOurs(t *testing.T) {
	variants(t, func(t *testing.T, b *iptables) {
		f, err := os.OpenFile("/run/xtables.lock", os.O_RDONLY|os.O_CREATE, 0o600)
		nstest.Need(t, err) // rootless it is not ours to hold
		defer f.Close()
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil { // nobody holds it for long
			t.Fatal(err)
		}
		pod, _ := nstest.NewNS(t, "pod")
		apply(t, b, pod, Defaults())
	})
}

func TestBounds(t *testing.T) {
	nstest.LeakCheck(t)
	pod, _ := nstest.NewNS(t, "pod")
	script := func(body string) tool {
		path := filepath.Join(t.TempDir(), "save")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o700); err != nil {
			t.Fatal(err)
		}
		return tool{path, path}
	}
	const short, long = 100 * time.Millisecond, 10 * time.Second
	tests := []struct {
		name, body, want string
		timeout          time.Duration
	}{
		{"hangs", "exec sleep 60", "deadline exceeded", short},
		{"a child of it hangs", "sleep 60 & exec sleep 60", "deadline exceeded", short},
		{"prints for ever", "exec yes", "too many rules", long},
		{"fails", "echo what is wrong >&2; exit 3", "exit status 3: what is wrong", long},
		{"complains at length", "echo first >&2; yes complaint | head -c 100000 >&2; exit 1", "exit status 1: first", long},
		{"prints nonsense", "echo nonsense", "printed nonsense before any table", long},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := &iptables{limits: limits{tt.timeout, lockPatience, &turns{}}, name: "x", tools: map[Family]tool{IPv4: script(tt.body)}}
			c := with(func(c *Config) { c.IPv6 = false })
			_, errVerify := b.Verify(pod, c)
			for _, err := range []error{errVerify, b.Apply(pod, c), b.Remove(pod), b.StopCapture(pod)} {
				if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), pod.ID().String()) {
					t.Errorf("error %v, want %q and the namespace in it", err, tt.want)
				}
			}
		})
	}
	t.Run("the namespace is locked", func(t *testing.T) {
		own, err := pod.Reopen()
		if err != nil {
			t.Fatal(err)
		}
		defer own.Close()
		if err := unix.Flock(int(own.File().Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		b := &iptables{limits: limits{50 * time.Millisecond, lockPatience, &turns{}}, name: "x"}
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
		b := &iptables{limits: limits{timeout: time.Second, turns: &turns{}}, name: "x"}
		if err := b.Apply(gone, Defaults()); !errors.Is(err, os.ErrClosed) {
			t.Errorf("error %v, want %v", err, os.ErrClosed)
		}
	})
}
