package workload

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"
)

var cmpModel = cmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, spiffeid.ID{}),
	cmpopts.IgnoreUnexported(Workload{}, Service{}),
	cmpopts.EquateEmpty(),
}

func fullWorkload() *workloadapi.Workload {
	return &workloadapi.Workload{
		Uid: "Kubernetes//Pod/app/p", Name: "p", Namespace: "app", Addresses: [][]byte{{10, 0, 0, 1}, netip.MustParseAddr("fd00::1").AsSlice()},
		Hostname: "p.example", Network: "n1", TunnelProtocol: workloadapi.TunnelProtocol_HBONE, TrustDomain: "td.example",
		ServiceAccount: "sa", Node: "node", CanonicalName: "c", CanonicalRevision: "v1", WorkloadType: workloadapi.WorkloadType_JOB,
		WorkloadName: "w", NativeTunnel: true, Status: workloadapi.WorkloadStatus_UNHEALTHY, ClusterId: "c1",
		Waypoint: gateway("app", "wp.app"), NetworkGateway: gatewayIP(10, 9, 9, 9),
		ApplicationTunnel:     &workloadapi.ApplicationTunnel{Protocol: workloadapi.ApplicationTunnel_PROXY, Port: 15088},
		Services:              map[string]*workloadapi.PortList{"app/web.app": {Ports: []*workloadapi.Port{{ServicePort: 80, TargetPort: 8080}}}},
		AuthorizationPolicies: []string{"app/p"}, Locality: &workloadapi.Locality{Region: "r", Zone: "z", Subzone: "s"},
		NetworkMode: workloadapi.NetworkMode_HOST_NETWORK, Capacity: wrapperspb.UInt32(3),
	}
}

func gateway(ns, host string) *workloadapi.GatewayAddress {
	return &workloadapi.GatewayAddress{HboneMtlsPort: 15008, Destination: &workloadapi.GatewayAddress_Hostname{
		Hostname: &workloadapi.NamespacedHostname{Namespace: ns, Hostname: host}}}
}

func gatewayIP(ip ...byte) *workloadapi.GatewayAddress {
	return &workloadapi.GatewayAddress{HboneMtlsPort: 15008, Destination: &workloadapi.GatewayAddress_Address{
		Address: &workloadapi.NetworkAddress{Network: "n2", Address: ip}}}
}

func fullService() *workloadapi.Service {
	return &workloadapi.Service{
		Name: "web", Namespace: "app", Hostname: "web.app",
		Addresses: []*workloadapi.NetworkAddress{
			{Network: "n1", Address: []byte{10, 96, 0, 1}},
			{Address: []byte{10, 97, 0, 0}, Length: proto.Uint32(16)},
		},
		Ports:           []*workloadapi.Port{{ServicePort: 80, TargetPort: 8080, AppProtocol: workloadapi.AppProtocol_HTTP2}, {ServicePort: 81}},
		SubjectAltNames: []string{"spiffe://td.example/ns/x/sa/y", "dns.example"}, Waypoint: gateway("app", "wp.app"),
		LoadBalancing: &workloadapi.LoadBalancing{
			Mode:              workloadapi.LoadBalancing_FAILOVER,
			RoutingPreference: []workloadapi.LoadBalancing_Scope{workloadapi.LoadBalancing_NETWORK, workloadapi.LoadBalancing_REGION},
			HealthPolicy:      workloadapi.LoadBalancing_ALLOW_ALL,
		},
		IpFamilies: workloadapi.IPFamilies_DUAL, Canonical: true, IngressUseWaypoint: true,
		WeightedWaypoints: []*workloadapi.WeightedWaypoint{{Destination: gateway("app", "wp2.app"), Weight: 10}},
		Visibility:        workloadapi.Service_NAMESPACE,
	}
}

