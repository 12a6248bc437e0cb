package redirect

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

// Each golden file is what iptables-restore (or ip6tables-restore) gets for a
// fresh namespace, or what nft would be given for the same; a person can paste it.
func TestGolden(t *testing.T) {
	files := 0
	for _, s := range scenarios() {
		for _, f := range s.c.families() {
			for ext, got := range map[string]string{".rules": transition(f, Rules(s.c), nil), ".nft": script(f, baseChains(f, Rules(s.c)))} {
				golden(t, fmt.Sprintf("%s.v%d%s", s.name, f, ext), got)
				files++
			}
		}
	}
	found, err := filepath.Glob("testdata/*.*")
	if err != nil || len(found) != files {
		t.Errorf("%d golden files for %d scenarios: %v", len(found), files, found)
	}
}

func golden(t *testing.T, name, got string) {
	t.Run(name, func(t *testing.T) {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		golden, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(golden), got); d != "" {
			t.Errorf("rules differ from %s (-want +got; -update writes it):\n%s", path, d)
		}
	})
}

// Tables are put in place one after the other: nothing may be captured before
// the marks work.
func TestNatComesLast(t *testing.T) {
	for _, s := range scenarios() {
		for _, f := range s.c.families() {
			var names []string
			for _, table := range Rules(s.c) {
				if table.Family == f {
					names = append(names, table.Name)
				}
			}
			if names[len(names)-1] != "nat" || names[0] != "mangle" {
				t.Errorf("%s %s: tables in the order %v", s.name, f, names)
			}
		}
	}
}

func TestEveryRuleSaysWhy(t *testing.T) {
	for _, s := range scenarios() {
		for _, table := range Rules(s.c) {
			for _, r := range table.Rules {
				if r.Why == "" || strings.ContainsAny(r.Why, "\n") || !isOwn(r.Chain) || strings.Contains(r.spec(), "unknown") {
					t.Errorf("%s: %s %s: rule %+v", s.name, table.Family, table.Name, r)
				}
			}
		}
	}
}

func TestFamilies(t *testing.T) {
	for _, tt := range []struct {
		c    Config
		want []Family
	}{
		{Config{IPv4: true}, []Family{IPv4}},
		{Config{IPv6: true}, []Family{IPv6}},
		{Config{IPv4: true, IPv6: true}, []Family{IPv4, IPv6}},
	} {
		var got []Family
		for _, table := range Rules(tt.c) {
			if !slices.Contains(got, table.Family) {
				got = append(got, table.Family)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%+v: rules for %v, want %v", tt.c, got, tt.want)
		}
	}
}

func TestValidate(t *testing.T) {
	tests := []struct {
		name string
		c    Config
		want string // in the error; "" is none
	}{
		{"defaults", Defaults(), ""},
		{"interfaces", with(func(c *Config) { c.VirtualInterfaces = []string{"k6t-eth0", "br_0.1", "a"} }), ""},
		{"no family", Config{}, "neither"},
		{"probe of the wrong family", with(func(c *Config) { c.ProbeIP4 = ProbeIP6() }), "fd16:"},
		{"v4 probe for v6", with(func(c *Config) { c.ProbeIP6 = ProbeIP4() }), "169.254.7.127"},
		{"probe with a zone", with(func(c *Config) { c.ProbeIP6 = netip.MustParseAddr("fe80::1%x -j ACCEPT") }), "plain"},
		{"another rule", with(func(c *Config) { c.VirtualInterfaces = []string{"a\n-F"} }), `"a\n-F"`},
		{"another option", with(func(c *Config) { c.VirtualInterfaces = []string{"ok", "a -j ACCEPT"} }), `"a -j ACCEPT"`},
		{"a flag", with(func(c *Config) { c.VirtualInterfaces = []string{"-j"} }), `"-j"`},
		{"a wildcard", with(func(c *Config) { c.VirtualInterfaces = []string{"e+"} }), `"e+"`},
		{"negation", with(func(c *Config) { c.VirtualInterfaces = []string{"!"} }), `"!"`},
		{"empty", with(func(c *Config) { c.VirtualInterfaces = []string{""} }), `""`},
		{"too long", with(func(c *Config) { c.VirtualInterfaces = []string{"abcdefghijklmnop"} }), "abcdefghijklmnop"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.c.Validate()
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q in it", err, tt.want)
			}
		})
	}
}

func FuzzInterfaceNameStaysOneWord(f *testing.F) {
	for _, s := range []string{"eth0", "", "a b", "-x", "a\n*filter", "é", "a\x00b", "a+", "!", `"`, "#"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		c := with(func(c *Config) { c.VirtualInterfaces = []string{name} })
		if c.Validate() != nil {
			return
		}
		plain := with(func(c *Config) { c.VirtualInterfaces = []string{"eth0"} })
		a, b := transition(IPv4, Rules(c), nil), transition(IPv4, Rules(plain), nil)
		if len(strings.Fields(a)) != len(strings.Fields(b)) || strings.Count(a, "\n") != strings.Count(b, "\n") {
			t.Errorf("%q changes the shape of the rules:\n%s", name, a)
		}
	})
}
