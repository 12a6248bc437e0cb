package translate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	apinetworking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// autoEntry is an entry of a DNS host, a minute younger for each age.
func autoEntry(age int, name string, hosts ...string) *networkingv1.ServiceEntry {
	se := &networkingv1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: name, CreationTimestamp: metav1.NewTime(time.Date(2026, 1, 1, 0, age, 0, 0, time.UTC))}}
	se.Spec.Hosts, se.Spec.Resolution = hosts, apinetworking.ServiceEntry_DNS
	return se
}

func says(se *networkingv1.ServiceEntry, hostAndAddress ...string) *networkingv1.ServiceEntry {
	for i := 0; i < len(hostAndAddress); i += 2 {
		se.Status.Addresses = append(se.Status.Addresses, &apinetworking.ServiceEntryAddress{Host: hostAndAddress[i], Value: hostAndAddress[i+1]})
	}
	return se
}

// apply writes allocations where the control plane does.
func apply(t *testing.T, list []Allocation) {
	t.Helper()
	for _, a := range list {
		a.Entry.Status.Addresses = nil
		for _, h := range a.Addresses {
			says(a.Entry, h.Host, h.Address.String())
		}
	}
}

func allocate(t *testing.T, entries ...*networkingv1.ServiceEntry) []Allocation {
	t.Helper()
	out, problems := Allocate(entries)
	if len(problems) > 0 {
		t.Errorf("problems %v", problems)
	}
	return out
}

// unique fails when two hosts have one address, or one is not in the blocks.
func unique(t *testing.T, entries ...*networkingv1.ServiceEntry) {
	t.Helper()
	owners := map[string]string{}
	for _, se := range entries {
		for _, a := range se.Status.GetAddresses() {
			ip := netip.MustParseAddr(a.GetValue())
			if !autoV4.Contains(ip) && !autoV6.Contains(ip) || ip == autoV4.Addr() || ip == netip.MustParseAddr("240.240.255.255") {
				t.Errorf("%s has %s", se.Name, ip)
			}
			if before := owners[a.GetValue()]; before != "" {
				t.Errorf("%s is %s's and %s's", ip, before, se.Name)
			}
			owners[a.GetValue()] = se.Name
		}
	}
}

// Every host is given one address of each family, once, and keeps them.
func TestAllocate(t *testing.T) {
	var entries []*networkingv1.ServiceEntry
	for i := range 500 {
		entries = append(entries, autoEntry(i, fmt.Sprintf("e%d", i), fmt.Sprintf("a%d.example", i), fmt.Sprintf("b%d.example", i)))
	}
	apply(t, allocate(t, entries...))
	unique(t, entries...)
	for _, se := range entries {
		if len(se.Status.GetAddresses()) != 4 {
			t.Fatalf("%s: %v", se.Name, se.Status.GetAddresses())
		}
	}
	if again := allocate(t, entries...); len(again) > 0 {
		t.Errorf("%d are given others", len(again))
	}
	// Some go and others come: who stays keeps his.
	gone := map[string]bool{}
	for _, se := range entries[:100] {
		for _, a := range se.Status.GetAddresses() {
			gone[a.GetValue()] = true
		}
	}
	late := autoEntry(1000, "late", "late.example")
	entries = append(entries[100:], late)
	slices.Reverse(entries)
	if more := allocate(t, entries...); len(more) != 1 || more[0].Entry != late {
		t.Errorf("%d are given others", len(more))
	}
	// Who comes again gets his own, if nobody else has it; and who is new nobody's that
	// has just gone, which clients may remember.
	apply(t, allocate(t, entries...))
	for _, a := range late.Status.GetAddresses() {
		if gone[a.GetValue()] {
			t.Errorf("%s was another's a moment ago", a.GetValue())
		}
	}
	before := late.Status.GetAddresses()[0].GetValue()
	late.Status.Addresses = nil
	apply(t, allocate(t, entries...))
	if now := late.Status.GetAddresses()[0].GetValue(); now != before {
		t.Errorf("%s, before it was gone %s", now, before)
	}
}

