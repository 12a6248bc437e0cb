package redirect_test

import (
	"bytes"
	"errors"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
)

// What Istio's agent puts into a pod with iptables: for IPv4, with DNS capture.
const istioChains = `*mangle
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
COMMIT
*nat
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A OUTPUT -j ISTIO_OUTPUT
-A PREROUTING -j ISTIO_PRERT
-A ISTIO_PRERT -s PROBE -p tcp -m tcp -j ACCEPT
-A ISTIO_OUTPUT -d PROBE -p tcp -m tcp -j ACCEPT
-A ISTIO_PRERT ! -d LOOPBACK -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT ! -o lo -p udp -m mark ! --mark 0x539/0xfff -m udp --dport 53 -j REDIRECT --to-port 15053
-A ISTIO_OUTPUT ! -d LOOPBACK -p tcp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053
-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
-A ISTIO_OUTPUT ! -d LOOPBACK -o lo -j ACCEPT
-A ISTIO_OUTPUT ! -d LOOPBACK -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
COMMIT
*raw
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -p udp -m mark --mark 0x539/0xfff -m udp --dport 53 -j CT --zone 1
-A ISTIO_PRERT -p udp -m mark ! --mark 0x539/0xfff -m udp --sport 53 -j CT --zone 1
COMMIT
`

// And without iptables.
const istioTables = `
table inet istio-ambient-nat {
	chain prerouting { type nat hook prerouting priority -100; policy accept; counter jump istio-prerouting; }
	chain output { type nat hook output priority -100; policy accept; counter jump istio-output; }
	chain istio-prerouting {
		ip saddr 169.254.7.127 meta l4proto tcp counter accept
		ip6 saddr fd16:9254:7127:1337:ffff:ffff:ffff:ffff meta l4proto tcp counter accept
		ip daddr != 127.0.0.1 tcp dport != 15008 meta mark & 0xfff != 0x539 counter redirect to :15006
		ip6 daddr != ::1 tcp dport != 15008 meta mark & 0xfff != 0x539 counter redirect to :15006
	}
	chain istio-output {
		meta l4proto tcp meta mark & 0xfff == 0x111 counter accept
		oifname "lo" ip daddr != 127.0.0.1 counter accept
		oifname "lo" ip6 daddr != ::1 counter accept
		ip daddr != 127.0.0.1 meta l4proto tcp meta mark & 0xfff != 0x539 counter redirect to :15001
		ip6 daddr != ::1 meta l4proto tcp meta mark & 0xfff != 0x539 counter redirect to :15001
	}
}
table inet istio-ambient-mangle {
	chain prerouting { type filter hook prerouting priority -150; policy accept; counter jump istio-prerouting; }
	chain output { type route hook output priority -150; policy accept; counter jump istio-output; }
	chain istio-prerouting { meta mark & 0xfff == 0x539 counter ct mark set ct mark & 0xfffff000 | 0x111; }
	chain istio-output { ct mark & 0xfff == 0x111 counter meta mark set ct mark; }
}
`

const istioRoutes = `
	ip rule add fwmark 0x111/0xfff lookup 100 pref 32764; ip -6 rule add fwmark 0x111/0xfff lookup 100 pref 32764
	ip route add local 0.0.0.0/0 dev lo table 100; ip -6 route add local ::/0 dev lo table 100`

func feed(t *testing.T, ns *netns.NS, input, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &out
	if err := errors.Join(ns.Do(cmd.Start), cmd.Wait()); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, &out)
	}
	return out.String()
}

// programAsIstio makes Istio's rules in one of the forms.
func programAsIstio(t *testing.T, ns *netns.NS, form string) {
	t.Helper()
	feed(t, ns, istioRoutes, "sh", "-e")
	_, variant, iptables := strings.Cut(form, "-")
	if !iptables {
		feed(t, ns, istioTables, "nft", "-f", "-")
		return
	}
	for program, words := range map[string]*strings.Replacer{
		"iptables":  strings.NewReplacer("PROBE", "169.254.7.127", "LOOPBACK", "127.0.0.1/32"),
		"ip6tables": strings.NewReplacer("PROBE", redirect.ProbeIP6().String(), "LOOPBACK", "::1/128"),
	} {
		feed(t, ns, words.Replace(istioChains), program+"-"+variant+"-restore", "--noflush")
	}
}

