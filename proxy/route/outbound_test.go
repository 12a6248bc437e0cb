package route

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/xds/workload"
)

var cmpDecision = cmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, spiffeid.ID{}),
	cmp.Comparer(func(a, b *workload.Workload) bool { return a == b || a != nil && b != nil && a.UID == b.UID }),
	cmp.Comparer(func(a, b *workload.Service) bool { return a == b || a != nil && b != nil && a.Key() == b.Key() }),
	cmpopts.IgnoreFields(Decision{}, "Reason", "Endpoint", "Gateway"), // see TestBalanceAgain and TestGatewayDown
}

func pod(name, ns string, mods ...func(*workload.Workload)) *workload.Workload {
	w := &workload.Workload{
		UID: "Kubernetes//Pod/" + ns + "/" + name, Name: name, Namespace: ns, Protocol: workload.HBONE,
		TrustDomain: "cluster.local", ServiceAccount: name, ClusterID: "Kubernetes", Node: "n1",
	}
	for _, m := range mods {
		m(w)
	}
	return w
}

func ips(list ...string) func(*workload.Workload) {
	return func(w *workload.Workload) {
		for _, s := range list {
			w.Addresses = append(w.Addresses, netip.MustParseAddr(s))
		}
	}
}

func endpointOf(s *workload.Service, ports ...workload.Port) func(*workload.Workload) {
	return func(w *workload.Workload) {
		w.Services = append(w.Services, workload.Membership{Service: s.Key(), Ports: workload.NewPortMap(ports...)})
		slices.SortFunc(w.Services, func(a, b workload.Membership) int { return a.Service.Compare(b.Service) })
	}
}

func service(name, ns, vip string, mods ...func(*workload.Service)) *workload.Service {
	s := &workload.Service{
		Name: name, Namespace: ns, Hostname: name + "." + ns + ".svc.cluster.local",
		VIPs:  []workload.NetworkAddr{{Addr: netip.MustParseAddr(vip)}},
		Ports: workload.NewPortMap(workload.Port{Service: 80, Target: 8080}, workload.Port{Service: 81}),
	}
	for _, m := range mods {
		m(s)
	}
	return s
}

func id(ns, sa string) spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://cluster.local/ns/" + ns + "/sa/" + sa)
}

func apply(b workload.Batch) *workload.View {
	s := workload.NewStore()
	s.Apply(b)
	return s.View()
}

var (
	clientAddr = netip.MustParseAddrPort("10.0.0.1:4242")
	auth       = func(s string) Authority {
		a, err := ParseAuthority(s)
		if err != nil {
			panic(err)
		}
		return a
	}
	ap = netip.MustParseAddrPort
)

type outboundCase struct {
	name string
	to   string
	want Decision
	err  error // else
	text string
}

