package route

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/warren-mesh/warren/xds/workload"
)

type mods = []func(*workload.Workload)

// world is a service with endpoints and the pod that asks. The endpoints' UIDs
// end with their index.
func world(lb *workload.LoadBalancing, client mods, eps ...mods) (*workload.View, *workload.Workload) {
	s := service("web", "app", "10.96.0.1", func(s *workload.Service) { s.LoadBalancing = lb })
	self := pod("self", "app", client...)
	b := workload.Batch{Services: []*workload.Service{s}}
	for i, e := range eps {
		all := append(mods{ips(fmt.Sprintf("10.0.1.%d", i)), endpointOf(s)}, e...)
		b.Workloads = append(b.Workloads, pod(fmt.Sprint(i), "app", all...))
	}
	return apply(b), self
}

// chosen is which endpoints are chosen within many decisions.
func chosen(t *testing.T, v *workload.View, self *workload.Workload, opts Options) []int {
	t.Helper()
	seen := map[int]bool{}
	for range 200 {
		d, err := Outbound(v, self, opts, clientAddr, ap("10.96.0.1:80"))
		if errors.Is(err, ErrNoHealthyUpstream) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		seen[int(d.Endpoint.Addr.As4()[3])] = true
		if d.Endpoint.UID != d.Destination.UID || d.Endpoint.Port != 8080 {
			t.Fatalf("endpoint %+v of %s", d.Endpoint, d.Destination.UID)
		}
	}
	var out []int
	for i := range seen {
		out = append(out, i)
	}
	slices.Sort(out)
	return out
}

func at(region, zone, node string) func(*workload.Workload) {
	return func(w *workload.Workload) {
		w.Locality, w.Node = workload.Locality{Region: region, Zone: zone}, node
	}
}

func weighs(n uint32) func(*workload.Workload) {
	return func(w *workload.Workload) { w.Capacity = &n }
}

// TestBalanceAgain: what is chosen when some have been tried or rest.
func TestBalanceAgain(t *testing.T) {
	local := &workload.LoadBalancing{Mode: workload.LBFailover, Preferences: []workload.Scope{workload.Region, workload.Zone}}
	strict := &workload.LoadBalancing{Mode: workload.LBStrict, Preferences: []workload.Scope{workload.Node}}
	near, far := mods{at("r", "z", "n1")}, mods{at("q", "y", "n2")}
	for _, tt := range []struct {
		name           string
		lb             *workload.LoadBalancing
		eps            []mods
		tried, resting []int
		want           []int
	}{
		{name: "nothing has happened", eps: []mods{nil, nil, nil}, want: []int{0, 1, 2}},
		{name: "one was tried", eps: []mods{nil, nil, nil}, tried: []int{1}, want: []int{0, 2}},
		{name: "all but one were tried", eps: []mods{nil, nil, nil}, tried: []int{0, 1}, want: []int{2}},
		{name: "all were tried", eps: []mods{nil, nil, nil}, tried: []int{0, 1, 2}},
		{name: "one rests", eps: []mods{nil, nil, nil}, resting: []int{2}, want: []int{0, 1}},
		{name: "all rest", eps: []mods{nil, nil, nil}, resting: []int{0, 1, 2}, want: []int{0, 1, 2}},
		{name: "what is left rests", eps: []mods{nil, nil, nil}, tried: []int{0}, resting: []int{1, 2}, want: []int{1, 2}},
		{name: "what was tried and rests", eps: []mods{nil, nil}, tried: []int{0}, resting: []int{0}, want: []int{1}},
		{name: "by weight", eps: []mods{{weighs(1)}, {weighs(5)}, {weighs(3)}}, tried: []int{1}, resting: []int{2}, want: []int{0}},
		{name: "the next best place", lb: local, eps: []mods{near, far}, tried: []int{0}, want: []int{1}},
		{name: "the next best place while the best rests", lb: local, eps: []mods{near, far}, resting: []int{0}, want: []int{1}},
		{name: "the best place when all rest", lb: local, eps: []mods{near, far}, resting: []int{0, 1}, want: []int{0}},
		{name: "strict stays strict", lb: strict, eps: []mods{near, far}, tried: []int{0}},
		{name: "strict and resting", lb: strict, eps: []mods{near, far}, resting: []int{0}, want: []int{0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, self := world(tt.lb, mods{at("r", "z", "n1")}, tt.eps...)
			of := func(i int) Endpoint {
				w := v.WorkloadByUID(fmt.Sprintf("Kubernetes//Pod/app/%d", i))
				return Endpoint{UID: w.UID, Addr: w.Addresses[0], Port: 8080}
			}
			var opts Options
			for _, i := range tt.tried {
				opts.Tried = append(opts.Tried, of(i))
			}
			if tt.resting != nil {
				opts.Resting = func(e Endpoint) bool {
					return slices.ContainsFunc(tt.resting, func(i int) bool { return of(i) == e })
				}
			}
			if got := chosen(t, v, self, opts); !slices.Equal(got, tt.want) {
				t.Errorf("chosen %v, want %v", got, tt.want)
			}
		})
	}
}

