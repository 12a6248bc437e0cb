package route

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warren-mesh/warren/xds/workload"
)

// By name and by address: the two forms of a gateway's address.
func named(ns, host string) *workload.GatewayAddress {
	return &workload.GatewayAddress{Hostname: workload.NamespacedHostname{Namespace: ns, Hostname: host}, HBONEPort: 15008}
}

func addressed(network, ip string) *workload.GatewayAddress {
	return &workload.GatewayAddress{Address: workload.NetworkAddr{Network: network, Addr: netip.MustParseAddr(ip)}, HBONEPort: 15008}
}

func behind(g *workload.GatewayAddress) func(*workload.Service) {
	return func(s *workload.Service) { s.Waypoint = g }
}

// waypointPorts is what a waypoint's service has.
func waypointPorts(s *workload.Service) {
	s.Ports = workload.NewPortMap(workload.Port{Service: 15008, Target: 15008}, workload.Port{Service: 15021, Target: 15021})
}

func inTunnel(kind workload.TunnelKind, port uint16) func(*workload.Workload) {
	return func(w *workload.Workload) {
		w.ApplicationTunnel = &workload.ApplicationTunnel{Protocol: kind, Port: port}
	}
}

// waypointWorld has services and pods behind waypoints of every kind.
func waypointWorld() (*workload.View, map[string]*workload.Workload, map[string]*workload.Service) {
	byName, byVIP := named("infra", "wp.infra.svc.cluster.local"), addressed("", "10.96.1.1")
	services := map[string]*workload.Service{}
	add := func(name, ns, vip string, mods ...func(*workload.Service)) *workload.Service {
		s := service(name, ns, vip, mods...)
		services[name] = s
		return s
	}
	wp := add("wp", "infra", "10.96.1.1", waypointPorts, behind(byName), func(s *workload.Service) { s.SubjectAltNames = []string{"spiffe://cluster.local/ns/x/sa/wp"} })
	sandwich := add("sandwich", "infra", "10.96.1.2", func(s *workload.Service) { s.Ports = workload.NewPortMap(workload.Port{Service: 15021, Target: 15021}) })
	add("gone", "infra", "10.96.1.3", waypointPorts)
	sick := add("sick", "infra", "10.96.1.4", waypointPorts)
	other := add("other", "infra", "10.96.1.5", waypointPorts, behind(byName))
	web := add("web", "app", "10.96.0.1", behind(byName))
	add("vip", "app", "10.96.0.2", behind(byVIP))
	add("ip", "app", "10.96.0.3", behind(addressed("", "10.0.1.1")))
	add("nameless", "app", "10.96.0.4", behind(named("infra", "nobody.example")))
	add("lost", "app", "10.96.0.5", behind(addressed("n9", "10.0.1.1")))
	add("empty", "app", "10.96.0.6", behind(named("infra", "gone.infra.svc.cluster.local")))
	add("sickly", "app", "10.96.0.7", behind(named("infra", "sick.infra.svc.cluster.local")))
	add("canary", "app", "10.96.0.8", behind(byName), func(s *workload.Service) {
		s.WeightedWaypoints = []workload.WeightedWaypoint{
			{Destination: *named("infra", "nobody.example"), Weight: 0}, {Destination: *named("infra", "other.infra.svc.cluster.local"), Weight: 7}}
	})
	add("weightless", "app", "10.96.0.9", behind(byName), func(s *workload.Service) {
		s.WeightedWaypoints = []workload.WeightedWaypoint{{Destination: *named("infra", "nobody.example")}}
	})
	add("layered", "app", "10.96.0.10", behind(named("infra", "sandwich.infra.svc.cluster.local")))
	add("host", "app", "10.96.0.11", behind(named("infra", "wp-a")))
	add("resolved", "app", "10.96.0.12", behind(named("infra", "wp.example")))
	add("pass", "app", "10.96.0.13", behind(byName), func(s *workload.Service) { s.LoadBalancing = &workload.LoadBalancing{Mode: workload.LBPassthrough} })
	add("portless", "app", "10.96.0.14", behind(&workload.GatewayAddress{Hostname: wp.Key()}))
	pods := map[string]*workload.Workload{}
	for _, w := range []*workload.Workload{
		pod("self", "app", ips("10.0.0.1")),
		pod("a", "app", ips("10.0.0.2"), endpointOf(web), func(w *workload.Workload) { w.Waypoint = byName }),
		pod("direct", "app", ips("10.0.0.3"), func(w *workload.Workload) { w.Waypoint = addressed("", "10.0.1.1") }),
		pod("wp-a", "infra", ips("10.0.1.1", "fd00::1:1"), endpointOf(wp), func(w *workload.Workload) { w.Hostname = "WP-a" }),
		pod("wp-b", "infra", ips("10.0.1.2"), endpointOf(other)),
		pod("wp-c", "infra", ips("10.0.1.3"), endpointOf(sandwich), inTunnel(workload.TunnelProxy, 15088)),
		pod("wp-d", "infra", func(w *workload.Workload) { w.Hostname = "wp.example" }),
		pod("wp-e", "infra", ips("10.0.1.5"), endpointOf(sick), func(w *workload.Workload) { w.Status = workload.Unhealthy }),
	} {
		pods[w.Name] = w
	}
	var b workload.Batch
	for _, s := range services {
		b.Services = append(b.Services, s)
	}
	for _, w := range pods {
		b.Workloads = append(b.Workloads, w)
	}
	return apply(b), pods, services
}

