package enroll

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/internal/netns"
)

func testRecord(key event.Key) record {
	return record{
		Version: recordVersion, Key: key, Network: "net", Source: SourcePlugin, PodUID: "u", PodNamespace: "app", PodName: "a",
		ServiceAccount: "sa", IPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("fd00::1/64")},
		Netns: "/run/netns/x", NetnsID: netns.ID{Dev: 4, Ino: 7}, BootID: "b", Phase: PhaseEnrolled,
		Redirect: &event.Redirect{IPv6: true, VirtualInterfaces: []string{"tap0"}, Backend: "iptables-nft"}, Reason: "r", Added: time.Unix(1, 2).UTC(),
	}
}

func TestStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "attachments")
	s, err := openStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	keys := []event.Key{
		{ContainerID: "c1", IfName: "eth0"}, {ContainerID: "c1", IfName: "net 1"}, {ContainerID: "../../etc/x", IfName: "eth0"},
		{ContainerID: strings.Repeat("c", 253), IfName: "eth0"}, {ContainerID: ".hidden", IfName: "e/0"}, {},
	}
	for _, k := range keys {
		for range 2 {
			if err := s.put(testRecord(k)); err != nil {
				t.Errorf("%+v: %v", k, err)
			}
		}
	}
	got, damaged, err := s.all()
	if err != nil || len(damaged) > 0 || len(got) != len(keys) {
		t.Fatalf("%d records, %v, %v", len(got), damaged, err)
	}
	for _, r := range got {
		if diff := cmp.Diff(testRecord(r.Key), r, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" {
			t.Error(diff)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "c1-eth0.json")); err != nil {
		t.Error(err)
	}
	for _, k := range keys {
		for range 2 {
			if err := s.remove(k); err != nil {
				t.Error(err)
			}
		}
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestStoreOfDamagedFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "attachments")
	s, err := openStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	good := testRecord(event.Key{ContainerID: "c1", IfName: "eth0"})
	if err := s.put(good); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "c1-eth0.json"))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"empty-eth0.json":   "",
		"cut-eth0.json":     string(text[:len(text)/2]),
		"other-eth0.json":   string(text), // another's
		"future-eth0.json":  `{"version": 2}`,
		"long-eth0.json":    strings.Repeat(" ", maxRecord+1),
		".c1-eth0.json.tmp": "half",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if s, err = openStore(dir); err != nil {
		t.Fatal(err)
	}
	got, damaged, err := s.all()
	if err != nil || len(got) != 1 || len(damaged) != 5 {
		t.Errorf("%d records, %d damaged, %v", len(got), len(damaged), err)
	}
	left, _ := os.ReadDir(dir)
	if len(left) != 2 || left[0].Name() != "c1-eth0.json" || left[1].Name() != "future-eth0.json" {
		t.Errorf("left: %v", left)
	}
}