func TestOutbound(t *testing.T) {
	web := service("web", "app", "10.96.0.1")
	named := service("named", "app", "10.96.0.2")
	pass := service("pass", "app", "10.96.0.5", func(s *workload.Service) {
		s.LoadBalancing = &workload.LoadBalancing{Mode: workload.LBPassthrough}
	})
	empty := service("empty", "app", "10.96.0.6")
	sans := service("sans", "app", "10.96.0.7", func(s *workload.Service) {
		s.SubjectAltNames = []string{"spiffe://cluster.local/ns/x/sa/y", "dns.example"}
	})
	both := service("both", "app", "10.0.0.8")
	sick := service("sick", "app", "10.96.0.10")
	hidden := service("hidden", "secret", "10.96.0.11", func(s *workload.Service) { s.Visibility = workload.NamespacePrivate })
	zero := service("zero", "app", "10.96.0.12")
	none := uint32(0)

	self := pod("self", "app", ips("10.0.0.1"))
	a := pod("a", "app", ips("10.0.0.2"), endpointOf(web), endpointOf(named, workload.Port{Service: 81, Target: 9090}), endpointOf(sans))
	shared := pod("shared", "app", ips("10.0.0.8"), endpointOf(both))
	plain := pod("plain", "app", ips("10.0.0.3", "fd00::3"), func(w *workload.Workload) { w.Protocol = workload.TCP })
	node := pod("node", "app", ips("10.0.0.5"), func(w *workload.Workload) { w.NetworkMode = workload.HostNetwork })
	bad := pod("bad", "app", ips("10.0.0.6"), endpointOf(sick), func(w *workload.Workload) { w.Status = workload.Unhealthy })
	weightless := pod("weightless", "app", ips("10.0.0.7"), endpointOf(zero), func(w *workload.Workload) { w.Capacity = &none })
	v := apply(workload.Batch{
		Services:  []*workload.Service{web, named, pass, empty, sans, both, sick, hidden, zero},
		Workloads: []*workload.Workload{self, a, shared, plain, node, bad, weightless},
	})
	hbone := func(s *workload.Service, target string, ids ...spiffeid.ID) Decision {
		to := ap(target)
		return Decision{Protocol: HBONE, Dial: netip.AddrPortFrom(to.Addr(), 15008), Authority: auth(target),
			Expected: identities(ids...), Destination: a, Service: s, ServiceAddressed: s != nil}
	}
	for _, tt := range []outboundCase{
		{name: "unknown address", to: "1.1.1.1:443", want: Decision{Dial: ap("1.1.1.1:443")}},
		{name: "unknown v6 address", to: "[2001:db8::1]:443", want: Decision{Dial: ap("[2001:db8::1]:443")}},
		{name: "workload", to: "10.0.0.2:1234", want: hbone(nil, "10.0.0.2:1234", id("app", "a"))},
		{name: "mapped address", to: "[::ffff:10.0.0.3]:1234", want: Decision{Dial: ap("10.0.0.3:1234"), Destination: plain}},
		{name: "workload outside the mesh", to: "10.0.0.3:1234", want: Decision{Dial: ap("10.0.0.3:1234"), Destination: plain}},
		{name: "its second address", to: "[fd00::3]:1234", want: Decision{Dial: ap("[fd00::3]:1234"), Destination: plain}},
		{name: "workload on the host's network", to: "10.0.0.5:80", want: Decision{Dial: ap("10.0.0.5:80")}},
		{name: "unhealthy workload addressed directly", to: "10.0.0.6:80", want: Decision{Protocol: HBONE, Dial: ap("10.0.0.6:15008"),
			Authority: auth("10.0.0.6:80"), Expected: identities(id("app", "bad")), Destination: bad}},
		{name: "service", to: "10.96.0.1:80", want: hbone(web, "10.0.0.2:8080", id("app", "a"))},
		{name: "port the service lacks", to: "10.96.0.1:82", err: ErrNoHealthyUpstream,
			text: "no healthy upstream: 10.96.0.1:82: service app/web.app.svc.cluster.local has no port 82"},
		{name: "named port nobody has", to: "10.96.0.1:81", err: ErrNoHealthyUpstream, text: "1 without port 81"},
		{name: "named port of the endpoint", to: "10.96.0.2:81", want: hbone(named, "10.0.0.2:9090", id("app", "a"))},
		{name: "service with identities of its own", to: "10.96.0.7:80", want: hbone(sans, "10.0.0.2:8080", id("x", "y"), id("app", "a"))},
		{name: "service and workload at one address", to: "10.0.0.8:80", want: Decision{Protocol: HBONE, Dial: ap("10.0.0.8:15008"),
			Authority: auth("10.0.0.8:8080"), Expected: identities(id("app", "shared")), Destination: shared, Service: both, ServiceAddressed: true}},
		{name: "service that passes through", to: "10.96.0.5:80", want: Decision{Dial: ap("10.96.0.5:80"), Service: pass, ServiceAddressed: true}},
		{name: "service without endpoints", to: "10.96.0.6:80", err: ErrNoHealthyUpstream, text: "has no endpoints"},
		{name: "service with unhealthy endpoints", to: "10.96.0.10:80", err: ErrNoHealthyUpstream, text: "has no endpoint that could be used: 1 not healthy"},
		{name: "service with weightless endpoints", to: "10.96.0.12:80", err: ErrNoHealthyUpstream, text: "1 of weight 0"},
		{name: "service of another namespace that hides it", to: "10.96.0.11:80", want: Decision{Dial: ap("10.96.0.11:80")}},
		{name: "loopback and our port", to: "127.0.0.1:15008", err: ErrRecursive},
		{name: "loopback v6 and our port", to: "[::1]:15001", err: ErrRecursive},
		{name: "loopback mapped and our port", to: "[::ffff:127.0.0.1]:15006", err: ErrRecursive},
		{name: "loopback and another port", to: "127.0.0.1:15000", want: Decision{Dial: ap("127.0.0.1:15000")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Outbound(v, self, Options{}, clientAddr, ap(tt.to))
			if !errors.Is(err, tt.err) || tt.err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("error %v, want %v with %q", err, tt.err, tt.text)
			}
			if diff := cmp.Diff(tt.want, got, cmpDecision); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
		})
	}
	if _, err := Outbound(v, nil, Options{}, clientAddr, ap("1.1.1.1:80")); !errors.Is(err, ErrNoRoute) {
		t.Errorf("without a workload of its own: %v", err)
	}
}