func TestWaypoints(t *testing.T) {
	v, pods, services := waypointWorld()
	to := func(wp, s, authority string) Decision {
		d := Decision{Protocol: HBONE, Dial: netip.AddrPortFrom(pods[wp].Addresses[0], 15008), Authority: auth(authority),
			Expected: Identities{Own: pods[wp].Identities()}, Destination: pods[wp], Service: services[s], ServiceAddressed: s != "", Waypoint: true}
		if wp == "wp-a" {
			d.Expected = identities(append(services["wp"].SANs(), id("infra", "wp-a"))...)
		}
		return d
	}
	alone := func(d Decision) Decision { // not found by its service, but as a workload
		d.Expected = Identities{Own: d.Destination.Identities()}
		return d
	}
	straight := Decision{Protocol: HBONE, Dial: ap("10.0.0.2:15008"), Authority: auth("10.0.0.2:8080"), Expected: Identities{Own: pods["a"].Identities()},
		Destination: pods["a"], Service: services["web"], ServiceAddressed: true}
	for _, tt := range []struct {
		outboundCase
		self string
	}{
		{outboundCase: outboundCase{name: "by hostname", to: "10.96.0.1:80", want: to("wp-a", "web", "10.96.0.1:80")}},
		{outboundCase: outboundCase{name: "a port that the service lacks is the waypoint's to refuse", to: "10.96.0.1:99", want: to("wp-a", "web", "10.96.0.1:99")}},
		{outboundCase: outboundCase{name: "by address of its service", to: "10.96.0.2:80", want: to("wp-a", "vip", "10.96.0.2:80")}},
		{outboundCase: outboundCase{name: "by address of its pod", to: "10.96.0.3:80", want: alone(to("wp-a", "ip", "10.96.0.3:80"))}},
		{outboundCase: outboundCase{name: "by hostname of its pod", to: "10.96.0.11:80", want: alone(to("wp-a", "host", "10.96.0.11:80"))}},
		{outboundCase: outboundCase{name: "by hostname without address", to: "10.96.0.12:80", want: Decision{Protocol: HBONE, Dial: netip.AddrPortFrom(netip.Addr{}, 15008),
			Hostname: "wp.example", Authority: auth("10.96.0.12:80"), Expected: Identities{Own: pods["wp-d"].Identities()}, Destination: pods["wp-d"],
			Service: services["resolved"], ServiceAddressed: true, Waypoint: true}}},
		{outboundCase: outboundCase{name: "without a port of its own", to: "10.96.0.14:80", want: to("wp-a", "portless", "10.96.0.14:80")}},
		{outboundCase: outboundCase{name: "that takes tunnels on a port its service lacks", to: "10.96.0.10:80", want: to("wp-c", "layered", "10.96.0.10:80")}},
		{outboundCase: outboundCase{name: "before passing through", to: "10.96.0.13:80", want: to("wp-a", "pass", "10.96.0.13:80")}},
		{outboundCase: outboundCase{name: "by weight", to: "10.96.0.8:80", want: to("wp-b", "canary", "10.96.0.8:80")}},
		{outboundCase: outboundCase{name: "weights of zero count for nothing", to: "10.96.0.9:80", want: to("wp-a", "weightless", "10.96.0.9:80")}},
		{outboundCase: outboundCase{name: "of a workload", to: "10.0.0.2:1234", want: to("wp-a", "", "10.0.0.2:1234")}},
		{outboundCase: outboundCase{name: "of a workload by address", to: "10.0.0.3:1234", want: alone(to("wp-a", "", "10.0.0.3:1234"))}},
		{outboundCase: outboundCase{name: "of a waypoint's own service", to: "10.96.1.1:15021", want: to("wp-a", "wp", "10.96.1.1:15021")}},
		{outboundCase: outboundCase{name: "of another waypoint's service", to: "10.96.1.5:15021", want: to("wp-a", "other", "10.96.1.5:15021")}},

		{outboundCase: outboundCase{name: "nobody has its name", to: "10.96.0.4:80", err: ErrUnknownWaypoint, text: "unknown waypoint: infra/nobody.example: no service"}},
		{outboundCase: outboundCase{name: "nobody has its address", to: "10.96.0.5:80", err: ErrUnknownWaypoint, text: "unknown waypoint: n9/10.0.1.1: no service"}},
		{outboundCase: outboundCase{name: "has no endpoints", to: "10.96.0.6:80", err: ErrNoHealthyUpstream,
			text: "no healthy upstream: waypoint infra/gone.infra.svc.cluster.local: service infra/gone.infra.svc.cluster.local has no endpoints"}},
		{outboundCase: outboundCase{name: "is not healthy", to: "10.96.0.7:80", err: ErrNoHealthyUpstream, text: "could be used: 1 not healthy"}},

		// What a waypoint sends on is not sent back.
		{self: "wp-a", outboundCase: outboundCase{name: "calls a service of its own", to: "10.96.0.1:80", want: straight}},
		{self: "wp-a", outboundCase: outboundCase{name: "calls a workload of its own", to: "10.0.0.2:80", want: Decision{Protocol: HBONE, Dial: ap("10.0.0.2:15008"),
			Authority: auth("10.0.0.2:80"), Expected: Identities{Own: pods["a"].Identities()}, Destination: pods["a"]}}},
		{self: "wp-a", outboundCase: outboundCase{name: "calls a workload of its own, by address", to: "10.0.0.3:80", want: Decision{Protocol: HBONE, Dial: ap("10.0.0.3:15008"),
			Authority: auth("10.0.0.3:80"), Expected: Identities{Own: pods["direct"].Identities()}, Destination: pods["direct"]}}},
		{self: "wp-a", outboundCase: outboundCase{name: "calls itself", to: "10.96.1.1:15021", want: Decision{Protocol: HBONE, Dial: ap("10.0.1.1:15008"), Authority: auth("10.0.1.1:15021"),
			Expected: to("wp-a", "", "1.1.1.1:1").Expected, Destination: pods["wp-a"], Service: services["wp"], ServiceAddressed: true}}},
		{self: "wp-b", outboundCase: outboundCase{name: "a waypoint by weight", to: "10.96.0.8:80", err: ErrNoHealthyUpstream, text: "10.96.0.8:80: service app/canary.app.svc.cluster.local has no endpoints"}},
		{self: "wp-a", outboundCase: outboundCase{name: "the other one of two by weight", to: "10.96.0.8:80", err: ErrNoHealthyUpstream, text: "has no endpoints"}},
		{self: "wp-b", outboundCase: outboundCase{name: "a waypoint of others has a waypoint", to: "10.96.0.1:80", want: to("wp-a", "web", "10.96.0.1:80")}},
	} {
		t.Run(tt.self+tt.name, func(t *testing.T) {
			self := pods["self"]
			if tt.self != "" {
				self = pods[tt.self]
			}
			got, err := Outbound(v, v.WorkloadByUID(self.UID), Options{}, netip.AddrPortFrom(self.Addresses[0], 4242), ap(tt.to))
			if !errors.Is(err, tt.err) || tt.err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("error %v, want %v with %q", err, tt.err, tt.text)
			}
			if diff := cmp.Diff(tt.want, got, cmpDecision); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
		})
	}
}