// istioAsSaved is what is there of Istio's, without order among chains.
func istioAsSaved(t *testing.T, ns *netns.NS) (lines []string) {
	t.Helper()
	var table string
	for _, program := range []string{"iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"} {
		for line := range strings.Lines(feed(t, ns, "", program)) {
			if line[0] == '*' {
				table = program + " " + strings.TrimSpace(line)
			} else if strings.Contains(line, "ISTIO_") {
				lines = append(lines, table+" "+strings.TrimSpace(regexp.MustCompile(`\[\d+:\d+\]`).ReplaceAllString(line, "")))
			}
		}
	}
	for line := range strings.Lines(feed(t, ns, "", "nft", "--stateless", "list", "ruleset")) {
		if strings.HasPrefix(line, "table inet istio-") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	slices.SortStableFunc(lines, func(a, b string) int { // rules of one chain keep their order
		head := func(s string) string { return strings.Join(strings.Fields(s)[:min(4, len(strings.Fields(s)))], " ") }
		return strings.Compare(head(a), head(b))
	})
	return lines
}

// A pod that Istio has redirected is ours afterwards, and Istio's again, and no
// connection notices: those that the proxy carries, those from before either, and
// those that never spoke.
func TestTakeOverAndGiveBack(t *testing.T) {
	forEach(t, func(t *testing.T, b redirect.Backend) {
		for _, form := range []string{redirect.NameNFT, redirect.NameLegacy, redirect.NameNFTables} {
			t.Run("from "+form, func(t *testing.T) {
				s := newStage(t)
				run(t, s.pod.NS, "iptables-nft", "-t", "nat", "-A", "OUTPUT", "-d", "192.0.2.77/32", "-j", "RETURN")
				own := feed(t, s.pod.NS, "", "sh", "-c", "iptables-nft-save 2>/dev/null | grep -- -A; ip rule; ip -6 rule")
				silent := s.outside(12)
				programAsIstio(t, s.pod.NS, form)
				was, istios := mustForeign(t, b, s.pod.NS), istioAsSaved(t, s.pod.NS)
				carried := s.captured()
				c := redirect.Defaults()
				c.DNS = form != redirect.NameNFTables
				speak := func(when string, all []*live) {
					t.Helper()
					for _, l := range all {
						if err := l.exchange(); err != nil {
							t.Errorf("%s: %v", when, err)
						}
					}
				}
				for round := range 2 {
					got, err := redirect.TakeOver(b, s.pod.NS, c)
					if err != nil || got != form {
						t.Fatalf("taken over from %q, %v; want %q", got, err, form)
					}
					if found := mustForeign(t, b, s.pod.NS); len(found) > 0 {
						t.Errorf("taken over, there is still %q", found)
					}
					if diffs, err := b.Verify(s.pod.NS, c); err != nil || len(diffs) > 0 {
						t.Errorf("taken over, it differs: %v, %q", err, diffs)
					}
					speak("taken over", carried)
					speak("taken over", silent[:4+4*round])
					carried = append(carried, s.captured()...)

					if err := redirect.GiveBack(b, s.pod.NS, c, form); err != nil {
						t.Fatal(err)
					}
					if d := cmp.Diff(was, mustForeign(t, b, s.pod.NS)); d != "" {
						t.Errorf("given back, it is not what it was (-want +got):\n%s", d)
					}
					if d := cmp.Diff(istios, istioAsSaved(t, s.pod.NS)); d != "" {
						t.Errorf("given back, Istio would not know its rules again (-want +got):\n%s", d)
					}
					if left := feed(t, s.pod.NS, "", "sh", "-c", "iptables-nft-save; iptables-legacy-save; nft list ruleset"); strings.Contains(left, "WARREN") || strings.Contains(left, "table ip warren") {
						t.Errorf("given back, ours are still there:\n%s", left)
					}
					speak("given back", carried)
					speak("given back", silent[:8+4*round])
					carried = append(carried, s.captured()...)
				}
				if _, err := redirect.TakeOver(b, s.pod.NS, c); err != nil {
					t.Fatal(err)
				}
				if err := b.StopCapture(s.pod.NS); err != nil {
					t.Fatal(err)
				}
				speak("at the end", append(carried, silent...))
				for _, l := range carried {
					if err := l.end(); err != nil {
						t.Error(err)
					}
				}
				if err := b.Remove(s.pod.NS); err != nil {
					t.Fatal(err)
				}
				speak("removed", silent)
				if d := cmp.Diff(own, feed(t, s.pod.NS, "", "sh", "-c", "iptables-nft-save 2>/dev/null | grep -- -A; ip rule; ip -6 rule")); d != "" {
					t.Errorf("the pod's own rules are not what they were:\n%s", d)
				}
			})
		}
	})
}

func mustForeign(t *testing.T, b redirect.Backend, ns *netns.NS) []string {
	t.Helper()
	found, err := b.Foreign(ns)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// What is not of the ambient mode stays as it is.
func TestWhatIsNotTakenOver(t *testing.T) {
	forEach(t, func(t *testing.T, b redirect.Backend) {
		for name, script := range map[string]string{
			"a sidecar's":       "iptables-nft -t nat -N ISTIO_REDIRECT; iptables-nft -t nat -N ISTIO_OUTPUT",
			"a sidecar's table": "nft add table inet istio-proxy-nat",
			"an odd place":      "iptables-nft -N ISTIO_OUTPUT",
			"made twice":        "iptables-nft -t nat -N ISTIO_OUTPUT; iptables-legacy -t nat -N ISTIO_OUTPUT",
		} {
			t.Run(name, func(t *testing.T) {
				pod, _ := nstest.NewNS(t, "pod")
				feed(t, pod, script, "sh", "-e")
				before := feed(t, pod, "", "nft", "list", "ruleset")
				form, err := redirect.TakeOver(b, pod, redirect.Defaults())
				if err == nil || form != "" || name != "made twice" && !errors.Is(err, redirect.ErrNotAmbient) {
					t.Errorf("taken over from %q, %v", form, err)
				}
				if d := cmp.Diff(before, feed(t, pod, "", "nft", "list", "ruleset")); d != "" {
					t.Errorf("refused, it changed:\n%s", d)
				}
			})
		}
		t.Run("nobody's", func(t *testing.T) {
			pod, _ := nstest.NewNS(t, "pod")
			if form, err := redirect.TakeOver(b, pod, redirect.Defaults()); err != nil || form != "" {
				t.Errorf("taken over from %q, %v", form, err)
			}
			if diffs, err := b.Verify(pod, redirect.Defaults()); err != nil || len(diffs) > 0 {
				t.Errorf("%v, %q", err, diffs)
			}
		})
	})
}

// What cannot be taken over is left alone to the end: to remove ours from a pod that
// Istio still serves takes away neither the way of the answers to its proxy nor what
// conntrack knows of the connections that it carries.
func TestRemoveBesideIstio(t *testing.T) {
	forEach(t, func(t *testing.T, b redirect.Backend) {
		s := newStage(t)
		programAsIstio(t, s.pod.NS, redirect.NameNFT)
		carried := s.captured()
		run(t, s.pod.NS, "iptables-legacy", "-t", "nat", "-N", "ISTIO_OUTPUT")
		was := feed(t, s.pod.NS, "", "sh", "-c", "ip rule; ip -6 rule; ip route show table 100; ip -6 route show table 100")
		if form, err := redirect.TakeOver(b, s.pod.NS, redirect.Defaults()); err == nil || form != "" {
			t.Errorf("taken over from %q, %v", form, err)
		}
		if form, err := redirect.Takeable(s.pod.NS); err == nil || form != "" {
			t.Errorf("it can be taken over from %q, %v", form, err)
		}
		if err := b.Remove(s.pod.NS); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(was, feed(t, s.pod.NS, "", "sh", "-c", "ip rule; ip -6 rule; ip route show table 100; ip -6 route show table 100")); d != "" {
			t.Errorf("Istio's routes are not what they were:\n%s", d)
		}
		for _, l := range append(carried, s.captured()...) {
			if err := l.exchange(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
