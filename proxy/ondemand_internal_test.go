package proxy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/proxy/route"
	"github.com/warren-mesh/warren/xds/workload"
)

// TestUnknownOnPath: what a connection depends on is named once, step by step, and what
// leads in a circle comes to an end.
func TestUnknownOnPath(t *testing.T) {
	host := func(name string) workload.NamespacedHostname {
		return workload.NamespacedHostname{Namespace: "ns", Hostname: name}
	}
	byHost := func(name string) *workload.GatewayAddress {
		return &workload.GatewayAddress{Hostname: host(name), HBONEPort: 15008}
	}
	byIP := func(network, ip string) *workload.GatewayAddress {
		return &workload.GatewayAddress{Address: workload.NetworkAddr{Network: network, Addr: netip.MustParseAddr(ip)}, HBONEPort: 15008}
	}
	service := func(name, vip string, waypoint *workload.GatewayAddress) *workload.Service {
		s := &workload.Service{Name: name, Namespace: "ns", Hostname: name, Waypoint: waypoint}
		if vip != "" {
			s.VIPs = []workload.NetworkAddr{{Addr: netip.MustParseAddr(vip)}}
		}
		return s
	}
	pod := func(uid, network, ip string, services ...string) *workload.Workload {
		w := &workload.Workload{UID: uid, Network: network}
		if ip != "" {
			w.Addresses = []netip.Addr{netip.MustParseAddr(ip)}
		}
		for _, s := range services {
			w.Services = append(w.Services, workload.Membership{Service: host(s)})
		}
		return w
	}
	abroad := pod("abroad", "other", "", "spread")
	abroad.NetworkGateway = byIP("other", "192.0.2.1")
	abroad2 := pod("abroad2", "other", "", "spread")
	abroad2.NetworkGateway = byIP("other", "192.0.2.1")
	guarded := pod("guarded", "", "10.0.0.5")
	guarded.Waypoint = byHost("nobody")
	local := pod("local", "", "10.0.0.6")
	local.Waypoint = byIP("", "10.9.0.1")
	weighted := service("weighted", "10.9.0.5", nil)
	weighted.WeightedWaypoints = []workload.WeightedWaypoint{{Destination: *byHost("w1"), Weight: 1}, {Destination: *byHost("w2"), Weight: 1}}
	sick := pod("sick", "", "10.0.0.7", "ailing")
	sick.Status = workload.Unhealthy
	circle := pod("circle", "other", "", "c2")
	circle.NetworkGateway = byHost("c1")

	through := service("through", "10.9.0.11", nil)
	through.LoadBalancing = &workload.LoadBalancing{Mode: workload.LBPassthrough}

	rolled := service("rolled", "10.9.0.12", byHost("gone"))
	spare := service("spare", "10.9.0.13", nil)
	spare.WeightedWaypoints = []workload.WeightedWaypoint{{Destination: *byHost("simple"), Weight: 1}, {Destination: *byHost("gone"), Weight: 1}}
	behind := pod("behind", "", "10.0.0.8")
	behind.Waypoint = byIP("", "10.9.0.20")
	within := service("within", "", byHost("simple"))
	within.CIDRs = []workload.NetworkPrefix{{Prefix: netip.MustParsePrefix("10.8.0.0/16")}}
	within.LoadBalancing = through.LoadBalancing
	lodger := pod("lodger", "", "10.8.0.4")
	led := pod("led", "", "10.0.0.9")
	led.Waypoint = byIP("", "10.8.0.9")
	out := pod("out", "other", "", "away")
	out.NetworkGateway = byHost("gone")

	mixed, alone := pod("mixed", "other", "", "mixed"), pod("alone", "other", "", "alone")
	mixed.NetworkGateway, alone.NetworkGateway = byIP("other", "192.0.2.2"), byIP("other", "192.0.2.2")
	twoWays := pod("twoways", "third", "", "twoways")
	twoWays.NetworkGateway = byHost("simple")
	third := pod("third", "other", "", "twoways")
	third.NetworkGateway = byIP("other", "192.0.2.2")
	ill := pod("ill", "", "10.0.1.9", "alone")
	ill.Status = workload.Unhealthy
	zero := service("zero", "10.9.0.17", byHost("w3"))
	zero.WeightedWaypoints = []workload.WeightedWaypoint{{Destination: *byHost("w1"), Weight: 1}, {Destination: *byHost("w2")}}
	zeros := service("zeros", "10.9.0.18", byHost("w3"))
	zeros.WeightedWaypoints = []workload.WeightedWaypoint{{Destination: *byHost("w2")}}

	store := workload.NewStore()
	store.Apply(workload.Batch{
		Workloads: []*workload.Workload{mixed, alone, ill, twoWays, third, pod("e9", "", "10.0.1.8", "mixed", "zero", "zeros"), abroad, abroad2, guarded, local, circle, sick, behind, out, lodger, led, pod("plain", "", "10.0.0.4", "simple"),
			pod("e1", "", "10.0.1.1", "behind"), pod("e2", "", "10.0.1.2", "known"), pod("e3", "", "10.0.1.3", "weighted"), pod("e4", "", "10.0.1.4", "c1"),
			pod("e5", "", "10.0.1.5", "far"), pod("e6", "", "10.0.1.6", "c2"),
			pod("e7", "", "10.0.1.7", "rolled"), pod("e8", "", "10.0.1.8", "spare")},
		Services: []*workload.Service{
			service("simple", "10.9.0.1", nil), service("spread", "10.9.0.2", nil), service("behind", "10.9.0.3", byHost("unknown")),
			service("known", "10.9.0.4", byHost("simple")), weighted, service("c1", "10.9.0.6", byHost("c2")), service("c2", "10.9.0.7", byHost("c1")),
			service("empty", "10.9.0.8", nil), service("far", "10.9.0.9", byHost("spread")), service("ailing", "10.9.0.10", nil), through,
			rolled, spare, service("gone", "10.9.0.20", nil), service("away", "10.9.0.14", nil), within, service("tenant", "10.8.0.5", nil),
			service("mixed", "10.9.0.15", nil), service("alone", "10.9.0.16", nil), service("twoways", "10.9.0.19", nil), zero, zeros,
		},
	})
	self := pod("self", "", "10.0.0.1")
	for dst, want := range map[string]struct{ names, stale, gates, used []string }{
		"10.0.0.99":      {names: []string{"/10.0.0.99"}},
		"fd00::99":       {names: []string{"/fd00::99"}},
		"::ffff:1.1.1.1": {names: []string{"/1.1.1.1"}},
		"10.0.0.4":       {},
		"10.0.0.5":       {names: []string{"ns/nobody"}},
		"10.0.0.6":       {used: []string{"ns/simple"}}, // its waypoint is a service's address, which is known
		"10.9.0.1":       {used: []string{"ns/simple"}},
		"10.9.0.2":       {names: []string{"other/192.0.2.1"}, used: []string{"ns/spread"}},
		"10.9.0.3":       {names: []string{"ns/unknown"}, used: []string{"ns/behind"}},
		"10.9.0.4":       {used: []string{"ns/simple", "ns/known"}},
		"10.9.0.5":       {names: []string{"ns/w1", "ns/w2"}, used: []string{"ns/weighted"}},
		"10.9.0.6":       {used: []string{"ns/c2", "ns/c1"}},
		"10.9.0.7":       {used: []string{"ns/c1", "ns/c2"}},
		"10.9.0.8":       {stale: []string{"ns/empty"}, used: []string{"ns/empty"}}, // somebody may have come
		"10.9.0.10":      {stale: []string{"ns/ailing"}, used: []string{"ns/ailing"}},
		"10.9.0.11":      {used: []string{"ns/through"}},                                              // to where the client wants
		"10.9.0.9":       {names: []string{"other/192.0.2.1"}, used: []string{"ns/spread", "ns/far"}}, // the waypoint's own endpoints are abroad
		// A gateway that not all are behind is good to know; but one who is ill is nobody.
		"10.9.0.15": {gates: []string{"other/192.0.2.2"}, used: []string{"ns/mixed"}},
		"10.9.0.16": {names: []string{"other/192.0.2.2"}, used: []string{"ns/alone"}},
		"10.9.0.19": {gates: []string{"other/192.0.2.2"}, used: []string{"ns/simple", "ns/twoways"}},
		// Of waypoints those that may be drawn.
		"10.9.0.17": {names: []string{"ns/w1"}, used: []string{"ns/zero"}},
		"10.9.0.18": {names: []string{"ns/w3"}, used: []string{"ns/zeros"}},
		// In a service's range there may be pods, and other services.
		"10.8.0.1": {names: []string{"/10.8.0.1"}, used: []string{"ns/simple", "ns/within"}},
		"10.8.0.4": {},
		"10.8.0.5": {stale: []string{"ns/tenant"}, used: []string{"ns/tenant"}},
		"10.0.0.9": {names: []string{"/10.8.0.9"}, used: []string{"ns/within"}},
		// The pods of a waypoint, or of a gateway, have all been replaced.
		"10.9.0.12": {stale: []string{"ns/gone"}, used: []string{"ns/gone", "ns/rolled"}},
		"10.9.0.13": {stale: []string{"ns/gone"}, used: []string{"ns/simple", "ns/gone", "ns/spare"}},
		"10.0.0.8":  {stale: []string{"ns/gone"}, used: []string{"ns/gone"}},
		"10.9.0.14": {stale: []string{"ns/gone"}, used: []string{"ns/gone", "ns/away"}},
	} {
		got := missingOnPath(store.View(), self, netip.MustParseAddr(dst))
		if !slices.Equal(got.names, want.names) || !slices.Equal(got.stale, want.stale) || !slices.Equal(got.gates, want.gates) {
			t.Errorf("%s: asks for %v, %v and %v, want %v, %v and %v", dst, got.names, got.stale, got.gates, want.names, want.stale, want.gates)
		}
		var used []string
		for _, s := range got.used {
			used = append(used, s.ResourceName())
		}
		if !slices.Equal(used, want.used) {
			t.Errorf("%s: renews %v, want %v", dst, used, want.used)
		}
	}
	// Who may be a waypoint of no weight has to know.
	self.Services = workload.Memberships{{Service: host("w2")}}
	for dst, want := range map[string][]string{"10.9.0.17": {"ns/w1", "ns/w2"}, "10.9.0.18": {"ns/w3", "ns/w2"}} {
		if got := missingOnPath(store.View(), self, netip.MustParseAddr(dst)); !slices.Equal(got.names, want) {
			t.Errorf("%s: asks for %v, want %v", dst, got.names, want)
		}
	}
}