// A waypoint that the control plane does not know yet is known by its address,
// and only if it is the waypoint's identity that asks.
func TestWaypointByAddress(t *testing.T) {
	v, _, _ := waypointWorld()
	for _, tt := range []struct {
		account, client string
		straight        bool
	}{
		{"wp-a", "10.0.1.1:4242", true},
		{"wp-a", "10.0.1.9:4242", false},
		{"self", "10.0.1.1:4242", false},
	} {
		self := &workload.Workload{Name: "new", Namespace: "infra", ServiceAccount: tt.account, TrustDomain: "cluster.local"}
		d, err := Outbound(v, self, Options{}, ap(tt.client), ap("10.96.0.1:80"))
		if err != nil || d.Waypoint == tt.straight {
			t.Errorf("%s from %s: %+v, %v", tt.account, tt.client, d, err)
		}
	}
}

// Weighted waypoints share what is new by their weights.
func TestWeightedWaypoints(t *testing.T) {
	s := service("web", "app", "10.96.0.1", func(s *workload.Service) {
		s.WeightedWaypoints = []workload.WeightedWaypoint{
			{Destination: *addressed("", "10.0.1.1"), Weight: 4_000_000_000}, {Destination: *addressed("", "10.0.1.2"), Weight: 2_000_000_000}}
	})
	v := apply(workload.Batch{Services: []*workload.Service{s}, Workloads: []*workload.Workload{
		pod("self", "app", ips("10.0.0.1")), pod("a", "infra", ips("10.0.1.1")), pod("b", "infra", ips("10.0.1.2")),
	}})
	for _, tt := range []struct {
		n    uint64
		want string
	}{{0, "10.0.1.1"}, {3_999_999_999, "10.0.1.1"}, {4_000_000_000, "10.0.1.2"}, {5_999_999_999, "10.0.1.2"}} {
		d, err := Outbound(v, pod("self", "app"), Options{Rand: func(n uint64) uint64 {
			if n != 6_000_000_000 {
				t.Errorf("drew out of %d", n)
			}
			return tt.n
		}}, clientAddr, ap("10.96.0.1:80"))
		if err != nil || d.Dial.Addr().String() != tt.want {
			t.Errorf("%d: to %s, %v; want %s", tt.n, d.Dial, err, tt.want)
		}
	}
}

