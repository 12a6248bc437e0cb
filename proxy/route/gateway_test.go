package route

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/xds/workload"
)

func inNetwork(n string, gw *workload.GatewayAddress) func(*workload.Workload) {
	return func(w *workload.Workload) { w.Network, w.NetworkGateway = n, gw }
}

// TestOtherNetworks: what is in another network is reached through its gateway.
func TestOtherNetworks(t *testing.T) {
	gw := addressed("n2", "172.18.0.2")
	sans := func(s *workload.Service) { s.SubjectAltNames = []string{"spiffe://cluster.local/ns/app/sa/far"} }
	gws := service("gws", "infra", "10.96.9.1", func(s *workload.Service) {
		s.Ports = workload.NewPortMap(workload.Port{Service: 15008, Target: 15009})
		s.SubjectAltNames = []string{"spiffe://cluster.local/ns/x/sa/gw"}
	})
	web, plain := service("web", "app", "10.96.0.1", sans), service("plain", "app", "10.96.0.2")
	byService, byHost := service("by-service", "app", "10.96.0.3", sans), service("by-host", "app", "10.96.0.4", sans)
	lost, unknown, mixed := service("lost", "app", "10.96.0.5"), service("unknown", "app", "10.96.0.6"), service("mixed", "app", "10.96.0.7", sans)
	wp := service("wp", "infra", "10.96.9.2", waypointPorts, func(s *workload.Service) { s.SubjectAltNames = []string{"spiffe://cluster.local/ns/x/sa/wp"} })
	judged := service("judged", "app", "10.96.0.8", sans, behind(named("infra", wp.Hostname)))
	idle := service("idle", "infra", "10.96.9.3", func(s *workload.Service) { s.Ports = gws.Ports })
	closed := service("closed", "app", "10.96.0.9")
	odd := service("odd", "app", "10.96.0.10")

	self := pod("self", "app", ips("10.0.0.1"))
	gateway := pod("gateway", "infra", ips("172.18.0.2"), inNetwork("n2", nil))
	inside := pod("inside", "infra", ips("10.0.0.9"), endpointOf(gws))
	far := pod("far", "app", ips("10.0.0.1"), inNetwork("n2", gw), endpointOf(web), endpointOf(plain)) // of our own address, in the other network
	viaService := pod("via-service", "app", inNetwork("n2", named("infra", gws.Hostname)), endpointOf(byService))
	viaHost := pod("via-host", "app", inNetwork("n2", named("infra", "gw.example")), endpointOf(byHost))
	elb := pod("elb", "infra", inNetwork("n2", nil), func(w *workload.Workload) { w.Hostname = "gw.example" })
	stranded := pod("stranded", "app", ips("10.0.0.7"), inNetwork("n3", nil), endpointOf(lost), endpointOf(mixed))
	farToo := pod("far-too", "app", inNetwork("n2", gw), endpointOf(mixed))
	nowhere := pod("nowhere", "app", inNetwork("n3", addressed("n3", "172.18.0.3")), endpointOf(unknown))
	farWaypoint := pod("far-wp", "infra", inNetwork("n2", gw), endpointOf(wp))
	shut := pod("shut", "app", inNetwork("n4", named("infra", idle.Hostname)), endpointOf(closed))
	pointed := pod("pointed", "app", ips("10.0.0.20"), func(w *workload.Workload) { w.Waypoint = named("infra", wp.Hostname) })
	nobody := pod("nobody", "app", func(w *workload.Workload) { w.TrustDomain = "NOT a trust domain" }, inNetwork("n2", gw), endpointOf(odd))
	v := apply(workload.Batch{
		Services:  []*workload.Service{gws, web, plain, byService, byHost, lost, unknown, mixed, wp, judged, idle, closed, odd},
		Workloads: []*workload.Workload{self, gateway, inside, far, viaService, viaHost, elb, stranded, farToo, nowhere, farWaypoint, shut, pointed, nobody},
	})
	through := func(dial string, outer []spiffeid.ID, s *workload.Service, dst *workload.Workload, inner ...spiffeid.ID) Decision {
		a := Authority{Host: s.Hostname, Port: 80}
		return Decision{Protocol: DoubleHBONE, Dial: ap(dial), Authority: a, Expected: identities(outer...), InnerAuthority: a, InnerExpected: inner,
			Destination: dst, Service: s, ServiceAddressed: true}
	}
	gwID, farID := []spiffeid.ID{id("infra", "gateway")}, id("app", "far")
	byName := through("1.1.1.1:15008", []spiffeid.ID{id("infra", "elb")}, byHost, viaHost, farID)
	byName.Dial, byName.Hostname = netip.AddrPortFrom(netip.Addr{}, 15008), "gw.example"
	for _, tt := range []outboundCase{
		{name: "gateway by address", to: "10.96.0.1:80", want: through("172.18.0.2:15008", gwID, web, far, farID)},
		{name: "identities of the workload where the service lists none", to: "10.96.0.2:80", want: through("172.18.0.2:15008", gwID, plain, far, farID)},
		{name: "gateway by service", to: "10.96.0.3:80", want: through("10.0.0.9:15009", []spiffeid.ID{id("x", "gw"), id("infra", "inside")}, byService, viaService, farID)},
		{name: "gateway by hostname", to: "10.96.0.4:80", want: byName},
		{name: "endpoint that cannot be reached beside one that can", to: "10.96.0.7:80", want: through("172.18.0.2:15008", gwID, mixed, farToo, farID)},
		{name: "waypoint in another network", to: "10.96.0.8:80", want: through("172.18.0.2:15008", gwID, judged, farWaypoint, id("x", "wp"))},

		{name: "network without a gateway", to: "10.96.0.5:80", err: ErrNoHealthyUpstream, text: "could be used: 1 in a network without a gateway"},
		{name: "gateway that nobody knows", to: "10.96.0.6:80", err: ErrUnknownGateway,
			text: `unknown network gateway: n3/172.18.0.3: no service and no workload has this address; is its Gateway there and ready? (on the way to app/unknown.app.svc.cluster.local in network "n3")`},
		{name: "gateway without endpoints", to: "10.96.0.9:80", err: ErrNoHealthyUpstream, text: "network gateway infra/idle.infra.svc.cluster.local: service infra/idle.infra.svc.cluster.local has no endpoints"},
		{name: "workload whose waypoint is in another network", to: "10.0.0.20:80", err: ErrNoRoute, text: `no service for target address: 10.0.0.20:80: in network "n2" only services can be reached`},
		{name: "nobody's identity", to: "10.96.0.10:80", err: ErrNoRoute, text: "no identity is known"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Outbound(v, v.WorkloadByUID(self.UID), Options{}, clientAddr, ap(tt.to))
			if !errors.Is(err, tt.err) || tt.err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("error %v, want %v with %q", err, tt.err, tt.text)
			}
			if diff := cmp.Diff(tt.want, got, cmpDecision); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
		})
	}
}