// A workload that comes back under its name, or on another port, is another one.
func TestEndpointIsNotAName(t *testing.T) {
	v, self := world(nil, nil, nil)
	d, err := Outbound(v, self, Options{}, clientAddr, ap("10.96.0.1:80"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		change func(*Endpoint)
		found  bool
	}{
		{"the same", func(*Endpoint) {}, false},
		{"another address", func(e *Endpoint) { e.Addr = e.Addr.Next() }, true},
		{"another port", func(e *Endpoint) { e.Port++ }, true},
		{"another workload", func(e *Endpoint) { e.UID = "x" }, true},
	} {
		e := d.Endpoint
		tt.change(&e)
		if _, err := Outbound(v, self, Options{Tried: []Endpoint{e}}, clientAddr, ap("10.96.0.1:80")); (err == nil) != tt.found {
			t.Errorf("%s was tried: %v", tt.name, err)
		}
	}
}

// TestBalanceModes: who is chosen at all, by mode, places, health and weight.
func TestBalanceModes(t *testing.T) {
	sick := func(w *workload.Workload) { w.Status = workload.Unhealthy }
	network := func(n string) func(*workload.Workload) {
		return func(w *workload.Workload) {
			w.Network, w.NetworkGateway = n, &workload.GatewayAddress{Hostname: workload.NamespacedHostname{Namespace: "i", Hostname: "gw"}, HBONEPort: 15008}
		}
	}
	cluster := func(c string) func(*workload.Workload) { return func(w *workload.Workload) { w.ClusterID = c } }
	sub := func(s string) func(*workload.Workload) { return func(w *workload.Workload) { w.Locality.Subzone = s } }
	lb := func(m workload.LBMode, p ...workload.Scope) *workload.LoadBalancing {
		return &workload.LoadBalancing{Mode: m, Preferences: p}
	}
	all := func(l *workload.LoadBalancing) *workload.LoadBalancing { l.HealthPolicy = workload.AllowAll; return l }
	close := lb(workload.LBFailover, workload.Network, workload.Region, workload.Zone)
	sameNode := lb(workload.LBFailover, workload.Network, workload.Region, workload.Zone, workload.Subzone, workload.Node)
	here := mods{at("r", "z", "n1")}
	for _, tt := range []struct {
		name   string
		lb     *workload.LoadBalancing
		client mods
		eps    []mods
		want   []int
	}{
		// Failover, in its order.
		{"zone before region before the rest", close, here, []mods{{at("q", "z", "")}, {at("r", "y", "")}, {at("r", "z", "")}}, []int{2}},
		{"region when no zone", close, here, []mods{{at("q", "z", "")}, {at("r", "y", "")}}, []int{1}},
		{"the rest when no region", close, here, []mods{{at("q", "z", "")}, {at("p", "z", "")}}, []int{0, 1}},
		{"a zone of that name elsewhere is another", close, here, []mods{{at("q", "z", "")}, {at("r", "x", "")}}, []int{1}},
		{"node before zone", sameNode, here, []mods{{at("r", "z", "n2")}, {at("r", "z", "n1")}}, []int{1}},
		{"a node in another zone does not count", sameNode, here, []mods{{at("r", "y", "n1")}, {at("r", "z", "n2")}}, []int{1}},
		{"past those that are unhealthy", close, here, []mods{{at("r", "z", ""), sick}, {at("r", "y", ""), sick}, {at("q", "", "")}}, []int{2}},
		{"past those without weight", close, here, []mods{{at("r", "z", ""), weighs(0)}, {at("q", "", "")}}, []int{1}},
		{"unhealthy ones count where all are allowed", all(lb(workload.LBFailover, workload.Region)), here, []mods{{at("r", "", ""), sick}, {at("q", "", "")}}, []int{0}},
		{"cluster", lb(workload.LBFailover, workload.Cluster), here, []mods{{cluster("x")}, nil}, []int{1}},
		{"subzone", lb(workload.LBFailover, workload.Subzone), mods{sub("s")}, []mods{{sub("t")}, {sub("s")}}, []int{1}},

		// What is not known.
		{"a client without a place, endpoints with one", close, mods{at("", "", "")}, []mods{{at("r", "z", "")}, {at("q", "y", "")}}, []int{0, 1}},
		{"nobody has a place", close, mods{at("", "", "")}, []mods{{at("", "", "")}, {at("", "", "")}}, []int{0, 1}},
		{"a client without a place is near one without", close, mods{at("", "", "")}, []mods{{at("r", "z", "")}, {at("", "", "")}}, []int{1}},
		{"an unknown preference is met by nobody", lb(workload.LBFailover, workload.Scope(99), workload.Node), here, []mods{{at("r", "z", "n1")}, {at("r", "z", "n2")}}, []int{0, 1}},

		// Strict.
		{"strict node", lb(workload.LBStrict, workload.Node), here, []mods{{at("r", "z", "n1")}, {at("r", "z", "n2")}}, []int{0}},
		{"strict node, unhealthy", lb(workload.LBStrict, workload.Node), here, []mods{{at("r", "z", "n1"), sick}, {at("r", "z", "n2")}}, nil},
		{"strict node, without weight", lb(workload.LBStrict, workload.Node), here, []mods{{at("r", "z", "n1"), weighs(0)}, {at("r", "z", "n2")}}, nil},
		{"strict wants all", lb(workload.LBStrict, workload.Region, workload.Zone), here, []mods{{at("r", "y", "")}, {at("q", "z", "")}}, nil},
		{"strict network is no wish", lb(workload.LBStrict, workload.Network), here, []mods{{network("n2")}, nil}, []int{1}},
		{"strict without preferences", lb(workload.LBStrict), here, []mods{{at("q", "", "")}, {at("r", "", "")}}, []int{0, 1}},

		// Health and weight.
		{"all are unhealthy", nil, nil, []mods{{sick}, {sick}}, nil},
		{"all are unhealthy and allowed", all(lb(workload.LBStandard)), nil, []mods{{sick}, {sick}}, []int{0, 1}},
		{"no weight at all", nil, nil, []mods{{weighs(0)}, {weighs(0)}}, nil},
		{"no weight at all, ranked", close, here, []mods{{weighs(0)}, {weighs(0)}}, nil},
		{"the heaviest weights do not overflow", nil, nil, []mods{{weighs(1<<32 - 1)}, {weighs(1<<32 - 1)}, {weighs(0)}}, []int{0, 1}},
		{"no endpoints", close, here, nil, nil},
		{"one without an address", nil, nil, []mods{{func(w *workload.Workload) { w.Addresses = nil }}}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, self := world(tt.lb, tt.client, tt.eps...)
			if got := chosen(t, v, self, Options{}); !slices.Equal(got, tt.want) {
				t.Errorf("chosen %v, want %v", got, tt.want)
			}
		})
	}
}

// Looking for what does not rest costs nothing when nothing does, and little when
// something does.
func TestBalanceAgainAllocations(t *testing.T) {
	v, self := bench(100, nil)
	d, err := Outbound(v, self, Options{}, clientAddr, ap("10.96.0.1:80"))
	if err != nil {
		t.Fatal(err)
	}
	opts := Options{Tried: []Endpoint{d.Endpoint}, Resting: func(e Endpoint) bool { return e.Port != 8080 }}
	if n := testing.AllocsPerRun(200, func() {
		if _, err := Outbound(v, self, opts, clientAddr, ap("10.96.0.1:80")); err != nil {
			t.Fatal(err)
		}
	}); n > 1 { // the authority
		t.Errorf("%v allocations a decision, want 1", n)
	}
}

func BenchmarkBalanceResting(b *testing.B) {
	v, self := bench(1000, nil)
	resting := func(e Endpoint) bool { return e.Addr.As4()[3]%2 == 0 }
	for b.Loop() {
		if _, err := Outbound(v, self, Options{Resting: resting}, clientAddr, ap("10.96.0.1:80")); err != nil {
			b.Fatal(err)
		}
	}
}