func TestAllocateWho(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*networkingv1.ServiceEntry)
		hosts  int // that are given addresses
	}{
		"as it is":      {func(*networkingv1.ServiceEntry) {}, 1},
		"static":        {func(se *networkingv1.ServiceEntry) { se.Spec.Resolution = apinetworking.ServiceEntry_STATIC }, 1},
		"no resolution": {func(se *networkingv1.ServiceEntry) { se.Spec.Resolution = apinetworking.ServiceEntry_NONE }, 0},
		"own address":   {func(se *networkingv1.ServiceEntry) { se.Spec.Addresses = []string{"192.0.2.1"} }, 0},
		"switched off":  {func(se *networkingv1.ServiceEntry) { se.Labels = map[string]string{labelAutoAllocate: "False"} }, 0},
		"switched on":   {func(se *networkingv1.ServiceEntry) { se.Labels = map[string]string{labelAutoAllocate: "true"} }, 1},
		"wildcard":      {func(se *networkingv1.ServiceEntry) { se.Spec.Hosts = []string{"*.example"} }, 0},
		"wildcard, dyn.": {func(se *networkingv1.ServiceEntry) {
			se.Spec.Hosts, se.Spec.Resolution = []string{"*.example"}, apinetworking.ServiceEntry_DYNAMIC_DNS
		}, 1},
		"being deleted": {func(se *networkingv1.ServiceEntry) { se.DeletionTimestamp = &se.CreationTimestamp }, 0},
		"bad host":      {func(se *networkingv1.ServiceEntry) { se.Spec.Hosts = []string{"-", "fine.example", "FINE.example."} }, 1},
		"too many":      {func(se *networkingv1.ServiceEntry) { *se = *entryWith(maxHosts+1, 1, 0) }, 0},
		"no hosts":      {func(se *networkingv1.ServiceEntry) { se.Spec.Hosts = nil }, 0},
	} {
		se := autoEntry(0, "e", "a.example")
		c.change(se)
		n := 0
		for _, a := range allocate(t, se) {
			n += len(a.Addresses)
		}
		if n != 2*c.hosts {
			t.Errorf("%s: %d addresses, want two for each of %d hosts", name, n, c.hosts)
		}
	}
}