// TestManyBehindGateway: a gateway chooses among all the endpoints of its network, so the
// far end may be any of them, and nobody else.
func TestManyBehindGateway(t *testing.T) {
	gw := addressed("n2", "172.18.0.2")
	web := service("web", "app", "10.96.0.1")
	v := apply(workload.Batch{Services: []*workload.Service{web}, Workloads: []*workload.Workload{
		pod("gw", "infra", ips("172.18.0.2"), inNetwork("n2", nil)),
		pod("a", "app", inNetwork("n2", gw), endpointOf(web)), pod("b", "app", inNetwork("n2", gw), endpointOf(web)),
		pod("c", "app", inNetwork("n2", gw), endpointOf(web), func(w *workload.Workload) { w.ServiceAccount = "a" }),
		pod("elsewhere", "app", inNetwork("n3", addressed("n3", "172.18.0.3")), endpointOf(web)),
		pod("beside", "app", inNetwork("n2", gw)),
	}})
	want := []string{id("app", "a").String(), id("app", "b").String()}
	for range 20 { // whichever is chosen
		d, err := Outbound(v, pod("self", "app"), Options{}, clientAddr, ap("10.96.0.1:80"))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, id := range d.InnerExpected {
			got = append(got, id.String())
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("the far end may be %v, want %v", got, want)
		}
	}
}

