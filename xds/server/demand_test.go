package server

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/warren-mesh/warren/xds/workload"
)

// town is a mesh of pods on two nodes behind services.
func town(change ...func(*Model)) Model {
	web := workload.NamespacedHostname{Namespace: "app", Hostname: "web"}
	pod := func(uid, node, ip string, services ...workload.NamespacedHostname) *workload.Workload {
		w := &workload.Workload{UID: uid, Node: node, Addresses: []netip.Addr{netip.MustParseAddr(ip)}}
		for _, s := range services {
			w.Services = append(w.Services, workload.Membership{Service: s})
		}
		return w
	}
	vip := func(ip string) []workload.NetworkAddr {
		return []workload.NetworkAddr{{Addr: netip.MustParseAddr(ip)}}
	}
	host := pod("host", "two", "10.0.0.9")
	host.NetworkMode = workload.HostNetwork
	m := Model{
		Workloads: []*workload.Workload{
			pod("here", "one", "10.0.0.1"), pod("web-1", "two", "10.0.0.2", web), pod("web-2", "two", "10.0.0.3", web), pod("far", "two", "fd00::4"), host,
		},
		Services: []*workload.Service{
			{Namespace: "app", Hostname: "web", VIPs: vip("10.9.0.1")},
			{Namespace: "old", Hostname: "web", VIPs: vip("10.9.0.1")},
			{Namespace: "app", Hostname: "range", CIDRs: []workload.NetworkPrefix{{Prefix: netip.MustParsePrefix("10.9.0.0/16")}, {Prefix: netip.MustParsePrefix("fd01::/64")}}},
		},
	}
	for _, c := range change {
		c(&m)
	}
	return m
}

func build(t testing.TB, prev *Snapshot, m Model) *Snapshot {
	t.Helper()
	s, err := NewSnapshot(prev, m)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// visitor is a client of node one that is subscribed to nothing.
func visitor(t *testing.T, newest *Snapshot) *model {
	t.Helper()
	m := newModel(t)
	m.request(demanding(nil))
	m.now = m.now.Add(companion)
	m.settle(newest)
	return m
}

func demanding(initial map[string]string, names ...string) *discovery.DeltaDiscoveryRequest {
	return &discovery.DeltaDiscoveryRequest{
		TypeUrl: AddressType, InitialResourceVersions: initial,
		Node:                   &corev3.Node{Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"NODE_NAME": structpb.NewStringValue("one")}}},
		ResourceNamesSubscribe: append([]string{"*"}, names...), ResourceNamesUnsubscribe: []string{"*"},
	}
}

func (m *model) ask(newest *Snapshot, names ...string) {
	m.t.Helper()
	m.request(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResourceNamesSubscribe: names})
	m.settle(newest)
}

func TestOnDemandAnswers(t *testing.T) {
	newest := build(t, nil, town())
	for name, want := range map[string]string{
		"web-1":        "addresses +web-1",
		"/10.0.0.2":    "addresses +web-1",
		"/fd00::4":     "addresses +far",
		"app/web":      "addresses +app/web +web-1 +web-2",
		"/10.9.0.1":    "addresses +app/web +old/web +web-1 +web-2",
		"/10.9.7.7":    "addresses +app/range -/10.9.7.7", // nobody is there
		"/fd01::1":     "addresses +app/range -/fd01::1",
		"here":         "addresses +here", // again, for who waits for it
		"/10.0.0.9":    "addresses -/10.0.0.9",
		"/10.0.0.77":   "addresses -/10.0.0.77",
		"net/10.0.0.2": "addresses -net/10.0.0.2",
		"app/nothing":  "addresses -app/nothing",
		"":             "addresses -",
	} {
		t.Run(name, func(t *testing.T) {
			m := visitor(t, newest)
			m.wantLog("addresses +here")
			m.ask(newest, name)
			m.wantLog(want)
			m.settle(newest)
			m.wantLog()
		})
	}
}

// TestOnDemandFollows: what a client has asked for is followed, whether it was there
// or not, and nothing else is.
func TestOnDemandFollows(t *testing.T) {
	one := build(t, nil, town())
	m := visitor(t, one)
	m.ask(one, "app/web", "/10.0.0.77")
	m.log = nil
	two := build(t, one, town(func(t *Model) {
		late := *t.Workloads[1]
		late.UID, late.Addresses = "web-3", []netip.Addr{netip.MustParseAddr("10.0.0.5")}
		found := *t.Workloads[3]
		found.UID, found.Addresses = "found", []netip.Addr{netip.MustParseAddr("10.0.0.77")}
		other := *t.Workloads[3]
		other.UID = "other"
		changed := *t.Workloads[2]
		changed.CanonicalName = "changed"
		t.Workloads = []*workload.Workload{t.Workloads[0], &changed, &late, &found, &other}
	}))
	m.settle(two)
	m.wantLog("addresses +found +web-2 +web-3 -web-1")
	m.request(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResourceNamesUnsubscribe: []string{"/10.0.0.77", "unknown"}})
	three := build(t, two, town(func(t *Model) { t.Workloads = t.Workloads[:1] }))
	m.settle(three)
	m.wantLog("addresses -found -web-2 -web-3")
}

