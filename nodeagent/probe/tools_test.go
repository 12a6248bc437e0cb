package probe_test

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/nodeagent/probe"
)

// path makes the PATH a folder with the named programs of the host's only.
func path(t *testing.T, programs ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, p := range programs {
		at, err := exec.LookPath(p)
		if err == nil {
			err = os.Symlink(at, filepath.Join(dir, p))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	return dir
}

// Without ip6tables, or with one that does not work, IPv4 works.
func TestWithoutIP6Tables(t *testing.T) {
	for _, broken := range []bool{false, true} {
		t.Run(map[bool]string{false: "missing", true: "broken"}[broken], func(t *testing.T) { withoutIP6Tables(t, broken) })
	}
}

func withoutIP6Tables(t *testing.T, broken bool) {
	nft, ipset := look(t, "nft"), look(t, "ipset")
	node := nstest.New(t).Node("a")
	pod := node.Pod("in")
	host, a := start(t, node.NS, "dial", "anything", 0, ""), listen(t, pod, pod.IP4)
	dir := path(t, "iptables-nft", "iptables-nft-restore")
	word := "there is no ip6tables on the PATH"
	if broken {
		word = "ip6tables does not work here"
		for _, p := range []string{"ip6tables-nft", "ip6tables-nft-restore"} {
			if err := os.WriteFile(filepath.Join(dir, p), []byte("#!/bin/sh\nexit 3\n"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	p := newProbe(t, node, redirect.NameNFT, probe.WholeHost)
	defer p.Close()
	err := p.Sync(ctx(t), map[string][]netip.Addr{"uid-1": {pod.IP6, pod.IP4}})
	if err == nil || !strings.Contains(err.Error(), "pod uid-1: address "+pod.IP6.String()+": "+word) {
		t.Errorf("%v", err)
	}
	host.dial(t, a.at)
	if from := a.from(t); from != redirect.ProbeIP4() {
		t.Errorf("the connection came from %s\n%s%s", from, output(t, node.NS, nft, "list", "ruleset"), output(t, node.NS, ipset, "list"))
	}
	found := p.SelfTest(ctx(t))
	if len(found) != 1 || found[0].Name != probe.FoundNoIP6Tables || !strings.Contains(found[0].What, word) {
		t.Errorf("found %v", found)
	}
	if err := p.Remove(ctx(t)); err != nil {
		t.Error(err)
	}
}

func look(t *testing.T, program string) string {
	t.Helper()
	at, err := exec.LookPath(program)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// Without iptables it is nftables; asked for by name, it is missed by name.
func TestWithoutIPTables(t *testing.T) {
	node := nstest.New(t).Node("a")
	path(t)
	p, err := probe.New(probe.Config{NS: node.NS})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if got := p.State().Backend; got != "nftables" {
		t.Errorf("backend %s", got)
	}
	for _, name := range []string{"iptables", redirect.NameNFT, redirect.NameLegacy} {
		if _, err := probe.New(probe.Config{Backend: name, NS: node.NS}); err == nil || !strings.Contains(err.Error(), "no") || !strings.Contains(err.Error(), "iptables") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