// TestGatewayDown: what is behind a gateway that cannot take the connection does not
// keep it from the endpoints that are not, nor is such a gateway asked twice.
func TestGatewayDown(t *testing.T) {
	gws := service("gws", "infra", "10.96.9.1", func(s *workload.Service) {
		s.Ports = workload.NewPortMap(workload.Port{Service: 15008, Target: 15008})
	})
	down := map[string]func(*workload.Workload){
		"a service":     inNetwork("n2", named("infra", gws.Hostname)),
		"an address":    inNetwork("n2", addressed("n2", "172.18.0.2")),
		"unknown":       inNetwork("n2", addressed("n2", "172.18.0.9")),
		"none, healthy": inNetwork("n2", named("infra", "idle.infra.svc.cluster.local")),
	}
	for name, gateway := range down {
		t.Run(name, func(t *testing.T) {
			web := service("web", "app", "10.96.0.1")
			b := workload.Batch{Services: []*workload.Service{gws, web}, Workloads: []*workload.Workload{
				pod("near", "app", ips("10.0.0.2"), endpointOf(web)), pod("gw", "infra", ips("172.18.0.2"), inNetwork("n2", nil), endpointOf(gws)),
			}}
			for _, n := range []string{"a", "b", "c", "d", "e"} {
				b.Workloads = append(b.Workloads, pod("far-"+n, "app", gateway, endpointOf(web)))
			}
			v := apply(b)
			lost, asked := 0, 0
			for range 2000 {
				var tried []Endpoint
				for { // as a connection does that every gateway refuses
					d, err := Outbound(v, pod("self", "app"), Options{Tried: tried}, clientAddr, ap("10.96.0.1:80"))
					if err != nil {
						lost++
						break
					}
					if d.Protocol != DoubleHBONE {
						break
					}
					if asked++; slices.Contains(tried, d.Attempt()) {
						t.Fatalf("%+v is asked again", d.Attempt())
					}
					tried = append(tried, d.Attempt())
				}
			}
			if lost > 0 {
				t.Errorf("%d of 2000 connections were lost, though an endpoint is near", lost)
			}
			if there := name == "a service" || name == "an address"; there != (asked > 0) {
				t.Errorf("the gateway was asked %d times", asked)
			}
			rests := func(e Endpoint) bool { return e.UID == "Kubernetes//Pod/infra/gw" }
			for range 200 {
				d, err := Outbound(v, pod("self", "app"), Options{Resting: rests}, clientAddr, ap("10.96.0.1:80"))
				if err != nil || d.Protocol == DoubleHBONE {
					t.Fatalf("%+v, %v: through a gateway that rests", d, err)
				}
			}
		})
	}
	t.Run("of two gateways one", func(t *testing.T) {
		web := service("web", "app", "10.96.0.1")
		v := apply(workload.Batch{Services: []*workload.Service{gws, web}, Workloads: []*workload.Workload{
			pod("gw-1", "infra", ips("172.18.0.1"), inNetwork("n2", nil), endpointOf(gws)), pod("gw-2", "infra", ips("172.18.0.2"), inNetwork("n2", nil), endpointOf(gws)),
			pod("far", "app", down["a service"], endpointOf(web)),
		}})
		first, err := Outbound(v, pod("self", "app"), Options{}, clientAddr, ap("10.96.0.1:80"))
		if err != nil {
			t.Fatal(err)
		}
		second, err := Outbound(v, pod("self", "app"), Options{Tried: []Endpoint{first.Attempt()}}, clientAddr, ap("10.96.0.1:80"))
		if err != nil || second.Dial == first.Dial || second.Destination != first.Destination {
			t.Fatalf("first %v, then %v, %v", first.Dial, second.Dial, err)
		}
		_, err = Outbound(v, pod("self", "app"), Options{Tried: []Endpoint{first.Attempt(), second.Attempt()}}, clientAddr, ap("10.96.0.1:80"))
		if !errors.Is(err, ErrNoHealthyUpstream) || !strings.Contains(err.Error(), "2 tried already") {
			t.Errorf("after both: %v", err)
		}
	})
}

// TestHostnames: endpoints that have a hostname instead of an address.
func TestHostnames(t *testing.T) {
	s, tunnelled := service("db", "app", "240.240.0.1"), service("vm", "app", "240.240.0.2")
	host := pod("db", "app", endpointOf(s), func(w *workload.Workload) { w.Hostname, w.Protocol = "db.example", workload.TCP })
	vm := pod("vm", "app", endpointOf(tunnelled), func(w *workload.Workload) { w.Hostname = "vm.example" })
	v := apply(workload.Batch{Services: []*workload.Service{s, tunnelled}, Workloads: []*workload.Workload{host, vm}})
	for _, tt := range []struct {
		to, host string
		want     Decision
	}{
		{"240.240.0.1:80", "db.example", Decision{Dial: ap("192.0.2.1:8080"), Destination: host, Service: s, ServiceAddressed: true}},
		{"240.240.0.2:80", "vm.example", Decision{Protocol: HBONE, Dial: ap("192.0.2.1:15008"), Authority: auth("192.0.2.1:8080"),
			Expected: Identities{Own: vm.Identities()}, Destination: vm, Service: tunnelled, ServiceAddressed: true}},
	} {
		d, err := Outbound(v, pod("self", "app"), Options{}, clientAddr, ap(tt.to))
		if err != nil || d.Hostname != tt.host || d.Dial.Addr().IsValid() || d.Authority.Addr.IsValid() {
			t.Fatalf("%s: %+v, %v", tt.to, d, err)
		}
		if diff := cmp.Diff(tt.want, d.Resolved(netip.MustParseAddr("192.0.2.1")), cmpDecision); diff != "" {
			t.Errorf("%s resolved (-want +got):\n%s", tt.to, diff)
		}
	}
}
