package route

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/warren-mesh/warren/xds/workload"
)

// TestWhoseAddress: of several services at one address the client's own
// namespace's is meant, else the canonical one, and never one that is hidden.
func TestWhoseAddress(t *testing.T) {
	at := func(name, ns string, mods ...func(*workload.Service)) *workload.Service {
		return service(name, ns, "10.96.0.1", mods...)
	}
	canonical := func(s *workload.Service) { s.Canonical = true }
	private := func(s *workload.Service) { s.Visibility = workload.NamespacePrivate }
	ranged := func(s *workload.Service) {
		s.VIPs, s.CIDRs = nil, []workload.NetworkPrefix{{Prefix: netip.MustParsePrefix("10.96.0.0/16")}}
	}
	elsewhere := func(s *workload.Service) { s.VIPs[0].Network = "n2" }
	for _, tt := range []struct {
		name, from string
		services   []*workload.Service
		want       string // namespace/name; empty: passed through
	}{
		{"the client's namespace", "b", []*workload.Service{at("x", "a", canonical), at("x", "b")}, "b/x"},
		{"the canonical one", "c", []*workload.Service{at("x", "a"), at("x", "b", canonical)}, "b/x"},
		{"the first one", "c", []*workload.Service{at("x", "a"), at("x", "b")}, "a/x"},
		{"not a hidden one", "c", []*workload.Service{at("x", "a", private), at("x", "b")}, "b/x"},
		{"not a hidden one, even if it is canonical", "c", []*workload.Service{at("x", "a", private, canonical), at("x", "b")}, "b/x"},
		{"a hidden one of one's own", "a", []*workload.Service{at("x", "a", private), at("x", "b", canonical)}, "a/x"},
		{"only hidden ones", "c", []*workload.Service{at("x", "a", private)}, ""},
		{"a range behind a hidden one", "c", []*workload.Service{at("x", "a", private), at("r", "b", ranged)}, "b/r"},
		{"an exact one before a range of one's own", "b", []*workload.Service{at("x", "a"), at("r", "b", ranged)}, "a/x"},
		{"two of one namespace", "a", []*workload.Service{at("x", "a"), at("y", "a")}, "a/x"},
		{"another network's", "a", []*workload.Service{at("x", "a", elsewhere)}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b workload.Batch
			for _, s := range tt.services {
				b.Services = append(b.Services, s)
				b.Workloads = append(b.Workloads, pod(s.Name, s.Namespace, ips("10.0.0.9"), endpointOf(s)))
			}
			d, err := Outbound(apply(b), pod("self", tt.from), Options{}, clientAddr, ap("10.96.0.1:80"))
			got := ""
			if d.Service != nil {
				got = d.Service.Namespace + "/" + d.Service.Name
			}
			if err != nil || got != tt.want {
				t.Errorf("to %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

// An address that is a service's and a workload's is the service's in every
// respect: its waypoint is not gone around.
func TestWaypointOfSharedAddress(t *testing.T) {
	s := service("web", "app", "10.0.0.2", behind(addressed("", "10.0.1.1")))
	v := apply(workload.Batch{Services: []*workload.Service{s}, Workloads: []*workload.Workload{
		pod("a", "app", ips("10.0.0.2"), endpointOf(s)), pod("wp", "infra", ips("10.0.1.1")),
	}})
	if d, err := Outbound(v, pod("self", "app"), Options{}, clientAddr, ap("10.0.0.2:80")); err != nil || !d.Waypoint || d.Service == nil {
		t.Errorf("%+v, %v", d, err)
	}
}

// The endpoints of a range are those of the present, however often they change.
func TestEndpointsOfRange(t *testing.T) {
	s := service("r", "app", "10.96.0.1", func(s *workload.Service) {
		s.VIPs, s.CIDRs = nil, []workload.NetworkPrefix{{Prefix: netip.MustParsePrefix("192.0.2.0/24")}}
	})
	store := workload.NewStore()
	store.Apply(workload.Batch{Services: []*workload.Service{s}})
	for _, ip := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"} {
		store.Apply(workload.Batch{Workloads: []*workload.Workload{pod("a", "app", ips(ip), endpointOf(s))}})
		d, err := Outbound(store.View(), pod("self", "app"), Options{}, clientAddr, ap("192.0.2.7:80"))
		if err != nil || d.Dial.Addr().String() != ip {
			t.Errorf("to %s, %v; want %s", d.Dial, err, ip)
		}
	}
	store.Apply(workload.Batch{RemovedAddresses: []string{"Kubernetes//Pod/app/a"}})
	if d, err := Outbound(store.View(), pod("self", "app"), Options{}, clientAddr, ap("192.0.2.7:80")); !errors.Is(err, ErrNoHealthyUpstream) {
		t.Errorf("to %s, %v", d.Dial, err)
	}
}

// A service that comes to allow unhealthy endpoints has them at once, and loses
// them again, without anybody sending the workloads anew.
func TestHealthPolicyChanges(t *testing.T) {
	s := service("web", "app", "10.96.0.1")
	all := *s
	all.LoadBalancing = &workload.LoadBalancing{HealthPolicy: workload.AllowAll}
	store := workload.NewStore()
	store.Apply(workload.Batch{Services: []*workload.Service{s}, Workloads: []*workload.Workload{
		pod("a", "app", ips("10.0.0.2"), endpointOf(s), func(w *workload.Workload) { w.Status = workload.Unhealthy }),
	}})
	for i, now := range []*workload.Service{s, &all, s} {
		store.Apply(workload.Batch{Services: []*workload.Service{now}})
		_, err := Outbound(store.View(), pod("self", "app"), Options{}, clientAddr, ap("10.96.0.1:80"))
		if (err == nil) != (now == &all) {
			t.Errorf("state %d: %v", i, err)
		}
	}
}
