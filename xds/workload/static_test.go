package workload

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const staticYAML = `
workloads:
- {uid: c1//v1/Pod/default/a, name: a, namespace: default, serviceAccount: default, workloadIps: ["127.0.0.1"], protocol: HBONE, node: local, network: "", services: {"default/example.com": {80: 8080}}}
- uid: full
  name: f
  namespace: ns
  trustDomain: td.example
  workloadIps: ["10.0.0.1", "fd00::1"]
  protocol: TCP
  networkMode: HostNetwork
  workloadType: cronjob
  status: Unhealthy
  capacity: 0
  locality: {region: r, zone: z, subzone: s}
  waypoint: {destination: ns/wp.example, hboneMtlsPort: 15008}
  networkGateway: {destination: n2/10.9.9.9, hboneMtlsPort: 15008}
  applicationTunnel: {protocol: PROXY, port: 15088}
  authorizationPolicies: [ns/p]
services:
- {name: ex, namespace: default, hostname: Example.com, vips: ["/127.10.0.1", "n1/10.0.0.1"], ports: {80: 8080}, canonical: true}
- name: full
  namespace: ns
  hostname: full.example
  vips: []
  cidrVips: [{cidr: 10.9.0.0/16, network: n1}]
  ports: {80: 0}
  subjectAltNames: []
  loadBalancer: {mode: Failover, healthPolicy: AllowAll, routingPreferences: [Network, Region]}
  ipFamilies: IPv4
  visibility: Namespace
  weightedWaypoints: [{destination: {destination: ns/wp2, hboneMtlsPort: 15008}, weight: 10}]
policies:
- name: p
  namespace: ns
  scope: WorkloadSelector
  action: Deny
  dryRun: true
  rules:
  - - - principals: [!Exact "cluster.local/ns/a/sa/b", !Prefix x, !Suffix "y", {Exact: z}]
        notPrincipals: [!Presence [], !Presence , {Presence: []}]
        sourceIps: [10.0.0.0/8]
        destinationPorts: [80]
        serviceAccounts: [{namespace: a, serviceAccount: b}]
`

func TestParseStatic(t *testing.T) {
	got, err := ParseStatic([]byte(staticYAML))
	if err != nil {
		t.Fatal(err)
	}
	none := uint32(0)
	nh := func(ns, h string) NamespacedHostname { return NamespacedHostname{ns, h} }
	want := Batch{
		Workloads: []*Workload{{
			UID: "c1//v1/Pod/default/a", Name: "a", Namespace: "default", ServiceAccount: "default", TrustDomain: "cluster.local",
			ClusterID: "Kubernetes", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Protocol: HBONE, Node: "local",
			Services: Memberships{{Service: nh("default", "example.com"), Ports: PortMap{{Service: 80, Target: 8080}}}},
		}, {
			UID: "full", Name: "f", Namespace: "ns", ServiceAccount: "default", TrustDomain: "td.example", ClusterID: "Kubernetes",
			Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}, NetworkMode: HostNetwork,
			Type: CronJob, Status: Unhealthy, Capacity: &none, Locality: Locality{"r", "z", "s"},
			Waypoint:          &GatewayAddress{Hostname: nh("ns", "wp.example"), HBONEPort: 15008},
			NetworkGateway:    &GatewayAddress{Address: NetworkAddr{"n2", netip.MustParseAddr("10.9.9.9")}, HBONEPort: 15008},
			ApplicationTunnel: &ApplicationTunnel{Protocol: TunnelProxy, Port: 15088}, Policies: []string{"ns/p"},
		}},
		Services: []*Service{{
			Name: "ex", Namespace: "default", Hostname: "example.com", VIPs: []NetworkAddr{at("127.10.0.1"), {"n1", netip.MustParseAddr("10.0.0.1")}},
			Ports: PortMap{{Service: 80, Target: 8080}}, Canonical: true,
		}, {
			Name: "full", Namespace: "ns", Hostname: "full.example", CIDRs: []NetworkPrefix{{"n1", netip.MustParsePrefix("10.9.0.0/16")}},
			Ports: PortMap{{Service: 80}}, LoadBalancing: &LoadBalancing{Preferences: []Scope{Network, Region}, Mode: LBFailover, HealthPolicy: AllowAll},
			IPFamilies: IPv4Only, Visibility: NamespacePrivate,
			WeightedWaypoints: []WeightedWaypoint{{GatewayAddress{Hostname: nh("ns", "wp2"), HBONEPort: 15008}, 10}},
		}},
		Policies: []*Policy{{
			Name: "p", Namespace: "ns", Scope: ScopeSelector, Action: Deny, DryRun: true,
			Rules: []Rule{{[]Clause{{[]Match{{
				Principals:    []StringMatch{{Exact, "cluster.local/ns/a/sa/b"}, {Prefix, "x"}, {Suffix, "y"}, {Exact, "z"}},
				NotPrincipals: []StringMatch{{Kind: Presence}, {Kind: Presence}, {Kind: Presence}},
				SourceIPs:     []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, DestinationPorts: []uint16{80},
				ServiceAccounts: []ServiceAccountMatch{{"a", "b"}},
			}}}}}},
		}},
	}
	if diff := cmp.Diff(want, got, cmpModel); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, empty := range []string{"", "{}", "policies: []\n", "# nothing\n"} {
		if b, err := ParseStatic([]byte(empty)); err != nil || !b.Empty() {
			t.Errorf("%q gave %v, %v", empty, b, err)
		}
	}
}