// TestUnknownAuthority: a CONNECT to a pod is decided with what it asks for, and a peer
// cannot have anything looked up.
func TestUnknownAuthority(t *testing.T) {
	host := func(name string) workload.NamespacedHostname {
		return workload.NamespacedHostname{Namespace: "ns", Hostname: name}
	}
	behind := func(name, vip, waypoint string) *workload.Service {
		return &workload.Service{Name: name, Namespace: "ns", Hostname: name, VIPs: []workload.NetworkAddr{{Network: "n", Addr: netip.MustParseAddr(vip)}},
			Waypoint: &workload.GatewayAddress{Hostname: host(waypoint)}}
	}
	guarded := &workload.Workload{UID: "guarded", Network: "n", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.9")}, Waypoint: &workload.GatewayAddress{Hostname: host("wp")}}
	store := workload.NewStore()
	store.Apply(workload.Batch{Workloads: []*workload.Workload{guarded}, Services: []*workload.Service{
		behind("a", "10.9.0.1", "wp"), {Name: "mine", Namespace: "ns", Hostname: "mine"},
		{Name: "within", Namespace: "ns", Hostname: "within", CIDRs: []workload.NetworkPrefix{{Network: "n", Prefix: netip.MustParsePrefix("10.7.0.0/16")}},
			Waypoint: &workload.GatewayAddress{Hostname: host("wp")}},
	}})
	plain := &workload.Workload{UID: "self", Network: "n", Namespace: "ns"}
	server, tunnel := *plain, *plain
	server.Services = workload.Memberships{{Service: host("mine")}, {Service: host("wp")}}
	tunnel.ApplicationTunnel = &workload.ApplicationTunnel{Port: 15088}
	for _, c := range []struct {
		self            *workload.Workload
		authority, want string
		chosen          bool // by the peer
	}{
		{&server, "10.0.0.1:80", "", false}, // its own address
		{&server, "10.0.0.7:80", "n/10.0.0.7", true},
		{&server, "[fd00::7]:80", "n/fd00::7", true},
		{&server, "10.9.0.1:80", "ns/wp", false}, // it may be the waypoint of this service
		{&server, "10.0.0.9:80", "ns/wp", false}, // and of this workload
		{&server, "10.7.0.1:80", "ns/wp n/10.7.0.1", true},
		{&server, "wp:80", "ns/wp", false},
		{&server, "mine:80", "", false},
		{&server, "other:80", "", false},
		{plain, "10.0.0.7:80", "", false},
		{plain, "wp:80", "", false},
		{&tunnel, "10.0.0.7:80", "", false}, // goes in, whatever it is
		{&tunnel, "other:80", "ns/other", true},
		{&tunnel, "a:80", "", false},
	} {
		a, err := route.ParseAuthority(c.authority)
		if err != nil {
			t.Fatal(err)
		}
		u := missing{view: store.View(), self: c.self}
		chosen := u.authority(a, netip.MustParseAddr("10.0.0.1"))
		got := u.names
		if chosen != "" {
			got = append(got, chosen)
		}
		if strings.Join(got, " ") != c.want || (chosen != "") != c.chosen {
			t.Errorf("%s: asks for %v, of the peer's %q; want %q", c.authority, got, chosen, c.want)
		}
	}
}

func TestQuota(t *testing.T) {
	var q quota
	now := time.Unix(100, 0)
	for i := range 2 * maxPeerAsks {
		if got := q.take(now); got != (i < maxPeerAsks) {
			t.Fatalf("name %d: %v", i, got)
		}
	}
	if q.take(now.Add(peerAsksWithin-1)) || !q.take(now.Add(peerAsksWithin)) {
		t.Error("it does not begin anew in time")
	}
}