// TestOnDemandAsksAgain: who gives a name back and asks for it in the next message is
// answered, with what belongs to it that it does not have, and told in no moment that what
// it stands for is gone.
func TestOnDemandAsksAgain(t *testing.T) {
	one := build(t, nil, town())
	changed := func(i int) *Snapshot {
		return build(t, one, town(func(t *Model) { t.Workloads[i].CanonicalName = "changed" }))
	}
	for name, c := range map[string]struct {
		between, then *Snapshot
		news, answer  string
	}{
		"nothing has changed":           {one, one, "addresses -no/body", "addresses +app/web"},
		"there is news between the two": {changed(3), changed(3), "addresses -no/body", "addresses +app/web"},
		"of what belongs to it":         {changed(2), changed(2), "addresses +web-2 -no/body", "addresses +app/web"},
		"and after them":                {one, changed(2), "addresses -no/body", "addresses +app/web +web-2"},
	} {
		t.Run(name, func(t *testing.T) {
			m := visitor(t, one)
			m.ask(one, "app/web")
			m.log = nil
			m.request(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResourceNamesSubscribe: []string{"no/body"}, ResourceNamesUnsubscribe: []string{"app/web"}})
			m.pull(c.between)
			m.wantLog(c.news)
			m.request(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResourceNamesSubscribe: []string{"app/web"}})
			m.settle(c.then)
			m.wantLog(c.answer)
			// What is not asked for again is gone when there is something to say.
			m.request(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResourceNamesUnsubscribe: []string{"app/web", "no/body"}})
			m.settle(c.then)
			m.ask(c.then, "far")
			m.wantLog("addresses +far -app/web -web-1 -web-2")
		})
	}
}

// TestOnDemandMembersByName: what belongs to something that is asked for with it is
// answered by itself, too.
func TestOnDemandMembersByName(t *testing.T) {
	newest := build(t, nil, town())
	m := visitor(t, newest)
	m.ask(newest, "app/web")
	for range 20 { // in whatever order they are gone through
		m.log = nil
		m.ask(newest, "web-1", "app/web", "web-2")
		m.wantLog("addresses +app/web +web-1 +web-2")
	}
}

// TestOnDemandReconnect: names that the client has come from its versions.
func TestOnDemandReconnect(t *testing.T) {
	newest := build(t, nil, town())
	version := func(name string) string { return newest.types[addresses].byName[name].version }
	m := newModel(t)
	m.request(demanding(map[string]string{
		"here": version("here"), "web-1": "old", "web-2": version("web-2"), "gone": "1", "/10.0.0.88": "",
	}, "/fd00::4"))
	m.now = m.now.Add(companion)
	m.settle(newest)
	m.wantLog("addresses +far +web-1 -/10.0.0.88 -gone")
}

func TestOnDemandAliases(t *testing.T) {
	newest := build(t, nil, town())
	m := visitor(t, newest)
	m.request(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResourceNamesSubscribe: []string{"app/range", "app/web"}})
	got := map[string]string{}
	for _, r := range m.s.next(newest, m.now).resources {
		got[r.name] = strings.Join(r.aliases, " ")
	}
	want := map[string]string{"app/range": "/10.9.0.0/16 /fd01::/64", "app/web": "/10.9.0.1", "web-1": "/10.0.0.2", "web-2": "/10.0.0.3"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("aliases %v, want %v", got, want)
	}
	for _, r := range newest.types[addresses].byName {
		if len(r.aliases) > 0 {
			t.Errorf("%s has aliases for those who follow everything", r.name)
		}
	}
}

// TestOnDemandOneInFlight: what is asked while an answer is on its way waits for it.
func TestOnDemandOneInFlight(t *testing.T) {
	newest := build(t, nil, town())
	m := visitor(t, newest)
	m.log = nil
	m.request(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResourceNamesSubscribe: []string{"far"}})
	m.pull(newest)
	m.request(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResourceNamesSubscribe: []string{"web-1", "web-2"}})
	m.pull(newest)
	m.wantLog("addresses +far")
	m.ack()
	m.pull(newest)
	m.wantLog("addresses +web-1 +web-2")
}

