package proxy

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/warren-mesh/warren/proxy/route"
	"github.com/warren-mesh/warren/xds/client"
	"github.com/warren-mesh/warren/xds/server"
	"github.com/warren-mesh/warren/xds/workload"
)

// onDemand is a pod whose proxy follows a model on demand, as what runs on node one.
func onDemand(t *testing.T, m server.Model) *pod {
	t.Helper()
	path := filepath.Join(t.TempDir(), "xds.sock")
	quiet := slog.New(slog.DiscardHandler)
	control := server.New(server.Config{Authenticate: func(context.Context) (string, error) { return "node", nil }, Log: quiet, Debounce: time.Millisecond})
	snapshot, err := server.NewSnapshot(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	control.SetSnapshot(snapshot)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(server.ServerOptions()...)
	control.Register(g)
	s := &Server{cfg: Config{OnDemand: true}, store: workload.NewStore()}
	s.xds, err = client.New(client.Config{Address: "unix://" + path, OnDemand: true, Log: quiet, Node: client.Node{NodeName: "one"}}, s.store)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = g.Serve(l) })
	running.Go(func() { _ = s.xds.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		control.Shutdown()
		g.Stop()
		running.Wait()
		control.Wait()
	})
	select {
	case <-s.xds.Synced():
	case <-time.After(20 * time.Second):
		t.Fatalf("not synced: %+v", s.xds.Status())
	}
	wait, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	if err := s.store.Wait(wait, func(v *workload.View) bool { return v.WorkloadByUID("here") != nil }); err != nil {
		t.Fatal(err)
	}
	return &pod{s: s}
}

// TestWaypointAsks: a waypoint that follows on demand finds out what it is asked for; beyond
// what peers may make up it refuses what it does not know.
func TestWaypointAsks(t *testing.T) {
	wp := workload.NamespacedHostname{Namespace: "ns", Hostname: "wp.example"}
	behind := &workload.GatewayAddress{Hostname: wp}
	at := func(uid, node, ip string) *workload.Workload {
		return &workload.Workload{UID: uid, Name: uid, Namespace: "ns", Node: node, Addresses: []netip.Addr{netip.MustParseAddr(ip)}}
	}
	service := func(host, vip string, waypoint *workload.GatewayAddress) *workload.Service {
		return &workload.Service{Name: host, Namespace: "ns", Hostname: host, VIPs: []workload.NetworkAddr{{Addr: netip.MustParseAddr(vip)}}, Waypoint: waypoint}
	}
	self, guarded, stranger := at("here", "one", "10.0.0.1"), at("guarded", "two", "10.0.0.2"), at("stranger", "two", "10.0.0.3")
	self.Services = workload.Memberships{{Service: wp, Ports: workload.PortMap{{Service: 80, Target: 8080}}}}
	guarded.Waypoint = behind
	p := onDemand(t, server.Model{
		Workloads: []*workload.Workload{self, guarded, stranger},
		Services:  []*workload.Service{service("wp.example", "10.9.0.1", nil), service("a.example", "10.9.0.2", behind), service("b.example", "10.9.0.3", behind)},
	})
	dst := netip.MustParseAddrPort("10.0.0.1:15008")
	for _, c := range []struct {
		authority string
		left      int // of what peers may make up
		taken     bool
	}{
		{"10.0.0.1:80", 0, true}, {"wp.example:80", 0, true},
		{"10.9.0.3:80", 0, false}, {"10.9.0.2:80", 1, true}, {"10.0.0.2:80", 1, true},
		{"10.9.0.2:80", 0, true}, {"10.0.0.3:80", 1, false}, {"10.0.0.77:80", 1, false},
	} {
		view := p.s.store.View()
		self := view.WorkloadByUID("here")
		p.peerAsks = quota{since: time.Now(), taken: maxPeerAsks - c.left}
		view, err := p.knownInbound(t.Context(), view, self, dst.Addr(), c.authority)
		if err != nil {
			t.Fatalf("%s: %v", c.authority, err)
		}
		if _, refusal := route.Inbound(view, self, dst, c.authority); (refusal == nil) != c.taken {
			t.Errorf("%s, %d names left: refused %v", c.authority, c.left, refusal)
		}
	}
}

// TestRangeHidesNobody: that an address is in the range of a service says nothing about
// who else is there.
func TestRangeHidesNobody(t *testing.T) {
	at := func(uid, node, ip string) *workload.Workload {
		return &workload.Workload{UID: uid, Name: uid, Namespace: "ns", Node: node, Addresses: []netip.Addr{netip.MustParseAddr(ip)}}
	}
	outside := &workload.Service{
		Name: "outside", Namespace: "ns", Hostname: "outside", CIDRs: []workload.NetworkPrefix{{Prefix: netip.MustParsePrefix("10.3.0.0/16")}},
		LoadBalancing: &workload.LoadBalancing{Mode: workload.LBPassthrough},
	}
	inside := &workload.Service{Name: "inside", Namespace: "ns", Hostname: "inside", VIPs: []workload.NetworkAddr{{Addr: netip.MustParseAddr("10.3.0.9")}}}
	p := onDemand(t, server.Model{
		Workloads: []*workload.Workload{at("here", "one", "10.0.0.1"), at("pod", "two", "10.3.0.7")}, Services: []*workload.Service{outside, inside},
	})
	for _, dst := range []string{"10.3.3.3", "10.3.0.7", "10.3.0.9", "10.3.3.3"} {
		view := p.s.store.View()
		view, err := p.known(t.Context(), view, view.WorkloadByUID("here"), netip.MustParseAddr(dst))
		if err != nil {
			t.Fatalf("%s: %v", dst, err)
		}
		addr := workload.NetworkAddr{Addr: netip.MustParseAddr(dst)}
		got := [...]bool{view.ServiceByExactVIP(addr, "ns") != nil, view.WorkloadByAddr(addr) != nil, view.ServiceByRange(addr, "ns") != nil}
		if want := [...]bool{dst == "10.3.0.9", dst == "10.3.0.7", true}; got != want {
			t.Errorf("%s: known as a service's own, a pod's and in a range %v, want %v", dst, got, want)
		}
	}
}

