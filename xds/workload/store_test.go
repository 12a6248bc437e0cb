package workload

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// allOf goes through all entries; it may not be left early.
func allOf[K, C comparable](x *claims[K, C]) func(func(*Workload) bool) {
	return func(yield func(*Workload) bool) {
		x.few.all()(yield)
		for _, c := range x.crowds.all() {
			slices.Values(c.list)(yield)
		}
	}
}

// contents is everything a view holds, in a form that can be compared.
func contents(v *View) map[string]any {
	keys := func(list []*Service) (out []string) {
		for _, s := range list {
			out = append(out, s.ResourceName())
		}
		return out
	}
	names := func(list []*Policy) (out []string) {
		for _, p := range list {
			out = append(out, p.ResourceName())
		}
		return out
	}
	m := map[string]any{}
	for w := range v.byUID.all() {
		m["uid "+w.UID] = w.UID
	}
	for name, all := range map[string]func(func(*Workload) bool){"addr": allOf(&v.byAddr), "local": allOf(&v.local), "hostname": allOf(&v.byName)} {
		var list []*Workload
		for w := range all {
			list = append(list, w)
		}
		if list != nil {
			l := uids(list)
			slices.Sort(l)
			m[name] = l
		}
	}
	for k, s := range v.services.all() {
		m["service "+k.String()] = s.ResourceName()
	}
	for k, l := range v.byHost.all() {
		m["host "+k] = keys(l.list)
	}
	for k, l := range v.byVIP.all() {
		m["vip "+k.String()] = keys(l.list)
	}
	for k, l := range v.byCIDR.services.all() {
		m["cidr "+k.String()] = keys(l.list)
	}
	for n, l := range v.byCIDR.lengths {
		m["lengths "+n] = fmt.Sprint(*l)
	}
	for k, set := range v.endpoints.all() {
		var list []string
		for _, e := range set.All() {
			list = append(list, fmt.Sprint(e.Workload.UID, e.Ports))
		}
		m["endpoints "+k.String()] = list
		m["uniform "+k.String()] = set.Uniform()
	}
	for k, p := range v.policies.all() {
		m["policy "+k] = p.ResourceName()
	}
	for k, l := range v.byNamespace.all() {
		m["policies "+k] = names(l)
	}
	m["global"] = strings.Join(names(v.global), " ")
	ws, ss, ps := v.Len()
	m["len"] = []int{ws, ss, ps}
	return m
}

func wl(uid string, mods ...func(*Workload)) *Workload {
	w := &Workload{UID: uid, Name: uid, Namespace: "app", ServiceAccount: "sa", TrustDomain: DefaultTrustDomain, Node: "n1"}
	for _, m := range mods {
		m(w)
	}
	return w
}

func addrs(list ...string) func(*Workload) {
	return func(w *Workload) {
		for _, s := range list {
			w.Addresses = append(w.Addresses, netip.MustParseAddr(s))
		}
	}
}

func of(services ...string) func(*Workload) {
	return func(w *Workload) {
		of := make(map[NamespacedHostname]PortMap)
		for _, s := range services {
			ns, host, _ := strings.Cut(s, "/")
			of[NamespacedHostname{ns, host}] = nil
		}
		w.Services = NewMemberships(of)
	}
}

func svc(key string, vips ...string) *Service {
	ns, host, _ := strings.Cut(key, "/")
	s := &Service{Name: host, Namespace: ns, Hostname: host, Ports: NewPortMap(Port{Service: 80, Target: 8080})}
	for _, v := range vips {
		if p, err := netip.ParsePrefix(v); err == nil {
			s.CIDRs = append(s.CIDRs, NetworkPrefix{Prefix: p})
		} else {
			s.VIPs = append(s.VIPs, at(v))
		}
	}
	return s
}

func at(ip string) NetworkAddr { return NetworkAddr{Addr: netip.MustParseAddr(ip)} }

func viewOf(b Batch) *View { return viewFrom("", b) }

// viewFrom is viewOf as a node sees it.
func viewFrom(node string, b Batch) *View {
	s := NewNodeStore(node)
	s.Apply(b)
	return s.View()
}