// What is said stays, whatever others write into their specs, and what two say is the older one's.
func TestAllocateKeeps(t *testing.T) {
	se := says(autoEntry(5, "kept", "a.example"), "a.example", "240.240.0.9", "a.example", "2001:2::9")
	old := says(autoEntry(1, "old", "b.example"), "b.example", "240.240.0.9", "b.example", "2001:2::8")
	elsewhere := says(autoEntry(2, "elsewhere", "c.example"), "c.example", "10.9.9.9", "c.example", "2001:2::7", "gone.example", "240.240.0.7")
	spec := autoEntry(9, "spec", "d.example")
	spec.Spec.Addresses = []string{"2001:2::7", "240.240.0.0/30"}
	low := says(autoEntry(3, "low", "e.example"), "e.example", "240.240.0.3", "e.example", "2001:2::5")
	off := says(autoEntry(4, "off", "f.example"), "f.example", "240.240.0.44")
	off.Labels = map[string]string{labelAutoAllocate: "false"}
	taken := says(autoEntry(8, "taken", "g.example"), "g.example", "240.240.0.44", "g.example", "2001:2::44")
	junk := says(autoEntry(6, "junk", "h.example"), "h.example", "junk", "h.example", "0.0.0.0", "h.example", "2001:2::66", "h.example", "2001:2::67")
	all := []*networkingv1.ServiceEntry{se, old, elsewhere, spec, low, off, taken, junk}
	apply(t, allocate(t, all...))
	value := func(se *networkingv1.ServiceEntry, six bool) (out string) {
		for _, a := range se.Status.GetAddresses() {
			if ip := netip.MustParseAddr(a.GetValue()); ip.Is6() == six {
				out = ip.String()
			}
		}
		return out
	}
	for _, c := range []struct {
		name, got, want, not string
	}{
		{"old", value(old, false), "240.240.0.9", ""},
		{"younger", value(se, false), "", "240.240.0.9"},
		{"younger's other", value(se, true), "2001:2::9", ""},
		{"of another block", value(elsewhere, false), "10.9.9.9", ""},
		{"that a spec has, too", value(elsewhere, true), "2001:2::7", ""},
		{"that a spec's block has, too", value(low, false), "240.240.0.3", ""},
		{"beside it", value(low, true), "2001:2::5", ""},
		{"of one that is switched off", value(off, false), "240.240.0.44", ""},
		{"that it has", value(taken, false), "", "240.240.0.44"},
		{"first of two", value(junk, true), "2001:2::66", ""},
	} {
		if c.got == "" || c.want != "" && c.got != c.want || c.not != "" && c.got == c.not {
			t.Errorf("%s: %q, want %q and not %q", c.name, c.got, c.want, c.not)
		}
	}
	for _, a := range elsewhere.Status.GetAddresses() {
		if a.GetHost() == "gone.example" {
			t.Error("a host that was taken out keeps its address")
		}
	}
	if again := allocate(t, all...); len(again) > 0 {
		t.Errorf("not settled: %v", again)
	}
	// What is written is what the model reads.
	r, err := All(Objects{ServiceEntries: all}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range r.Services {
		if s.Name == "old" && (len(s.VIPs) != 2 || s.VIPs[0].Addr.String() != "240.240.0.9") {
			t.Errorf("VIPs %v", s.VIPs)
		}
	}
}

// Whoever may write a ServiceEntry somewhere takes no address from others' hosts: not by a
// block that has them all, and not by writing down the one that a host was given.
func TestAllocateAgainstSpecs(t *testing.T) {
	good := says(autoEntry(1, "good", "a.example"), "a.example", "240.240.210.184", "a.example", "2001:2::d2b8")
	evil := autoEntry(0, "evil", "evil.example")
	evil.Namespace, evil.Spec.Resolution = "aaa", apinetworking.ServiceEntry_STATIC
	evil.Spec.Addresses = []string{"240.0.0.0/4", "2001:2::/32", "240.240.210.184", "192.0.2.7"}
	if list := allocate(t, good, evil); len(list) > 0 {
		t.Errorf("a host that has addresses is given %v", list[0].Addresses)
	}
	// Where blocks leave nothing, hosts are given what is in them, and the blocks' owner is told.
	late := autoEntry(2, "late", "late.example")
	list, problems := Allocate([]*networkingv1.ServiceEntry{good, evil, late})
	if len(list) != 1 || list[0].Entry != late || len(list[0].Addresses) != 2 {
		t.Fatalf("given: %+v", list)
	}
	if len(problems) != 2 || problems[0].Name != "evil" || problems[0].Field != "spec.addresses[0]" || problems[1].Field != "spec.addresses[1]" {
		t.Errorf("problems %v", problems)
	}
	apply(t, list)
	unique(t, good, late)
	r, err := All(Objects{ServiceEntries: []*networkingv1.ServiceEntry{good, evil, late}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range r.Services {
		for _, vip := range s.VIPs {
			if s.Name == "evil" && vip.Addr.String() != "192.0.2.7" {
				t.Errorf("evil has %s", vip.Addr)
			}
		}
	}
	if len(r.Problems) != 1 || r.Problems[0].Field != "spec.addresses[2]" || !strings.Contains(r.Problems[0].Reason, "app/good") {
		t.Errorf("problems %v", r.Problems)
	}
	// One's own may be written down.
	good.Spec.Addresses = []string{"240.240.210.184"}
	if r, err = All(Objects{ServiceEntries: []*networkingv1.ServiceEntry{good}}, Options{}); err != nil || len(r.Problems) > 0 || len(r.Services[0].VIPs) != 1 {
		t.Errorf("%v, %v", r, err)
	}
}

// Blocks that are no more than some of an address's bits apart are seen as what they are.
func TestPlaces(t *testing.T) {
	for _, c := range []struct {
		block    string
		in, not  []uint32
		fam, all int
	}{
		{"240.240.1.0/24", []uint32{256, 511}, []uint32{255, 512}, 0, 256},
		{"240.240.0.0/15", []uint32{0, 65535}, nil, 0, 65536},
		{"240.241.0.0/16", nil, []uint32{0, 65535}, 0, 0},
		{"2001:2::8000/113", []uint32{32768, 65535}, []uint32{32767}, 1, 32768},
		{"2001:2:0:1::/64", nil, []uint32{0}, 1, 0}, // of the block, and of nothing that is given out
		{"2001:2::/48", []uint32{0, 65535}, nil, 1, 65536},
	} {
		var in places
		in.add(autoBlocks[c.fam], netip.MustParsePrefix(c.block))
		n := 0
		for _, b := range in {
			if b {
				n++
			}
		}
		if n != c.all || slices.ContainsFunc(c.in, func(n uint32) bool { return !in[n] }) || slices.ContainsFunc(c.not, func(n uint32) bool { return in[n] }) {
			t.Errorf("%s: %d", c.block, n)
		}
	}
}

// When nothing is left the hosts that get nothing are told of, and the others go on.
func TestAllocateNothingLeft(t *testing.T) {
	var all []*networkingv1.ServiceEntry
	for i := range 16 { // every address but 240.240.255.254, one by one, in specs
		se := autoEntry(0, fmt.Sprint("spec", i), fmt.Sprintf("s%d.example", i))
		for n := range uint32(4096) {
			if ip := nth(autoV4, uint32(i)*4096+n); ip.String() != "240.240.255.254" {
				se.Spec.Addresses = append(se.Spec.Addresses, ip.String())
			}
		}
		all = append(all, se)
	}
	one, two := autoEntry(1, "one", "a.example"), autoEntry(2, "two", "b.example")
	got, problems := Allocate(append([]*networkingv1.ServiceEntry{two, one}, all...))
	if len(got) != 2 || len(got[0].Addresses) != 2 || got[0].Addresses[0].Address.String() != "240.240.255.254" || len(got[1].Addresses) != 1 {
		t.Fatalf("%+v", got)
	}
	if len(problems) != 1 || problems[0].Name != "two" || !strings.Contains(problems[0].Reason, "spec.addresses") {
		t.Errorf("%v", problems)
	}
}