// Where all of one weighted waypoint has been tried another one takes the connection, by
// weight; one of weight 0 does not, nor does any take what was not tried.
func TestWeightedWaypointsAfterATry(t *testing.T) {
	serves := func(s *workload.Service) workload.WeightedWaypoint {
		return workload.WeightedWaypoint{Destination: *named("infra", s.Hostname), Weight: 1}
	}
	a, b := service("a", "infra", "10.96.1.1", waypointPorts), service("b", "infra", "10.96.1.2", waypointPorts)
	c, off := service("c", "infra", "10.96.1.3", waypointPorts), service("off", "infra", "10.96.1.4", waypointPorts)
	web := service("web", "app", "10.96.0.1", func(s *workload.Service) {
		s.WeightedWaypoints = []workload.WeightedWaypoint{serves(a), serves(b), serves(c), serves(off)}
		s.WeightedWaypoints[3].Weight = 0
	})
	v := apply(workload.Batch{Services: []*workload.Service{a, b, c, off, web}, Workloads: []*workload.Workload{
		pod("a1", "infra", ips("10.0.1.1"), endpointOf(a)), pod("b1", "infra", ips("10.0.1.2"), endpointOf(b)),
		pod("b2", "infra", ips("10.0.1.3"), endpointOf(b)), pod("off1", "infra", ips("10.0.1.4"), endpointOf(off)),
	}})
	tried := func(names ...string) (list []Endpoint) {
		for _, n := range names {
			list = append(list, Endpoint{UID: "Kubernetes//Pod/infra/" + n, Addr: netip.MustParseAddr(map[string]string{"a1": "10.0.1.1", "b1": "10.0.1.2", "b2": "10.0.1.3"}[n]), Port: 15008})
		}
		return list
	}
	for _, tt := range []struct {
		draws []uint64 // of a, b, c; then among who is left
		tried []Endpoint
		want  string
	}{
		{[]uint64{0}, nil, "a1"}, {[]uint64{2}, nil, ""}, // c has nobody: not by this waypoint is not past it
		{[]uint64{0, 0}, tried("a1"), "b1"}, {[]uint64{0, 1, 0}, tried("a1"), "b1"}, {[]uint64{2, 0}, tried("b1"), "a1"},
		{[]uint64{1}, tried("a1", "b1"), "b2"}, {[]uint64{0, 1, 0}, tried("a1", "b1", "b2"), ""},
	} {
		draws := tt.draws
		d, err := Outbound(v, pod("self", "app"), Options{Tried: tt.tried, Rand: func(n uint64) uint64 {
			if len(draws) == 0 {
				return 0
			}
			next := draws[0]
			draws = draws[1:]
			return min(next, n-1)
		}}, clientAddr, ap("10.96.0.1:80"))
		got := ""
		if err == nil {
			got = d.Destination.Name
		}
		if got != tt.want {
			t.Errorf("drawn %v, %d tried: %q, %v; want %q", tt.draws, len(tt.tried), got, err, tt.want)
		}
	}
}