// TestRandomBatches compares a store that was changed step by step with one that
// was given the result at once, and checks that no earlier view changed.
// A workload's own hostname finds it in its namespace only, whatever case it was
// written in, and as long as it has it.
func TestWorkloadByHostname(t *testing.T) {
	s := NewStore()
	named := func(host string) func(*Workload) { return func(w *Workload) { w.Hostname = host } }
	find := func(ns, host string) string {
		if w := s.View().WorkloadByHostname(NamespacedHostname{ns, host}); w != nil {
			return w.UID
		}
		return ""
	}
	s.Apply(Batch{Workloads: []*Workload{wl("a", named("DB.example")), wl("x//Pod/b", named("db.example")), wl("c")}})
	if got := find("app", "db.example"); got != "x//Pod/b" {
		t.Errorf("of two: %q", got)
	}
	if got := find("other", "db.example") + find("app", ""); got != "" {
		t.Errorf("found %q", got)
	}
	s.Apply(Batch{Workloads: []*Workload{wl("x//Pod/b", named("new.example"))}})
	if got := find("app", "db.example") + " " + find("app", "new.example"); got != "a x//Pod/b" {
		t.Errorf("after a change: %q", got)
	}
	s.Apply(Batch{RemovedAddresses: []string{"a", "x//Pod/b"}})
	if got := find("app", "db.example") + find("app", "new.example"); got != "" {
		t.Errorf("after removal: %q", got)
	}
}