// TestOutboundFamilies: which of an endpoint's addresses is used.
func TestOutboundFamilies(t *testing.T) {
	for _, tt := range []struct {
		name     string
		families workload.IPFamilies
		addrs    []string
		vip      string
		want     string // empty: none
	}{
		{"same family", workload.Automatic, []string{"10.0.0.2", "fd00::2"}, "10.96.0.1", "10.0.0.2"},
		{"same family v6", workload.Automatic, []string{"10.0.0.2", "fd00::2"}, "fd96::1", "fd00::2"},
		{"only the other family", workload.Dual, []string{"fd00::2"}, "10.96.0.1", "fd00::2"},
		{"v4 only", workload.IPv4Only, []string{"fd00::2", "10.0.0.2"}, "fd96::1", "10.0.0.2"},
		{"v6 only", workload.IPv6Only, []string{"10.0.0.2", "fd00::2"}, "10.96.0.1", "fd00::2"},
		{"none of the family", workload.IPv6Only, []string{"10.0.0.2"}, "10.96.0.1", ""},
		{"the address asked for", workload.IPv6Only, []string{"10.96.0.1", "fd00::2"}, "10.96.0.1", "10.96.0.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := service("web", "app", tt.vip, func(s *workload.Service) { s.IPFamilies = tt.families })
			self := pod("self", "app")
			v := apply(workload.Batch{Services: []*workload.Service{s}, Workloads: []*workload.Workload{pod("a", "app", ips(tt.addrs...), endpointOf(s))}})
			d, err := Outbound(v, self, Options{}, clientAddr, netip.AddrPortFrom(netip.MustParseAddr(tt.vip), 80))
			if tt.want == "" {
				if !errors.Is(err, ErrNoRoute) {
					t.Fatalf("error %v", err)
				}
				return
			}
			if err != nil || d.Dial.Addr() != netip.MustParseAddr(tt.want) {
				t.Errorf("dial %v (%v), want %s", d.Dial, err, tt.want)
			}
		})
	}
}