func TestParseStaticRefused(t *testing.T) {
	for _, tt := range []struct{ name, yaml, want string }{
		{"unknown key at the top", "workload: []", "field workload not found"},
		{"unknown key within", "workloads: [{uid: a, ip: x}]", "field ip not found"},
		{"not YAML", "workloads: [", "static configuration"},
		{"two documents", "workloads: []\n---\nservices: []", "one YAML document"},
		{"no uid", "workloads: [{name: a}]", "uid is empty"},
		{"twice", "workloads: [{uid: a}, {uid: a}]", `workload "a": is there twice`},
		{"address", "workloads: [{uid: a, workloadIps: [x]}]", "x"},
		{"protocol", "workloads: [{uid: a, protocol: http}]", `protocol: "http" is not one of ["TCP" "HBONE"]`},
		{"service key", "workloads: [{uid: a, services: {x: {80: 80}}}]", "not namespace/hostname"},
		{"port", "workloads: [{uid: a, services: {a/b: {70000: 80}}}]", "70000"},
		{"gateway", "workloads: [{uid: a, waypoint: {destination: x}}]", "waypoint: gateway"},
		{"vip", "services: [{namespace: a, hostname: b, vips: [x]}]", "not network/ip"},
		{"cidr", "services: [{namespace: a, hostname: b, cidrVips: [{network: x}]}]", "without a cidr"},
		{"scope of routing", "services: [{namespace: a, hostname: b, loadBalancer: {mode: Strict, routingPreferences: [Moon]}}]", "Moon"},
		{"policy without scope", "policies: [{name: a, action: Deny}]", "scope and action must be set"},
		{"policy without action", "policies: [{name: a, scope: Global}]", "scope and action must be set"},
		{"string without tag", "policies: [{name: a, scope: Global, action: Deny, rules: [[[{principals: [x]}]]]}]", "want !Exact"},
		{"other tag", "policies: [{name: a, scope: Global, action: Deny, rules: [[[{principals: [!Regex x]}]]]}]", "want !Exact"},
		{"presence of something", "policies: [{name: a, scope: Global, action: Deny, rules: [[[{principals: [!Presence x]}]]]}]", "takes no value"},
		{"exact list", "policies: [{name: a, scope: Global, action: Deny, rules: [[[{principals: [!Exact [x]]}]]]}]", "Exact takes a string"},
		{"source", "policies: [{name: a, scope: Global, action: Deny, rules: [[[{sourceIps: [10.0.0.1]}]]]}]", "10.0.0.1"},
		{"unknown matcher", "policies: [{name: a, scope: Global, action: Deny, rules: [[[{hosts: [x]}]]]}]", "field hosts not found"},
		{"all at once", "workloads: [{name: a}]\nservices: [{name: s}]", "hostname"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if b, err := ParseStatic([]byte(tt.yaml)); err == nil || !strings.Contains(err.Error(), tt.want) || !b.Empty() {
				t.Errorf("got %v, error %v, want %q", b, err, tt.want)
			}
		})
	}
}

// FuzzStatic: no input makes it panic, and what is taken fits into a store.
func FuzzStatic(f *testing.F) {
	f.Add([]byte(staticYAML))
	f.Add([]byte("policies: [{name: a, scope: Global, action: Deny, rules: [[[{principals: [!Presence []]}]]]}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if b, err := ParseStatic(data); err == nil {
			NewStore().Apply(b)
		}
	})
}