// ServicesAt is everybody's, an exact address's before a range's.
func TestServicesAt(t *testing.T) {
	s := NewStore()
	hidden := svc("a/hidden", "10.96.0.1")
	hidden.Visibility = NamespacePrivate
	s.Apply(Batch{Services: []*Service{hidden, svc("b/exact", "10.96.0.1"), svc("c/narrow", "10.96.0.0/24"), svc("d/wide", "10.0.0.0/8"), svc("e/other", "10.97.0.0/16")}})
	var got []string
	for x := range s.View().ServicesAt(at("10.96.0.1")) {
		got = append(got, x.Hostname)
	}
	if want := []string{"hidden", "exact", "narrow", "wide"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for range s.View().ServicesAt(at("10.96.0.1")) {
		break // and it stops when it is told to
	}
}

func TestRandomBatches(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(n int) int { return random.IntN(n) }
	store := NewStore()
	workloads, services, policies := map[string]*Workload{}, map[string]*Service{}, map[string]*Policy{}
	type snapshot struct {
		view *View
		want map[string]any
	}
	var past []snapshot
	for step := range 600 {
		var b Batch
		for range pick(6) {
			switch pick(6) {
			case 0, 1:
				uid := fmt.Sprintf("c//Pod/app/%d", pick(20))
				w := wl(uid, addrs(fmt.Sprintf("10.0.0.%d", pick(8)), "fd00::1"), of(fmt.Sprintf("app/s%d", pick(6)), "x/late"))
				w.Protocol, w.NetworkMode = TunnelProtocol(pick(2)), NetworkMode(pick(4)/3)
				if pick(3) == 0 {
					n := uint32(pick(3))
					w.Capacity = &n
				}
				b.Workloads = append(b.Workloads, w)
			case 2:
				s := svc(fmt.Sprintf("ns%d/s%d", pick(2), pick(6)), fmt.Sprintf("10.96.0.%d", pick(4)), fmt.Sprintf("10.%d.0.0/%d", 100+pick(2), 16+pick(3)))
				s.Canonical = pick(2) == 0
				b.Services = append(b.Services, s)
			case 3:
				b.Policies = append(b.Policies, &Policy{Name: fmt.Sprint(pick(6)), Namespace: fmt.Sprintf("ns%d", pick(2)), Scope: PolicyScope(pick(3))})
			case 4:
				b.RemovedAddresses = append(b.RemovedAddresses, fmt.Sprintf("c//Pod/app/%d", pick(20)), fmt.Sprintf("ns%d/s%d", pick(2), pick(6)))
			case 5:
				b.RemovedPolicies = append(b.RemovedPolicies, fmt.Sprintf("ns%d/%d", pick(2), pick(6)))
			}
		}
		for _, n := range b.RemovedAddresses {
			delete(workloads, n)
			delete(services, n)
		}
		for _, n := range b.RemovedPolicies {
			delete(policies, n)
		}
		for _, w := range b.Workloads {
			workloads[w.UID] = w
		}
		for _, s := range b.Services {
			services[s.ResourceName()] = s
		}
		for _, p := range b.Policies {
			policies[p.ResourceName()] = p
		}
		store.Apply(b)
		got := contents(store.View())
		if step%10 == 0 {
			past = append(past, snapshot{store.View(), got})
		}
		want := contents(viewOf(Batch{
			Workloads: slices.Collect(maps.Values(workloads)), Services: slices.Collect(maps.Values(services)), Policies: slices.Collect(maps.Values(policies)),
		}))
		// The order of equals at one address is that of arrival.
		for k := range want {
			if strings.HasPrefix(k, "addr ") {
				slices.Sort(want[k].([]string))
				g := slices.Clone(got[k].([]string))
				slices.Sort(g)
				got[k] = g
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("step %d (-at once +step by step):\n%s", step, diff)
		}
	}
	for i, p := range past {
		if diff := cmp.Diff(p.want, contents(p.view), cmp.Comparer(func(a, b []string) bool {
			return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
		})); diff != "" {
			t.Errorf("view %d changed after it was made:\n%s", i, diff)
		}
	}
}

func TestWorkloadLookup(t *testing.T) {
	podHBONE := func(w *Workload) { w.Protocol = HBONE }
	host := func(w *Workload) { w.NetworkMode = HostNetwork }
	v := viewOf(Batch{Workloads: []*Workload{
		wl("c//Pod/app/old", addrs("10.0.0.1")),
		wl("c//Pod/app/new", addrs("10.0.0.1"), podHBONE),
		wl("c/networking.istio.io/WorkloadEntry/app/we", addrs("10.0.0.1", "10.0.0.2"), podHBONE),
		wl("c/networking.istio.io/ServiceEntry/app/se", addrs("10.0.0.2")),
		wl("c//Pod/app/first", addrs("10.0.0.3")), wl("c//Pod/app/second", addrs("10.0.0.3")),
		wl("c//Pod/app/host", addrs("10.0.0.4"), host),
		wl("c//Pod/app/n2", addrs("10.0.0.5"), func(w *Workload) { w.Network = "n2" }),
	}})
	for ip, want := range map[string]string{
		"10.0.0.1": "c//Pod/app/new",
		"10.0.0.2": "c/networking.istio.io/WorkloadEntry/app/we",
		"10.0.0.3": "c//Pod/app/second", // the address was given out last
		"10.0.0.4": "", "10.0.0.5": "", "10.0.0.6": "",
	} {
		got := ""
		if w := v.WorkloadByAddr(at(ip)); w != nil {
			got = w.UID
		}
		if got != want {
			t.Errorf("%s belongs to %q, want %q", ip, got, want)
		}
	}
	if v.WorkloadByAddr(NetworkAddr{"n2", netip.MustParseAddr("10.0.0.5")}) == nil || v.WorkloadByUID("c//Pod/app/host") == nil || v.WorkloadByUID("x") != nil {
		t.Error("lookup by network or UID is wrong")
	}
}

// TestAddressPassesOn: a pod's address is reused before the old pod is removed.
func TestAddressPassesOn(t *testing.T) {
	s := NewStore()
	s.Apply(Batch{Workloads: []*Workload{wl("c//Pod/app/a", addrs("10.0.0.1"))}})
	s.Apply(Batch{Workloads: []*Workload{wl("c//Pod/app/b", addrs("10.0.0.1"))}})
	if w := s.View().WorkloadByAddr(at("10.0.0.1")); w.UID != "c//Pod/app/b" {
		t.Errorf("the address belongs to %s", w.UID)
	}
	s.Apply(Batch{RemovedAddresses: []string{"c//Pod/app/b"}})
	if w := s.View().WorkloadByAddr(at("10.0.0.1")); w == nil || w.UID != "c//Pod/app/a" {
		t.Errorf("the address belongs to %v", w)
	}
	s.Apply(Batch{RemovedAddresses: []string{"c//Pod/app/a", "never/there", "neither"}})
	if w := s.View().WorkloadByAddr(at("10.0.0.1")); w != nil {
		t.Errorf("the address still belongs to %v", w)
	}
}

func TestLocal(t *testing.T) {
	sick := func(w *Workload) { w.Status = Unhealthy }
	on := func(node string) func(*Workload) { return func(w *Workload) { w.Name, w.Node = "p", node } }
	of := func(cluster string) func(*Workload) { return func(w *Workload) { w.ClusterID = cluster } }
	mesh := Batch{Workloads: []*Workload{wl("1", on("n1"), sick), wl("2", on("n2")), wl("3", on("n2")),
		wl("4", on("n4"), of("east")), wl("5", on("n4"), of("west"), sick)}}
	for _, tt := range []struct{ name, ns, sa, node, cluster, want string }{
		{"p", "app", "sa", "n1", "", "1"}, {"p", "app", "sa", "n2", "", "2"}, {"p", "app", "sa", "", "", "2"},
		{"p", "app", "sa", "n3", "", ""}, {"p", "app", "other", "n1", "", ""}, {"p", "other", "sa", "n1", "", ""}, {"q", "app", "sa", "n1", "", ""},
		{"p", "app", "sa", "n4", "east", "4"}, {"p", "app", "sa", "n4", "west", "5"}, {"p", "app", "sa", "n4", "north", "4"},
	} {
		got := ""
		if w := viewFrom(tt.node, mesh).Local(tt.name, tt.ns, tt.sa, tt.cluster); w != nil {
			got = w.UID
		}
		if got != tt.want {
			t.Errorf("Local(%+v) = %q", tt, got)
		}
	}
}

func TestServiceLookup(t *testing.T) {
	canonical := func(s *Service) *Service { s.Canonical = true; return s }
	private := func(s *Service) *Service { s.Visibility = NamespacePrivate; return s }
	v := viewOf(Batch{Services: []*Service{
		svc("a/one", "10.96.0.1"), svc("b/one", "10.96.0.1"), canonical(svc("c/one", "10.96.0.1")), private(svc("d/one", "10.96.0.1")),
		svc("a/twin1", "10.96.0.2"), svc("a/twin2", "10.96.0.2"),
		private(svc("d/private", "10.96.0.3")),
		svc("a/wide", "10.100.0.0/16"), svc("b/narrow", "10.100.1.0/24"), canonical(svc("c/narrow", "10.100.1.0/24")),
		private(svc("d/exact", "10.100.1.1")), svc("a/v6", "2001:db8::/32"),
	}})
	for _, tt := range []struct{ ip, ns, want string }{
		{"10.96.0.1", "a", "a/one"}, {"10.96.0.1", "b", "b/one"}, {"10.96.0.1", "d", "d/one"},
		{"10.96.0.1", "x", "c/one"},   // the canonical one
		{"10.96.0.2", "a", "a/twin1"}, // two of one namespace share an address
		{"10.96.0.3", "d", "d/private"}, {"10.96.0.3", "x", ""},
		{"10.100.9.9", "x", "a/wide"},   // only the wide one contains it
		{"10.100.1.9", "x", "c/narrow"}, // the longest prefix, then the canonical
		{"10.100.1.9", "b", "b/narrow"},
		{"10.100.1.9", "a", "a/wide"}, // own namespace goes before length
		{"10.100.1.1", "d", "d/exact"}, {"10.100.1.1", "x", "c/narrow"},
		{"2001:db8::1", "x", "a/v6"}, {"10.1.1.1", "x", ""}, {"2001:db9::1", "x", ""},
	} {
		got := ""
		if s := v.ServiceByVIP(at(tt.ip), tt.ns); s != nil {
			got = s.ResourceName()
		}
		if got != tt.want {
			t.Errorf("from %s, %s is %q, want %q", tt.ns, tt.ip, got, tt.want)
		}
	}
	for ns, want := range map[string]string{"a": "a/one", "x": "c/one", "d": "d/one"} {
		if got := v.ServiceByHost("one", ns).ResourceName(); got != want {
			t.Errorf("from %s, one is %s, want %s", ns, got, want)
		}
	}
	if v.ServiceByHost("private", "x") != nil || v.ServiceByHost("none", "x") != nil {
		t.Error("a hostname was found that should not be")
	}
	// The twin keeps the address when the other is removed.
	s := NewStore()
	s.Apply(Batch{Services: []*Service{svc("a/twin1", "10.96.0.2"), svc("a/twin2", "10.96.0.2")}})
	s.Apply(Batch{RemovedAddresses: []string{"a/twin1"}})
	if got := s.View().ServiceByVIP(at("10.96.0.2"), "a"); got == nil || got.Hostname != "twin2" {
		t.Errorf("after removal of its twin: %v", got)
	}
}

// TestEndpoints: they may come before their service, outlast it, and are kept
// whatever their health.
func TestEndpoints(t *testing.T) {
	s := NewStore()
	list := func() (out []string) {
		for _, e := range s.View().Endpoints(svc("app/web")).All() {
			out = append(out, e.Workload.UID+" "+e.Workload.Status.String())
		}
		return out
	}
	check := func(what string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, list()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	sick := func(w *Workload) { w.Status = Unhealthy }
	s.Apply(Batch{Workloads: []*Workload{wl("b", of("app/web")), wl("a", of("app/web"), sick), wl("x", of("app/other"))}})
	check("before the service", "a Unhealthy", "b Healthy")
	s.Apply(Batch{Services: []*Service{svc("app/web", "10.96.0.1")}})
	check("with the service", "a Unhealthy", "b Healthy")
	s.Apply(Batch{Workloads: []*Workload{wl("a", of("app/web"))}})
	check("healthy again", "a Healthy", "b Healthy")
	s.Apply(Batch{RemovedAddresses: []string{"app/web"}})
	check("after the service", "a Healthy", "b Healthy")
	s.Apply(Batch{Workloads: []*Workload{wl("b", of("app/other"))}, RemovedAddresses: []string{"a"}})
	check("all gone")
	if e, ok := s.View().Endpoints(svc("app/other")).Get("b"); !ok || e.Workload.UID != "b" {
		t.Errorf("Get = %v, %v", e, ok)
	}
	// Removed and set in one batch: it is there.
	s.Apply(Batch{Workloads: []*Workload{wl("b", of("app/web"))}, RemovedAddresses: []string{"b"}})
	check("replaced", "b Healthy")
	// Set twice in one batch: the later holds.
	s.Apply(Batch{Workloads: []*Workload{wl("b", of("app/web")), wl("b", of("app/other"))}})
	check("moved on within a batch")
}

func TestPoliciesFor(t *testing.T) {
	global := &Policy{Name: "g", Namespace: "root", Scope: ScopeGlobal}
	ns := &Policy{Name: "n", Namespace: "app", Scope: ScopeNamespace}
	sel := &Policy{Name: "s", Namespace: "app", Scope: ScopeSelector}
	v := viewOf(Batch{Policies: []*Policy{global, ns, sel}})
	w := wl("a")
	w.Policies = []string{"app/s", "app/unknown"}
	want := PolicySet{Global: []*Policy{global}, Namespace: []*Policy{ns}, Selected: []*Policy{sel}, Missing: []string{"app/unknown"}}
	if diff := cmp.Diff(want, v.PoliciesFor(w)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// A policy that changes its scope leaves its old place.
	s := NewStore()
	s.Apply(Batch{Policies: []*Policy{ns}})
	s.Apply(Batch{Policies: []*Policy{{Name: "n", Namespace: "app", Scope: ScopeGlobal}}})
	if v := s.View(); len(v.NamespacePolicies("app")) != 0 || len(v.GlobalPolicies()) != 1 {
		t.Errorf("after a change of scope: %v, %v", v.NamespacePolicies("app"), v.GlobalPolicies())
	}
	s.Apply(Batch{RemovedPolicies: []string{"app/n", "app/never"}})
	if v := s.View(); len(v.GlobalPolicies()) != 0 || v.Policy("app/n") != nil {
		t.Errorf("after removal: %v", v.GlobalPolicies())
	}
}

func TestMerge(t *testing.T) {
	var b Batch
	b.Merge(Batch{Workloads: []*Workload{wl("a"), wl("b")}, Services: []*Service{svc("x/s")}, Policies: []*Policy{{Name: "p", Namespace: "x"}}})
	b.Merge(Batch{RemovedAddresses: []string{"a", "x/s"}, RemovedPolicies: []string{"x/p"}, Workloads: []*Workload{wl("c")}})
	s := NewStore()
	s.Apply(Batch{Workloads: []*Workload{wl("a")}, Services: []*Service{svc("x/s")}})
	s.Apply(b)
	var got []string
	for _, w := range s.View().Workloads() {
		got = append(got, w.UID)
	}
	if diff := cmp.Diff([]string{"b", "c"}, got); diff != "" || len(s.View().Services()) != 0 || len(s.View().Policies()) != 0 {
		t.Errorf("workloads (-want +got):\n%s, services %v, policies %v", diff, s.View().Services(), s.View().Policies())
	}
}

// TestWaitMissesNothing: waiters that start while updates come are all woken.
func TestWaitMissesNothing(t *testing.T) {
	s := NewStore()
	const n = 200
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			uid := fmt.Sprint(i)
			if err := s.Wait(t.Context(), func(v *View) bool { return v.WorkloadByUID(uid) != nil }); err != nil {
				t.Errorf("%s: %v", uid, err)
			}
		})
	}
	for i := range n {
		s.Apply(Batch{Workloads: []*Workload{wl(fmt.Sprint(i))}})
	}
	wg.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Wait(ctx, func(*View) bool { return false }); !errors.Is(err, context.Canceled) {
		t.Errorf("after cancellation: %v", err)
	}
	if err := s.Wait(ctx, func(*View) bool { return true }); err != nil {
		t.Errorf("what holds already needs no waiting: %v", err)
	}
}

func TestChangedAndHooks(t *testing.T) {
	s := NewStore()
	var swaps []string
	remove := s.OnSwap(func(old, next *View) {
		if s.View() != next {
			t.Error("the hook runs before the swap")
		}
		a, _, _ := old.Len()
		b, _, _ := next.Len()
		swaps = append(swaps, fmt.Sprint(a, "→", b))
	})
	changed, old := s.Changed(), s.View()
	s.Apply(Batch{})
	if s.View() != old {
		t.Error("an empty batch made a view")
	}
	select {
	case <-changed:
		t.Error("an empty batch woke waiters")
	default:
	}
	s.Apply(Batch{Workloads: []*Workload{wl("a")}})
	select {
	case <-changed:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody was woken")
	}
	s.Apply(Batch{RemovedAddresses: []string{"a"}})
	remove()
	s.Apply(Batch{Workloads: []*Workload{wl("a")}})
	if diff := cmp.Diff([]string{"0→1", "1→0"}, swaps); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestSealing: an object that was not made by conversion is not written to.
func TestSealing(t *testing.T) {
	w, s := wl("a"), svc("app/web")
	s.SubjectAltNames = []string{"spiffe://cluster.local/ns/x/sa/y"}
	v := viewOf(Batch{Workloads: []*Workload{w}, Services: []*Service{s}})
	if len(w.ids) != 0 || s.sans != nil {
		t.Error("the store wrote to what it was given")
	}
	if got := v.WorkloadByUID("a"); len(got.ids) != 1 || got.Identity() != w.Identity() {
		t.Errorf("identity in the store: %v", got.ids)
	}
	if n := testing.AllocsPerRun(100, func() {
		w := v.WorkloadByUID("a")
		_, _ = w.Identities(), v.ServiceByHost("web", "app").SANs()
		_, _ = v.ServiceByVIP(at("10.0.0.1"), "app"), v.WorkloadByAddr(at("10.0.0.1"))
	}); n > 0 {
		t.Errorf("%v allocations for lookups, want none", n)
	}
}