// Between two addresses of a waypoint the client's family decides.
func TestWaypointFamilies(t *testing.T) {
	v, _, services := waypointWorld()
	web := *services["web"]
	web.VIPs = append(web.VIPs, workload.NetworkAddr{Addr: netip.MustParseAddr("fd96::1")})
	s := workload.NewStore()
	s.Apply(workload.Batch{Services: v.Services(), Workloads: v.Workloads()})
	s.Apply(workload.Batch{Services: []*workload.Service{&web}})
	for to, want := range map[string]string{"10.96.0.1:80": "10.0.1.1:15008", "[fd96::1]:80": "[fd00::1:1]:15008"} {
		if d, err := Outbound(s.View(), pod("self", "app"), Options{}, clientAddr, ap(to)); err != nil || d.Dial != ap(want) || d.Authority != auth(to) {
			t.Errorf("%s: %+v, %v", to, d, err)
		}
	}
}

// A range around a workload's address does not take its traffic.
func TestRangeAndWorkload(t *testing.T) {
	all := service("all", "app", "10.96.0.1", func(s *workload.Service) {
		s.VIPs = nil
		s.CIDRs = []workload.NetworkPrefix{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}}
		s.LoadBalancing = &workload.LoadBalancing{Mode: workload.LBPassthrough}
	})
	narrow := service("narrow", "other", "10.96.0.1", func(s *workload.Service) {
		s.VIPs = nil
		s.CIDRs = []workload.NetworkPrefix{{Prefix: netip.MustParsePrefix("10.1.0.0/16")}}
	})
	a, b := pod("a", "app", ips("10.0.0.2")), pod("b", "app", ips("10.0.0.3"), endpointOf(narrow))
	v := apply(workload.Batch{Services: []*workload.Service{all, narrow}, Workloads: []*workload.Workload{a, b}})
	for _, tt := range []struct {
		to, ns, dial string
		protocol     Protocol
	}{
		{"10.0.0.2:80", "app", "10.0.0.2:15008", HBONE},   // the workload itself
		{"10.9.0.2:80", "app", "10.9.0.2:80", TCP},        // the range
		{"10.1.0.2:80", "app", "10.1.0.2:80", TCP},        // the range of one's own namespace
		{"10.1.0.2:80", "third", "10.0.0.3:15008", HBONE}, // the narrower one
		{"10.1.0.2:80", "other", "10.0.0.3:15008", HBONE}, // the own and the narrower one
		{"192.168.0.1:80", "app", "192.168.0.1:80", TCP},  // neither
	} {
		d, err := Outbound(v, pod("self", tt.ns), Options{}, clientAddr, ap(tt.to))
		if err != nil || d.Dial != ap(tt.dial) || d.Protocol != tt.protocol {
			t.Errorf("%s from %s: %s %s, %v; want %s %s", tt.to, tt.ns, d.Protocol, d.Dial, err, tt.protocol, tt.dial)
		}
	}
}