// TestOwnAddressAsksNothing: a pod takes what is meant for its own address while the
// control plane is away, though nobody knows its waypoint. What a waypoint is asked for
// is another matter.
func TestOwnAddressAsksNothing(t *testing.T) {
	key := workload.NamespacedHostname{Namespace: "ns", Hostname: "a.example"}
	self := &workload.Workload{
		UID: "here", Name: "here", Namespace: "ns", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
		Waypoint: &workload.GatewayAddress{Hostname: workload.NamespacedHostname{Namespace: "ns", Hostname: "wp.example"}, HBONEPort: 15008},
		Services: workload.Memberships{{Service: key}},
	}
	s := &Server{cfg: Config{OnDemand: true}, store: workload.NewStore()}
	s.store.Apply(workload.Batch{Workloads: []*workload.Workload{self}, Services: []*workload.Service{{
		Name: "a", Namespace: "ns", Hostname: key.Hostname, Ports: workload.NewPortMap(workload.Port{Service: 80, Target: 8080}),
	}}})
	var err error
	if s.xds, err = client.New(client.Config{Address: "unix:///nowhere", OnDemand: true, Node: client.Node{NodeName: "one"}}, s.store); err != nil {
		t.Fatal(err)
	}
	p, impatient := &pod{s: s}, atOnce
	dst := netip.MustParseAddrPort("10.0.0.1:15008")
	for authority, asks := range map[string]bool{"10.0.0.1:80": false, "a.example:80": false, "10.0.0.7:80": true} {
		view, err := p.knownInbound(impatient, s.store.View(), self, dst.Addr(), authority)
		if asks != (err != nil) {
			t.Errorf("%s: %v, want it to ask: %v", authority, err, asks)
		}
		if err != nil {
			continue
		}
		if _, refusal := route.Inbound(view, self, dst, authority); refusal != nil {
			t.Errorf("%s: %v", authority, refusal.Err)
		}
	}
}

// TestUnusableGateway: a gateway that cannot be used takes nobody away but who is behind it.
func TestUnusableGateway(t *testing.T) {
	web := workload.NamespacedHostname{Namespace: "ns", Hostname: "web.example"}
	at := func(uid, node, ip, network string) *workload.Workload {
		return &workload.Workload{UID: uid, Name: uid, Namespace: "ns", Node: node, Network: network, Addresses: []netip.Addr{netip.MustParseAddr(ip)}}
	}
	self, near, far := at("here", "one", "10.0.0.1", ""), at("near", "two", "10.0.0.2", ""), at("far", "three", "10.0.0.3", "n2")
	near.Services, far.Services = workload.Memberships{{Service: web}}, workload.Memberships{{Service: web}}
	far.NetworkGateway = &workload.GatewayAddress{Hostname: workload.NamespacedHostname{Namespace: "ns", Hostname: "gw.example"}, HBONEPort: 15008}
	farther, good := at("farther", "four", "10.0.0.4", "n3"), workload.NamespacedHostname{Namespace: "ns", Hostname: "good.example"}
	farther.Services, farther.NetworkGateway = near.Services, &workload.GatewayAddress{Hostname: good, HBONEPort: 15008}
	p := onDemand(t, server.Model{
		Workloads: []*workload.Workload{self, near, far, farther},
		Services: []*workload.Service{
			{Name: "web", Namespace: "ns", Hostname: "web.example", VIPs: []workload.NetworkAddr{{Addr: netip.MustParseAddr("10.9.0.1")}},
				Ports: workload.NewPortMap(workload.Port{Service: 80, Target: 8080})},
			{Name: "good", Namespace: "ns", Hostname: "good.example"},
			{Name: "gw", Namespace: "ns", Hostname: "gw.example", Ports: workload.NewPortMap(workload.Port{Service: 15008, Target: 15008}),
				LoadBalancing: &workload.LoadBalancing{Mode: workload.LBFailover, Preferences: slices.Repeat([]workload.Scope{workload.Region}, 1000)}},
		},
	})
	dst := netip.MustParseAddrPort("10.9.0.1:80")
	for range 2 {
		me := p.s.store.View().WorkloadByUID("here")
		view, err := p.known(t.Context(), p.s.store.View(), me, dst.Addr())
		if err != nil {
			t.Fatal(err)
		}
		if d, err := route.Outbound(view, me, route.Options{}, netip.MustParseAddrPort("10.0.0.1:1"), dst); err != nil || d.Destination == nil || d.Destination.UID != "near" {
			t.Errorf("to %+v, %v", d, err)
		}
	}
	wait, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	if err := p.s.store.Wait(wait, func(v *workload.View) bool { return v.Service(good) != nil }); err != nil {
		t.Errorf("the other gateway is not asked for: %v", err)
	}
	if err := p.s.xds.Ask(t.Context(), "ns/gw.example"); err == nil {
		t.Error("the gateway can be used")
	}
}