// TestBalance: which endpoints get traffic, and how it is shared.
func TestBalance(t *testing.T) {
	at := func(region, zone, node string) func(*workload.Workload) {
		return func(w *workload.Workload) {
			w.Locality, w.Node = workload.Locality{Region: region, Zone: zone}, node
		}
	}
	weight := func(n uint32) func(*workload.Workload) { return func(w *workload.Workload) { w.Capacity = &n } }
	sick := func(w *workload.Workload) { w.Status = workload.Unhealthy }
	lb := func(m workload.LBMode, p ...workload.Scope) *workload.LoadBalancing {
		return &workload.LoadBalancing{Mode: m, Preferences: p}
	}
	type ep struct {
		mods  []func(*workload.Workload)
		share float64
	}
	for _, tt := range []struct {
		name string
		lb   *workload.LoadBalancing
		eps  []ep
	}{
		{"all alike", nil, []ep{{nil, .5}, {nil, .5}}},
		{"by weight", nil, []ep{{[]func(*workload.Workload){weight(1)}, .25}, {[]func(*workload.Workload){weight(3)}, .75}}},
		{"weight zero gets none", nil, []ep{{[]func(*workload.Workload){weight(0)}, 0}, {nil, 1}}},
		{"unhealthy gets none", nil, []ep{{[]func(*workload.Workload){sick}, 0}, {nil, .5}, {nil, .5}}},
		{"unless all are allowed", &workload.LoadBalancing{HealthPolicy: workload.AllowAll}, []ep{{[]func(*workload.Workload){sick}, .5}, {nil, .5}}},
		{"mode without preferences", lb(workload.LBFailover), []ep{{nil, .5}, {nil, .5}}},
		{"failover to the same zone", lb(workload.LBFailover, workload.Region, workload.Zone), []ep{
			{[]func(*workload.Workload){at("r", "z", "")}, 1}, {[]func(*workload.Workload){at("r", "x", "")}, 0}, {[]func(*workload.Workload){at("q", "z", "")}, 0}}},
		{"failover to the same region", lb(workload.LBFailover, workload.Region, workload.Zone), []ep{
			{[]func(*workload.Workload){at("r", "x", "")}, .5}, {[]func(*workload.Workload){at("r", "y", "")}, .5}, {[]func(*workload.Workload){at("q", "z", "")}, 0}}},
		{"failover to anywhere", lb(workload.LBFailover, workload.Region), []ep{{[]func(*workload.Workload){at("p", "", "")}, .5}, {[]func(*workload.Workload){at("q", "", "")}, .5}}},
		{"failover past unhealthy ones", lb(workload.LBFailover, workload.Region), []ep{
			{[]func(*workload.Workload){at("r", "", ""), sick}, 0}, {[]func(*workload.Workload){at("q", "", "")}, 1}}},
		{"failover by network, then the rest", lb(workload.LBFailover, workload.Network, workload.Region, workload.Zone), []ep{
			{[]func(*workload.Workload){at("q", "", "")}, 0}, {[]func(*workload.Workload){at("r", "z", "")}, 1}}},
		{"strict node", lb(workload.LBStrict, workload.Node), []ep{{[]func(*workload.Workload){at("", "", "n1")}, 1}, {[]func(*workload.Workload){at("", "", "n2")}, 0}}},
		{"strict and nobody fits", lb(workload.LBStrict, workload.Node), []ep{{[]func(*workload.Workload){at("", "", "n2")}, 0}}},
		{"strict cluster and network", lb(workload.LBStrict, workload.Network, workload.Cluster), []ep{{nil, 1}, {[]func(*workload.Workload){func(w *workload.Workload) { w.ClusterID = "x" }}, 0}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := service("web", "app", "10.96.0.1", func(s *workload.Service) { s.LoadBalancing = tt.lb })
			self := pod("self", "app", at("r", "z", "n1"))
			b := workload.Batch{Services: []*workload.Service{s}}
			for i, e := range tt.eps {
				mods := append([]func(*workload.Workload){ips(fmt.Sprintf("10.0.0.%d", i)), endpointOf(s)}, e.mods...)
				b.Workloads = append(b.Workloads, pod(fmt.Sprint(i), "app", mods...))
			}
			v := apply(b)
			random := rand.New(rand.NewPCG(1, 2))
			const rounds = 4000
			got := make([]float64, len(tt.eps))
			for range rounds {
				if d, err := Outbound(v, self, Options{Rand: random.Uint64N}, clientAddr, ap("10.96.0.1:80")); err == nil {
					got[d.Dial.Addr().As4()[3]] += 1.0 / rounds
				}
			}
			for i, e := range tt.eps {
				if exact := e.share == 0 || e.share == 1; exact && got[i] < e.share-1e-9 || exact && got[i] > e.share+1e-9 || got[i] < e.share-.04 || got[i] > e.share+.04 {
					t.Errorf("endpoint %d got %.3f, want %.2f", i, got[i], e.share)
				}
			}
		})
	}
}

// TestRemoteEndpoints: an endpoint of another network is second to our own.
func TestRemoteEndpoints(t *testing.T) {
	s := service("web", "app", "10.96.0.1", func(s *workload.Service) {
		s.LoadBalancing = &workload.LoadBalancing{Mode: workload.LBFailover, Preferences: []workload.Scope{workload.Network, workload.Region}}
	})
	self := pod("self", "app", func(w *workload.Workload) { w.Locality.Region = "r" })
	near := pod("near", "app", ips("10.0.0.2"), endpointOf(s), func(w *workload.Workload) { w.Locality.Region = "q" })
	far := pod("far", "app", ips("10.0.0.2"), endpointOf(s), func(w *workload.Workload) { w.Network, w.Locality.Region = "n2", "r" })
	v := apply(workload.Batch{Services: []*workload.Service{s}, Workloads: []*workload.Workload{near, far}})
	for range 50 {
		d, err := Outbound(v, self, Options{}, clientAddr, ap("10.96.0.1:80"))
		if err != nil || d.Destination.UID != near.UID {
			t.Fatalf("went to %v (%v)", d.Destination, err)
		}
	}
}

// bench is a service of n endpoints and the pod that asks.
func bench(n int, lb *workload.LoadBalancing) (*workload.View, *workload.Workload) {
	s := service("web", "app", "10.96.0.1", func(s *workload.Service) { s.LoadBalancing = lb })
	self := pod("self", "app")
	b := workload.Batch{Services: []*workload.Service{s}, Workloads: []*workload.Workload{self}}
	for i := range n {
		b.Workloads = append(b.Workloads, pod(fmt.Sprint(i), "app", ips(fmt.Sprintf("10.1.%d.%d", i/250, i%250)), endpointOf(s)))
	}
	v := apply(b)
	return v, v.WorkloadByUID(self.UID)
}

// identities are those of the services, then one of the workload's own.
func identities(ids ...spiffeid.ID) Identities {
	if len(ids) < 2 {
		return Identities{Own: ids}
	}
	return Identities{SANs: ids[:len(ids)-1], Own: ids[len(ids)-1:]}
}