func fullPolicy() *security.Authorization {
	text := func(k string) []*security.StringMatch {
		return []*security.StringMatch{
			{MatchType: &security.StringMatch_Exact{Exact: k}}, {MatchType: &security.StringMatch_Prefix{Prefix: k}},
			{MatchType: &security.StringMatch_Suffix{Suffix: k}}, {MatchType: &security.StringMatch_Presence{Presence: &emptypb.Empty{}}},
		}
	}
	ip := func(b ...byte) []*security.Address { return []*security.Address{{Address: b, Length: 32}} }
	return &security.Authorization{
		Name: "p", Namespace: "app", Scope: security.Scope_WORKLOAD_SELECTOR, Action: security.Action_DENY, DryRun: true,
		Groups: []*security.Group{{Rules: []*security.Rules{{Matches: []*security.Match{{
			Namespaces: text("a"), NotNamespaces: text("b"), Principals: text("c"), NotPrincipals: text("d"),
			SourceIps: ip(1, 2, 3, 4), NotSourceIps: ip(1, 2, 3, 5), DestinationIps: ip(1, 2, 3, 6), NotDestinationIps: ip(1, 2, 3, 7),
			DestinationPorts: []uint32{80}, NotDestinationPorts: []uint32{81},
			ServiceAccounts:    []*security.ServiceAccountMatch{{Namespace: "x", ServiceAccount: "y"}},
			NotServiceAccounts: []*security.ServiceAccountMatch{{Namespace: "x", ServiceAccount: "z"}},
		}}}, {}}}, {}},
	}
}

// TestRoundTrip: the full form of each resource survives there and back.
func TestRoundTrip(t *testing.T) {
	w, err := WorkloadFromProto(fullWorkload())
	if err != nil {
		t.Fatal(err)
	}
	if got := w.ToProto(); !proto.Equal(got, fullWorkload()) {
		t.Errorf("workload became\n%v, was\n%v", got, fullWorkload())
	}
	if got := w.Identity().String(); got != "spiffe://td.example/ns/app/sa/sa" {
		t.Errorf("identity %s", got)
	}
	s, err := ServiceFromProto(fullService())
	if err != nil {
		t.Fatal(err)
	}
	if got := s.ToProto(); !proto.Equal(got, fullService()) {
		t.Errorf("service became\n%v, was\n%v", got, fullService())
	}
	if got := s.SANs(); len(got) != 1 || got[0].String() != "spiffe://td.example/ns/x/sa/y" {
		t.Errorf("SANs %v", got)
	}
	p, err := PolicyFromProto(fullPolicy())
	if err != nil {
		t.Fatal(err)
	}
	if got := p.ToProto(); !proto.Equal(got, fullPolicy()) {
		t.Errorf("policy became\n%v, was\n%v", got, fullPolicy())
	}
	if w.ResourceName() != "Kubernetes//Pod/app/p" || s.ResourceName() != "app/web.app" || p.ResourceName() != "app/p" {
		t.Errorf("names %q %q %q", w.ResourceName(), s.ResourceName(), p.ResourceName())
	}
}

// TestModelMatchesWire: each name of our enumerations has the wire's number.
func TestModelMatchesWire(t *testing.T) {
	for _, tt := range []struct {
		field string
		names []string
		wire  map[int32]string
		short int // values of the wire that we do not have, at its end
	}{
		{"tunnel protocol", tunnelNames[:], workloadapi.TunnelProtocol_name, 1},
		{"status", statusNames[:], workloadapi.WorkloadStatus_name, 0},
		{"type", typeNames[:], workloadapi.WorkloadType_name, 0},
		{"network mode", networkModeNames[:], workloadapi.NetworkMode_name, 0},
		{"ip families", familyNames[:], workloadapi.IPFamilies_name, 0},
		{"visibility", visibilityNames[:], workloadapi.Service_Visibility_name, 0},
		{"mode", modeNames[:], workloadapi.LoadBalancing_Mode_name, 0},
		{"health policy", healthNames[:], workloadapi.LoadBalancing_HealthPolicy_name, 0},
		{"scope", scopeNames[:], workloadapi.LoadBalancing_Scope_name, 0},
		{"tunnel kind", tunnelKindNames[:], workloadapi.ApplicationTunnel_Protocol_name, 0},
		{"policy scope", policyScopeNames[:], security.Scope_name, 0},
		{"action", actionNames[:], security.Action_name, 0},
	} {
		if got, want := len(tt.names), len(tt.wire)-tt.short; got != want {
			t.Errorf("%s: %d names, the wire has %d", tt.field, got, want)
		}
		for i, n := range tt.names {
			plain := func(s string) string { return strings.ToLower(strings.ReplaceAll(s, "_", "")) }
			ours, theirs := plain(n), plain(tt.wire[int32(i)])
			switch theirs {
			case "none", "unspecifiedmode", "unspecifiedscope", "ipv4only", "ipv6only": // differ in the dump
				continue
			}
			if ours != theirs {
				t.Errorf("%s %d: %q, the wire says %q", tt.field, i, n, tt.wire[int32(i)])
			}
		}
	}
}

