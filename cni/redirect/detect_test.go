package redirect

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/warren-mesh/warren/internal/nstest"
)

// pathWith makes a PATH that has only these programs: name to target.
func pathWith(t *testing.T, programs map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, target := range programs {
		real, err := exec.LookPath(target)
		if err == nil {
			real, err = filepath.EvalSymlinks(real)
		}
		if err != nil {
			t.Fatal(err)
		}
		// A script and not a link: the real program looks at its name.
		script := "#!/bin/sh\nexec " + real + " " + target + ` "$@"` + "\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
}

// programs maps the save and restore of v4 and v6 from one spelling to another.
func programs(as, are string) map[string]string {
	m := map[string]string{}
	for _, p := range []string{"iptables", "ip6tables"} {
		for _, verb := range []string{"-save", "-restore"} {
			m[p+as+verb] = p + are + verb
		}
	}
	return m
}

func without(m map[string]string, names ...string) map[string]string {
	for _, n := range names {
		delete(m, n)
	}
	return m
}

func TestDetectByWhatIsInstalled(t *testing.T) {
	nstest.LeakCheck(t)
	tests := []struct {
		name     string
		programs map[string]string
		want     string // with iptables; "" is ErrNoIPTables
		families []Family
	}{
		{"nothing", nil, "", nil},
		{"nft", programs("-nft", "-nft"), NameNFT, []Family{IPv4, IPv6}},
		{"legacy", programs("-legacy", "-legacy"), NameLegacy, []Family{IPv4, IPv6}},
		{"plain, being nft", programs("", "-nft"), NameNFT, []Family{IPv4, IPv6}},
		{"plain, being legacy", programs("", "-legacy"), NameLegacy, []Family{IPv4, IPv6}},
		{"no ip6tables", without(programs("-nft", "-nft"), "ip6tables-nft-save", "ip6tables-nft-restore"), NameNFT, []Family{IPv4}},
		{"no restore", without(programs("-nft", "-nft"), "iptables-nft-restore"), "", nil},
		{"plain v6 of the other variant", map[string]string{
			"iptables-nft-save": "iptables-nft-save", "iptables-nft-restore": "iptables-nft-restore",
			"ip6tables-save": "ip6tables-legacy-save", "ip6tables-restore": "ip6tables-legacy-restore",
		}, NameNFT, []Family{IPv4}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pathWith(t, tt.programs)
			b, err := Detect()
			if tt.want == "" {
				if err != nil || b.Name() != NameNFTables {
					t.Errorf("Detect = %v, %v; want %s", b, err, NameNFTables)
				}
				if b, err := DetectIPTables(); !errors.Is(err, ErrNoIPTables) {
					t.Errorf("DetectIPTables = %v, %v; want %v", b, err, ErrNoIPTables)
				}
				if _, err := Named(NameNFT); !errors.Is(err, ErrNoIPTables) {
					t.Errorf("Named: %v, want %v", err, ErrNoIPTables)
				}
				return
			}
			if err != nil || b.Name() != tt.want {
				t.Fatalf("Detect = %v, %v; want %s", b, err, tt.want)
			}
			for _, f := range []Family{IPv4, IPv6} {
				if _, ok := b.(*iptables).tools[f]; ok != slices.Contains(tt.families, f) {
					t.Errorf("%s: programs found %v", f, ok)
				}
			}
			if again, err := Named(tt.want); err != nil || again.Name() != tt.want {
				t.Errorf("Named(%s) = %v, %v", tt.want, again, err)
			}
		})
	}
	t.Run("an unknown name", func(t *testing.T) {
		if _, err := Named("ebtables"); err == nil || !strings.Contains(err.Error(), "ebtables") {
			t.Errorf("error %v", err)
		}
	})
}

// The host has both variants: the one that its own rules are in is taken.
func TestDetectByTheHostsRules(t *testing.T) {
	variants(t, func(t *testing.T, b *iptables) {
		tests := []struct{ name, ours, others, want string }{
			{"only there", "iptables -A INPUT -j ACCEPT", "", b.name},
			{"only there, IPv6", "ip6tables -t mangle -A INPUT -j ACCEPT", "", b.name},
			{"more there", "iptables -A INPUT -j ACCEPT; iptables -A INPUT -j DROP", "iptables -A INPUT -j ACCEPT", b.name},
			{"only chains there", "iptables -N X", "iptables -A INPUT -j ACCEPT", b.other.name},
			{"nowhere", "", "", NameNFT},
		}
		if b.turns != b.other.turns {
			t.Error("the two variants do not wait for each other")
		}
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				host, _ := nstest.NewNS(t, "host")
				sh(t, b, host, tt.ours)
				sh(t, b.other, host, tt.others)
				var got Backend
				if err := host.Do(func() (err error) { got, err = Detect(); return err }); err != nil {
					t.Fatal(err)
				}
				if got.Name() != tt.want {
					t.Errorf("Detect = %s, want %s", got.Name(), tt.want)
				}
			})
		}
	})
}

func BenchmarkApply(b *testing.B) {
	nstest.Require(b)
	for _, name := range []string{NameNFT, NameLegacy, NameNFTables} {
		b.Run(name, func(b *testing.B) {
			backend, err := Named(name)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				b.StopTimer()
				ns, _ := nstest.NewNS(b, "pod")
				b.StartTimer()
				if err := backend.Apply(ns, Defaults()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	for _, name := range []string{NameNFT, NameLegacy, NameNFTables} {
		b.Run(name, func(b *testing.B) {
			ns, _ := nstest.NewNS(b, "pod")
			backend, err := Named(name)
			if err != nil {
				b.Fatal(err)
			}
			if err := backend.Apply(ns, Defaults()); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if diffs, err := backend.Verify(ns, Defaults()); err != nil || len(diffs) > 0 {
					b.Fatal(diffs, err)
				}
			}
		})
	}
}
