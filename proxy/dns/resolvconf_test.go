package dns

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestParseResolv(t *testing.T) {
	at := func(texts ...string) (out []netip.AddrPort) {
		for _, t := range texts {
			out = append(out, netip.AddrPortFrom(netip.MustParseAddr(t), 53))
		}
		return out
	}
	for _, tt := range []struct {
		name, text string
		want       Resolv
		fails      bool
	}{
		{"Kubernetes", "nameserver 10.96.0.10\nsearch app.svc.cluster.local svc.cluster.local cluster.local.\noptions ndots:5\n",
			Resolv{at("10.96.0.10"), []string{"app.svc.cluster.local", "svc.cluster.local", "cluster.local"}, nil}, false},
		{"four", "nameserver 10.0.0.1\nnameserver fd00::1\nnameserver ::ffff:10.0.0.3\nnameserver 10.0.0.4\n", Resolv{at("10.0.0.1", "fd00::1", "10.0.0.3"), nil, nil}, false},
		{"the last search counts", "search A.Example\nsearch B.Example\nnameserver 10.0.0.1\n", Resolv{at("10.0.0.1"), []string{"b.example"}, nil}, false},
		{"a comment", "# nothing\n", Resolv{at("127.0.0.1"), nil, nil}, false},
		{"empty", "", Resolv{at("127.0.0.1"), nil, nil}, false},
		{"one that is no address", "nameserver dns.example\nnameserver 10.0.0.1\nsearch a\n", Resolv{at("10.0.0.1"), []string{"a"}, []string{"dns.example"}}, false},
		{"no address", "nameserver dns.example\n", Resolv{}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseResolv([]byte(tt.text))
			opts := []cmp.Option{cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateEmpty()}
			if d := cmp.Diff(tt.want, got, opts...); (err != nil) != tt.fails || d != "" {
				t.Errorf("%v (-want +got):\n%s", err, d)
			}
		})
	}
}

func TestResolvFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	f, err := OpenResolv(path)
	if err == nil || len(f.Servers()) > 0 {
		t.Errorf("a file that is not there: %v", err)
	}
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	if empty, err := OpenResolv(path); err != nil || len(empty.Servers()) != 1 || empty.Servers()[0].String() != "127.0.0.1:53" {
		t.Errorf("an empty one: %v", err)
	}
	write("nameserver 10.0.0.1\nsearch example.com")
	f.read = f.read.Add(-2 * rereadAfter)
	server := func() string { return f.Servers()[0].String() }
	if got := server(); got != "10.0.0.1:53" {
		t.Errorf("%s once the file is there", got)
	}
	write("nameserver 10.0.0.2")
	if got := server(); got != "10.0.0.1:53" {
		t.Errorf("%s before its time", got)
	}
	f.read = f.read.Add(-2 * rereadAfter)
	if got := server(); got != "10.0.0.2:53" {
		t.Errorf("%s after it", got)
	}
	f.read = f.read.Add(-2 * rereadAfter)
	write("nameserver nonsense")
	if got := server(); got != "10.0.0.2:53" {
		t.Errorf("%s when the file is bad", got)
	}
}