func TestWorkloadDefaults(t *testing.T) {
	w, err := WorkloadFromProto(&workloadapi.Workload{Uid: "u", Namespace: "app"})
	if err != nil {
		t.Fatal(err)
	}
	want := &Workload{UID: "u", Namespace: "app", TrustDomain: "cluster.local", ServiceAccount: "default", ClusterID: "Kubernetes"}
	if diff := cmp.Diff(want, w, cmpModel); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if w.Weight() != 1 || w.Identity().String() != "spiffe://cluster.local/ns/app/sa/default" {
		t.Errorf("weight %d, identity %s", w.Weight(), w.Identity())
	}
	// An address mapped into IPv6 is IPv4.
	w, err = WorkloadFromProto(&workloadapi.Workload{Uid: "u", Addresses: [][]byte{netip.MustParseAddr("::ffff:1.2.3.4").AsSlice()}})
	if err != nil || w.Addresses[0] != netip.MustParseAddr("1.2.3.4") {
		t.Errorf("addresses %v, %v", w.Addresses, err)
	}
	// What is no identity is none; outside the mesh that is no mistake.
	w, err = WorkloadFromProto(&workloadapi.Workload{Uid: "u", Namespace: "a b"})
	if err != nil || !w.Identity().IsZero() || len(w.Identities()) != 0 {
		t.Errorf("identity %v, %v", w.Identity(), err)
	}
}

func manyAddresses(n int) [][]byte {
	list := make([][]byte, n)
	for i := range list {
		list[i] = []byte{10, 0, byte(i >> 8), byte(i)}
	}
	return list
}

func manyServices(n int) map[string]*workloadapi.PortList {
	services := make(map[string]*workloadapi.PortList, n)
	for i := range n {
		services[fmt.Sprint("ns/s", i)] = nil
	}
	return services
}

func TestWorkloadRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*workloadapi.Workload)
		want   string
	}{
		{"no uid", func(w *workloadapi.Workload) { w.Uid = "" }, "uid is empty"},
		{"address of 3 bytes", func(w *workloadapi.Workload) { w.Addresses = [][]byte{{1, 2, 3}} }, "4 or 16 bytes, not 3"},
		{"too many addresses", func(w *workloadapi.Workload) { w.Addresses = manyAddresses(maxAddresses + 1) }, "16385 addresses, the limit is 16384"},
		{"empty address", func(w *workloadapi.Workload) { w.Addresses = [][]byte{nil} }, "4 or 16 bytes, not 0"},
		{"legacy mTLS", func(w *workloadapi.Workload) { w.TunnelProtocol = workloadapi.TunnelProtocol_LEGACY_ISTIO_MTLS }, "LEGACY_ISTIO_MTLS is not supported"},
		{"tunnel protocol", func(w *workloadapi.Workload) { w.TunnelProtocol = 7 }, "unknown tunnel protocol 7"},
		{"negative enum", func(w *workloadapi.Workload) { w.TunnelProtocol = -1 }, "unknown tunnel protocol -1"},
		{"type", func(w *workloadapi.Workload) { w.WorkloadType = 9 }, "unknown workload type 9"},
		{"status", func(w *workloadapi.Workload) { w.Status = 9 }, "unknown status 9"},
		{"network mode", func(w *workloadapi.Workload) { w.NetworkMode = 9 }, "unknown network mode 9"},
		{"too many services", func(w *workloadapi.Workload) { w.Services = manyServices(maxServices + 1) }, "4097 services"},
		{"too many policies", func(w *workloadapi.Workload) { w.AuthorizationPolicies = make([]string, maxPolicies+1) }, "1025 policies"},
		{"service key without slash", func(w *workloadapi.Workload) { w.Services = map[string]*workloadapi.PortList{"x": nil} }, "service key"},
		{"service key with two", func(w *workloadapi.Workload) { w.Services = map[string]*workloadapi.PortList{"a/b/c": nil} }, "service key"},
		{"service port", func(w *workloadapi.Workload) {
			w.Services = map[string]*workloadapi.PortList{"a/b": {Ports: []*workloadapi.Port{{ServicePort: 65536}}}}
		}, "port 65536 is above 65535"},
		{"target port", func(w *workloadapi.Workload) {
			w.Services = map[string]*workloadapi.PortList{"a/b": {Ports: []*workloadapi.Port{{TargetPort: 1 << 20}}}}
		}, "port 1048576"},
		{"waypoint to nowhere", func(w *workloadapi.Workload) { w.Waypoint = &workloadapi.GatewayAddress{} }, "waypoint: no destination"},
		{"waypoint port", func(w *workloadapi.Workload) { w.Waypoint.HboneMtlsPort = 70000 }, "port 70000"},
		{"waypoint without host", func(w *workloadapi.Workload) { w.Waypoint = gateway("app", "") }, "not namespace/hostname"},
		{"gateway address", func(w *workloadapi.Workload) { w.NetworkGateway = gatewayIP(1, 2) }, "network gateway"},
		{"tunnel kind", func(w *workloadapi.Workload) { w.ApplicationTunnel.Protocol = 5 }, "unknown application tunnel protocol 5"},
		{"tunnel port", func(w *workloadapi.Workload) { w.ApplicationTunnel.Port = 70000 }, "port 70000"},
		{"identity in the mesh", func(w *workloadapi.Workload) { w.ServiceAccount = "a/b" }, "identity"},
		{"trust domain in the mesh", func(w *workloadapi.Workload) { w.TrustDomain = "A" }, "trust domain"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := fullWorkload()
			tt.change(p)
			if w, err := WorkloadFromProto(p); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, error %v, want %q", w, err, tt.want)
			}
		})
	}
	if _, _, err := AddressFromProto(&workloadapi.Address{}); err == nil {
		t.Error("an address of no type was taken")
	}
}

func TestServiceRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*workloadapi.Service)
		want   string
	}{
		{"no namespace", func(s *workloadapi.Service) { s.Namespace = "" }, "not namespace/hostname"},
		{"no hostname", func(s *workloadapi.Service) { s.Hostname = "" }, "not namespace/hostname"},
		{"hostname with a slash", func(s *workloadapi.Service) { s.Hostname = "a/b" }, "not namespace/hostname"},
		{"long hostname", func(s *workloadapi.Service) { s.Hostname = strings.Repeat("x", 254) }, "254 bytes"},
		{"address", func(s *workloadapi.Service) { s.Addresses[0].Address = []byte{1} }, "4 or 16 bytes"},
		{"prefix too long", func(s *workloadapi.Service) { s.Addresses[0].Length = proto.Uint32(33) }, "prefix length 33"},
		{"port", func(s *workloadapi.Service) { s.Ports[0].ServicePort = 65536 }, "port 65536"},
		{"ip families", func(s *workloadapi.Service) { s.IpFamilies = 9 }, "unknown ip families 9"},
		{"mode", func(s *workloadapi.Service) { s.LoadBalancing.Mode = 9 }, "unknown load balancing mode 9"},
		{"health policy", func(s *workloadapi.Service) { s.LoadBalancing.HealthPolicy = 9 }, "unknown health policy 9"},
		{"scope", func(s *workloadapi.Service) { s.LoadBalancing.RoutingPreference[0] = 0 }, "unknown routing preference 0"},
		{"too many preferences", func(s *workloadapi.Service) {
			s.LoadBalancing.RoutingPreference = slices.Repeat(s.LoadBalancing.RoutingPreference[:1], maxPreferences+1)
		}, "33 routing preferences, the limit is 32"},
		{"too many names", func(s *workloadapi.Service) { s.SubjectAltNames = slices.Repeat([]string{"spiffe://td/x"}, maxNames+1) }, "1025 subject alternative names"},
		{"too many addresses", func(s *workloadapi.Service) { s.Addresses = slices.Repeat(s.Addresses[:1], maxAddresses+1) }, "16385 addresses"},
		{"too many waypoints", func(s *workloadapi.Service) {
			s.WeightedWaypoints = slices.Repeat(s.WeightedWaypoints[:1], maxWaypoints+1)
		}, "257 weighted waypoints"},
		{"weighted waypoint to nowhere", func(s *workloadapi.Service) { s.WeightedWaypoints[0].Destination = nil }, "weighted waypoint: no destination"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := fullService()
			tt.change(p)
			if s, err := ServiceFromProto(p); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, error %v, want %q", s, err, tt.want)
			}
		})
	}
	p := fullService()
	p.Visibility = 9
	if s, err := ServiceFromProto(p); err != nil || s.Visibility != Public {
		t.Errorf("unknown visibility: %v, %v", s, err)
	}
	p.Hostname = "WEB.App"
	if s, err := ServiceFromProto(p); err != nil || s.Hostname != "web.app" {
		t.Errorf("hostname in capitals: %v, %v", s, err)
	}
	p.Addresses = []*workloadapi.NetworkAddress{{Address: netip.MustParseAddr("::ffff:10.0.0.0").AsSlice(), Length: proto.Uint32(104)}}
	if s, err := ServiceFromProto(p); err != nil || s.CIDRs[0].Prefix != netip.MustParsePrefix("10.0.0.0/8") {
		t.Errorf("a mapped range: %v, %v", s, err)
	}
	p.Addresses[0].Length = proto.Uint32(64)
	if s, err := ServiceFromProto(p); err == nil {
		t.Errorf("a range of more than the mapped addresses: %v", s)
	}
}