func TestOnDemandLimits(t *testing.T) {
	s := newSession(time.Unix(0, 0), time.Minute)
	if _, err := s.request(demanding(nil, strings.Repeat("x", maxNameSize+1))); grpcstatus.Code(err) != codes.InvalidArgument {
		t.Errorf("a long name: %v", err)
	}
	s = newSession(time.Unix(0, 0), time.Minute)
	if _, err := s.request(demanding(nil)); err != nil {
		t.Fatal(err)
	}
	for i := range maxNames / 1000 {
		var names []string
		for j := range 1000 {
			names = append(names, fmt.Sprintf("/%d-%d", i, j))
		}
		if _, err := s.request(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResourceNamesSubscribe: names}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.request(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResourceNamesSubscribe: []string{"/0-0"}}); err != nil {
		t.Errorf("a known name: %v", err)
	}
	if _, err := s.request(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResourceNamesSubscribe: []string{"/one too many"}}); grpcstatus.Code(err) != codes.ResourceExhausted {
		t.Errorf("one name too many: %v", err)
	}
	for _, r := range []*discovery.DeltaDiscoveryRequest{{ResourceNamesUnsubscribe: []string{"/0-0"}}, {ResourceNamesSubscribe: []string{"/in its place"}}} {
		r.TypeUrl = AddressType
		if _, err := s.request(r); err != nil {
			t.Errorf("one name for another: %v", err)
		}
	}
}

// TestOnDemandNamesInBytes: long names are as much as more short ones, each counts once,
// and for one that was given back there is another.
func TestOnDemandNamesInBytes(t *testing.T) {
	s := newSession(time.Unix(0, 0), time.Minute)
	if _, err := s.request(demanding(nil)); err != nil {
		t.Fatal(err)
	}
	ask := func(unsubscribe []string, subscribe ...string) error {
		_, err := s.request(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResourceNamesSubscribe: subscribe, ResourceNamesUnsubscribe: unsubscribe})
		return err
	}
	long := func(i int) string { return fmt.Sprintf("%0*d", maxNameSize, i) }
	const most = maxNamesSize / maxNameSize
	for i := range most {
		if err := ask(nil, long(i)); err != nil {
			t.Fatalf("name %d: %v", i, err)
		}
	}
	if err := ask(nil, long(0), long(most-1)); err != nil {
		t.Errorf("names that are known: %v", err)
	}
	if err := ask(nil, "/x"); grpcstatus.Code(err) != codes.ResourceExhausted {
		t.Errorf("a byte too many: %v", err)
	}
	if err := ask([]string{long(0), long(0), long(1), "/unknown"}); err != nil {
		t.Error(err)
	}
	if d := s.subs[addresses].demand; len(d.left) != 2 {
		t.Errorf("%d names wait to be forgotten, want 2", len(d.left))
	}
	if err := ask(nil, long(0), long(most)); err != nil {
		t.Errorf("one name for another: %v", err)
	}
	if err := ask(nil, long(most+1)); grpcstatus.Code(err) != codes.ResourceExhausted {
		t.Errorf("one name too many again: %v", err)
	}
}

// TestOnDemandAsksAreShort: what a client that is up to date asks for is answered as if
// all that it has ever asked for were gone through, whatever it gave back meanwhile.
func TestOnDemandAsksAreShort(t *testing.T) {
	newest := build(t, nil, town())
	requests := [][2][]string{
		{{"app/web", "/10.0.0.77"}, nil}, {{"web-1", "far"}, nil}, {{"app/web"}, nil}, {{"/fd00::4"}, {"app/web"}},
		{{"app/web"}, {"app/web"}}, {nil, {"web-1", "app/web"}}, {{"app/range", "app/nothing"}, {"far"}},
	}
	short, long := visitor(t, newest), visitor(t, newest)
	for i, names := range requests {
		for _, m := range []*model{short, long} {
			m.log = nil
			if m == long {
				m.s.subs[addresses].demand.less = true
			}
			m.request(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResourceNamesSubscribe: names[0], ResourceNamesUnsubscribe: names[1]})
			m.settle(newest)
		}
		if !slices.Equal(short.log, long.log) {
			t.Errorf("request %d: %q, want %q", i, short.log, long.log)
		}
	}
	d := short.s.subs[addresses].demand
	for i := range 50_000 {
		d.names[fmt.Sprint("/10.1.", i>>8, ".", i&255)] = struct{}{}
	}
	d.asked["web-1"] = struct{}{}
	if n := testing.AllocsPerRun(10, func() { d.step(newest) }); n > 50 {
		t.Errorf("%v allocations for one name beside 50,000", n)
	}
}