// way is a decision that is made for every connection of its kind.
type way struct {
	name string
	v    *workload.View
	self *workload.Workload
	to   string
}

// ways are the decisions whose cost counts, in a mesh of n endpoints.
func ways(n int) []way {
	v, self := bench(n, nil)
	failover, _ := bench(n, &workload.LoadBalancing{Mode: workload.LBFailover, Preferences: []workload.Scope{workload.Region}})
	judged, pods, _ := waypointWorld()
	caller := judged.WorkloadByUID(pods["self"].UID)
	sans := func(s *workload.Service) {
		s.SubjectAltNames = []string{"spiffe://cluster.local/ns/x/sa/a", "spiffe://cluster.local/ns/x/sa/b"}
	}
	gws := service("gws", "infra", "10.96.9.1", sans, func(s *workload.Service) { s.Ports = workload.NewPortMap(workload.Port{Service: 15008, Target: 15009}) })
	alt, away := service("alt", "app", "10.96.0.1", sans), service("away", "app", "10.96.0.2", sans)
	names := apply(workload.Batch{Services: []*workload.Service{gws, alt, away}, Workloads: []*workload.Workload{
		self, pod("a", "app", ips("10.0.0.2"), endpointOf(alt)), pod("gw", "infra", ips("10.0.0.9"), endpointOf(gws)),
		pod("far", "app", inNetwork("n2", named("infra", gws.Hostname)), endpointOf(away)),
	}})
	return []way{
		{"passthrough", v, self, "1.1.1.1:80"},
		{"workload", v, self, "10.1.0.7:80"},
		{"service", v, self, "10.96.0.1:80"},
		{"failover", failover, self, "10.96.0.1:80"},
		{"names of a service", names, self, "10.96.0.1:80"},
		{"gateway", names, self, "10.96.0.2:80"},
		{"waypoint", judged, caller, "10.96.0.3:80"},
		{"waypoint by hostname", judged, caller, "10.96.0.1:80"},
		{"weighted waypoint", judged, caller, "10.96.0.8:80"},
	}
}

// arrivals are CONNECTs that reach the pod at 10.0.0.2, by their authority.
var arrivals = map[string]string{"address": "10.0.0.2:8080", "hostname": "web.app.svc.cluster.local:80"}

func TestAllocations(t *testing.T) {
	none := func(t *testing.T, decide func() error) {
		if n := testing.AllocsPerRun(200, func() {
			if err := decide(); err != nil {
				t.Fatal(err)
			}
		}); n > 0 {
			t.Errorf("%v allocations a decision, want none", n)
		}
	}
	for _, w := range ways(100) {
		t.Run(w.name, func(t *testing.T) {
			to := ap(w.to)
			none(t, func() error { _, err := Outbound(w.v, w.self, Options{}, clientAddr, to); return err })
		})
	}
	v, pods, _ := waypointWorld()
	self, at := v.WorkloadByUID(pods["a"].UID), ap("10.0.0.2:15008")
	for name, authority := range arrivals {
		t.Run("inbound by "+name, func(t *testing.T) {
			none(t, func() error {
				if _, refusal := Inbound(v, self, at, authority); refusal != nil {
					return refusal.Err
				}
				return nil
			})
		})
	}
}

func BenchmarkOutbound(b *testing.B) {
	for _, n := range []int{1, 100, 10000} {
		for name, lb := range map[string]*workload.LoadBalancing{
			"all": nil, "failover": {Mode: workload.LBFailover, Preferences: []workload.Scope{workload.Network, workload.Region, workload.Zone}},
		} {
			v, self := bench(n, lb)
			to := ap("10.96.0.1:80")
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := Outbound(v, self, Options{}, clientAddr, to); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkDecisions: what a node decides most often, on all its CPUs at once.
func BenchmarkDecisions(b *testing.B) {
	measure := func(name string, decide func() bool) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if !decide() {
						b.Error("refused")
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
		})
	}
	for _, w := range ways(10000) {
		to := ap(w.to)
		measure(w.name, func() bool { _, err := Outbound(w.v, w.self, Options{}, clientAddr, to); return err == nil })
	}
	v, pods, _ := waypointWorld()
	self, at := v.WorkloadByUID(pods["a"].UID), ap("10.0.0.2:15008")
	for name, authority := range arrivals {
		measure("inbound by "+name, func() bool { _, refusal := Inbound(v, self, at, authority); return refusal == nil })
	}
}