// TestPolicyRefused: a piece that is not understood refuses all of it.
func TestPolicyRefused(t *testing.T) {
	match := func(p *security.Authorization) *security.Match { return p.Groups[0].Rules[0].Matches[0] }
	for _, tt := range []struct {
		name   string
		change func(*security.Authorization)
		want   string
	}{
		{"no name", func(p *security.Authorization) { p.Name = "" }, "name is empty"},
		{"scope", func(p *security.Authorization) { p.Scope = 3 }, "unknown scope 3"},
		{"action", func(p *security.Authorization) { p.Action = 2 }, "unknown action 2"},
		{"namespace scope without one", func(p *security.Authorization) { p.Scope, p.Namespace = security.Scope_NAMESPACE, "" }, "without a namespace"},
		{"string without type", func(p *security.Authorization) { match(p).Principals[0].MatchType = nil }, "principals: a string match without a type"},
		{"negative string without type", func(p *security.Authorization) { match(p).NotNamespaces[0].MatchType = nil }, "not_namespaces"},
		{"source", func(p *security.Authorization) { match(p).SourceIps[0].Address = []byte{1} }, "source_ips: an address has 4 or 16 bytes"},
		{"source length", func(p *security.Authorization) { match(p).SourceIps[0].Length = 33 }, "prefix length 33"},
		{"destination", func(p *security.Authorization) { match(p).NotDestinationIps[0].Address = nil }, "not_destination_ips"},
		{"port", func(p *security.Authorization) { match(p).DestinationPorts[0] = 65536 }, "destination_ports: port 65536"},
		{"negative port", func(p *security.Authorization) { match(p).NotDestinationPorts[0] = 65536 }, "not_destination_ports"},
		{"place is named", func(p *security.Authorization) { match(p).NotDestinationPorts[0] = 65536 }, "groups[0].rules[0].matches[0]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := fullPolicy()
			tt.change(p)
			if got, err := PolicyFromProto(p); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, error %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestSplitIdentity(t *testing.T) {
	for s, want := range map[string][2]string{
		"spiffe://td/ns/a/sa/b":    {"a", "b"},
		"spiffe://td/ns/a/sa/b/c":  {},
		"spiffe://td/ns/a/xx/b":    {},
		"spiffe://td/a/sa/b":       {},
		"spiffe://td/ns/a":         {},
		"spiffe://td":              {},
		"spiffe://td/ns/a/b/sa/c":  {},
		"spiffe://td/x/ns/a/sa/b":  {},
		"spiffe://td/ns/sa/sa/ns":  {"sa", "ns"},
		"spiffe://td/ns/a.b/sa/c_": {"a.b", "c_"},
	} {
		ns, sa, ok := SplitIdentity(spiffeid.RequireFromString(s))
		if ns != want[0] || sa != want[1] || ok != (want[0] != "") {
			t.Errorf("SplitIdentity(%s) = %q, %q, %v", s, ns, sa, ok)
		}
	}
	if _, _, ok := SplitIdentity(spiffeid.ID{}); ok {
		t.Error("the zero identity has parts")
	}
}

// FuzzAddress: what is taken survives there and back, and fits into a store.
func FuzzAddress(f *testing.F) {
	for _, a := range []*workloadapi.Address{
		{Type: &workloadapi.Address_Workload{Workload: fullWorkload()}}, {Type: &workloadapi.Address_Service{Service: fullService()}}, {},
	} {
		b, err := proto.Marshal(a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var p workloadapi.Address
		if proto.Unmarshal(data, &p) != nil {
			return
		}
		w, s, err := AddressFromProto(&p)
		if err != nil {
			return
		}
		store := NewStore()
		if w != nil {
			again, err := WorkloadFromProto(w.ToProto())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(w, again, cmpModel); diff != "" {
				t.Fatalf("there and back (-first +second):\n%s", diff)
			}
			store.Apply(Batch{Workloads: []*Workload{w}})
			store.Apply(Batch{RemovedAddresses: []string{w.ResourceName()}})
		} else {
			again, err := ServiceFromProto(s.ToProto())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(s, again, cmpModel); diff != "" {
				t.Fatalf("there and back (-first +second):\n%s", diff)
			}
			store.Apply(Batch{Services: []*Service{s}})
			store.Apply(Batch{RemovedAddresses: []string{s.ResourceName()}})
		}
		if diff := cmp.Diff(contents(newView("")), contents(store.View())); diff != "" {
			t.Fatalf("left after removal:\n%s", diff)
		}
	})
}

// FuzzAuthorization: what is taken survives there and back.
func FuzzAuthorization(f *testing.F) {
	b, err := proto.Marshal(fullPolicy())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, data []byte) {
		var p security.Authorization
		if proto.Unmarshal(data, &p) != nil {
			return
		}
		got, err := PolicyFromProto(&p)
		if err != nil {
			return
		}
		again, err := PolicyFromProto(got.ToProto())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(got, again, cmpModel); diff != "" {
			t.Fatalf("there and back (-first +second):\n%s", diff)
		}
	})
}

// TestPortMap: a service may have every port that there is; looking one up stays cheap.
func TestPortMap(t *testing.T) {
	for _, n := range []int{1, 2, 16, 17, 1000, 1 << 15} {
		list := make([]Port, 0, n)
		for i := range n {
			list = append(list, Port{Service: uint16(2*i + 1), Target: uint16(2 * i)})
		}
		slices.Reverse(list)
		m := NewPortMap(list...)
		for i := range n {
			if target, ok := m.Target(uint16(2*i + 1)); !ok || target != uint16(2*i) {
				t.Fatalf("of %d, port %d: %d, %v", n, 2*i+1, target, ok)
			}
			if target, ok := m.Target(uint16(2 * i)); ok {
				t.Fatalf("of %d, port %d: %d", n, 2*i, target)
			}
		}
	}
}
