package client

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"istio.io/istio/pkg/workloadapi"

	"github.com/warren-mesh/warren/xds/workload"
)

// world is a ledger and the store that it is the record of.
type world struct {
	*ledger
	store *workload.Store
	kind  kind
}

func newWorld(k kind) *world {
	return &world{ledger: newLedger(limits{resources: maxResources, bytes: maxBytes}), store: workload.NewStore(), kind: k}
}

// apply takes a response and returns the NACK's text, empty for an ACK.
func (w *world) apply(r *discovery.DeltaDiscoveryResponse) string {
	return w.take(decoded(r))
}

func (w *world) take(r *delivery) string {
	c := w.read(w.kind, r, nil)
	w.store.Apply(c.batch)
	w.record(c, nil)
	return c.refusals.message()
}

// decoded is a response as the codec makes it of pieces of a message.
func decoded(m *discovery.DeltaDiscoveryResponse) *delivery {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	var data mem.BufferSlice
	for piece := range slices.Chunk(b, 50) {
		data = append(data, mem.SliceBuffer(piece))
	}
	r := &delivery{}
	if err := decodeResponse(data, r, maxResources, &workload.Sharer{}, nil); err != nil {
		panic(err)
	}
	return r
}

// check compares what the ledger says is in the store with what is.
func (w *world) check(t testing.TB) {
	t.Helper()
	held, bytes := map[string]string{}, 0
	for key, e := range w.entries {
		bytes += int(e.bytes)
		switch {
		case w.kind == policies:
			held[key] = "policy"
		case e.service:
			held[key] = "service"
		default:
			held[key] = "workload"
		}
		if at, ok := w.find(e.name); !ok || at != key {
			t.Errorf("%q is held as %q but found as %q", e.name, key, at)
		}
	}
	have, v := map[string]string{}, w.store.View()
	for _, x := range v.Workloads() {
		have[x.ResourceName()] = "workload"
	}
	for _, x := range v.Services() {
		if _, both := have[x.ResourceName()]; both {
			t.Errorf("%q is a workload and a service", x.ResourceName())
		}
		have[x.ResourceName()] = "service"
	}
	for _, x := range v.Policies() {
		have[x.ResourceName()] = "policy"
	}
	if d := cmp.Diff(held, have); d != "" {
		t.Error("the store is not as recorded (-recorded +store):", d)
	}
	if bytes != w.bytes {
		t.Errorf("%d bytes recorded, they are %d", w.bytes, bytes)
	}
	if len(w.entries) > w.limit.resources || w.bytes > w.limit.bytes {
		t.Errorf("%d resources of %d bytes, the limits are %+v", len(w.entries), w.bytes, w.limit)
	}
}

func names(w *world) []string { return slices.Sorted(maps.Keys(w.entries)) }

func TestRefusals(t *testing.T) {
	named := func(r *discovery.Resource, name string) *discovery.Resource { r.Name = name; return r }
	versioned := func(r *discovery.Resource, v string) *discovery.Resource { r.Version = v; return r }
	tests := []struct {
		name     string
		resource *discovery.Resource
		want     string // in the NACK
	}{
		{"no name", named(pod("w", "1"), ""), ": a resource without a name"},
		{"long name", named(pod("w", "1"), strings.Repeat("x", maxName+1)), "a name of 4097 bytes"},
		{"long version", versioned(pod("w", "1"), strings.Repeat("x", maxVersion+1)), "w: a version of 1025 bytes"},
		{"empty", &discovery.Resource{Name: "w"}, "w: no resource inside"},
		{"other type", &discovery.Resource{Name: "w", Resource: &anypb.Any{TypeUrl: AuthorizationType}}, "w: a resource of type"},
		{"junk", &discovery.Resource{Name: "w", Resource: &anypb.Any{TypeUrl: AddressType, Value: []byte("junk")}}, "w: proto:"},
		{"neither", &discovery.Resource{Name: "w", Resource: &anypb.Any{TypeUrl: AddressType}}, "w: workload: address is neither"},
		{"too large", &discovery.Resource{Name: "w", Resource: &anypb.Any{TypeUrl: AddressType, Value: make([]byte, maxResource+1)}}, "w: 4194305 bytes"},
		{"another's name", named(pod("w", "1"), "v"), "v: it holds w"},
		{"a service under another's name", named(service("ns/a", "1"), "ns/b"), "ns/b: it holds ns/a"},
		{"a workload with capitals of its own", named(pod("ns/A", "1"), "ns/a"), "ns/a: it holds ns/A"},
		{"cannot be converted", badPod("w", "1"), "w: workload: an address"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(addresses)
			got := w.apply(response(AddressType, "1", tt.resource, pod("good", "1")))
			if !strings.Contains(got, tt.want) {
				t.Errorf("NACK %q, want %q", got, tt.want)
			}
			if d := cmp.Diff([]string{"good"}, names(w)); d != "" {
				t.Error("(-want +got):", d)
			}
			w.check(t)
		})
	}
}

func TestNackIsBounded(t *testing.T) {
	w := newWorld(addresses)
	r := response(AddressType, "1")
	for i := range 10_000 {
		r.Resources = append(r.Resources, badPod(fmt.Sprintf("w%d", i)+strings.Repeat("é", 300), "1"))
	}
	got := w.apply(r)
	if len(got) > maxNack+100 || !strings.Contains(got, "; and 99") {
		t.Errorf("a NACK of %d bytes: …%s", len(got), got[len(got)-100:])
	}
	if len(w.refused) != maxRefused {
		t.Errorf("%d names remembered as refused", len(w.refused))
	}
	if clip("aé", 2) != "a…" || clip("aé", 3) != "aé" {
		t.Error("cut inside a character")
	}
}

func TestLimits(t *testing.T) {
	w := newWorld(addresses)
	size := len(pod("w1", "1").GetResource().GetValue())
	w.limit = limits{resources: 2, bytes: 3 * size}
	if got := w.apply(response(AddressType, "1", pod("w1", "1"), pod("w2", "1"), pod("w3", "1"))); !strings.Contains(got, "w3: more than 2 resources") {
		t.Errorf("NACK %q", got)
	}
	w.check(t)
	// What is there may change. Removals make room for the next response, not for
	// their own, in which the same name may come again.
	r := response(AddressType, "2", pod("w1", "2"), pod("w3", "1"))
	r.RemovedResources = []string{"w2"}
	if got := w.apply(r); !strings.HasPrefix(got, "w3: more than 2 resources") {
		t.Errorf("NACK %q", got)
	}
	if got := w.apply(response(AddressType, "2", pod("w3", "1"))); got != "" {
		t.Errorf("NACK %q", got)
	}
	w.check(t)
	if got := w.apply(response(AddressType, "3", pod("w1", "3", strings.Repeat("x", 3*size)))); !strings.Contains(got, "bytes of resources") {
		t.Errorf("NACK %q", got)
	}
	w.check(t)
}

// TestServicesCount: names of services are short on the wire, and cost more here.
func TestServicesCount(t *testing.T) {
	w := newWorld(addresses)
	w.limit.bytes = 100 * serviceCost
	many := &workloadapi.Workload{Uid: "w", Services: make(map[string]*workloadapi.PortList)}
	for i := range 100 {
		many.Services[fmt.Sprint("n/", i)] = nil
	}
	r := response(AddressType, "1", &discovery.Resource{Name: "w", Resource: pack(AddressType, &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: many}})})
	if got := w.apply(r); !strings.Contains(got, "bytes of resources") {
		t.Errorf("NACK %q", got)
	}
	w.limit.bytes *= 2
	if got := w.apply(r); got != "" {
		t.Errorf("NACK %q", got)
	}
	w.check(t)
}

func TestNames(t *testing.T) {
	w := newWorld(addresses)
	step := func(what string, r *discovery.DeltaDiscoveryResponse, want ...string) {
		t.Helper()
		w.apply(r)
		w.check(t)
		if d := cmp.Diff(want, names(w)); d != "" {
			t.Errorf("%s (-want +got): %s", what, d)
		}
	}
	step("a hostname with capitals", response(AddressType, "1", service("ns/Web.Example", "1")), "ns/web.example")
	if got := w.initial(initialBudget); got["ns/Web.Example"] != "1" {
		t.Errorf("told on reconnect: %v", got)
	}
	step("removed by another spelling", removal(AddressType, "2", "ns/web.example"), "ns/web.example")
	step("removed by its own", removal(AddressType, "3", "ns/Web.Example"))
	step("a service", response(AddressType, "4", service("ns/x", "1")), "ns/x")
	step("becomes a workload", response(AddressType, "5", pod("ns/x", "1")), "ns/x")
	step("and a service again", response(AddressType, "6", service("ns/x", "2")), "ns/x")
	step("a workload with capitals", response(AddressType, "7", pod("ns/Y", "1")), "ns/Y", "ns/x")
	step("becomes a service", response(AddressType, "8", service("ns/Y", "1")), "ns/x", "ns/y")
	step("and a workload again", response(AddressType, "9", pod("ns/Y", "1")), "ns/Y", "ns/x")
	step("the same twice", response(AddressType, "10", pod("w", "1"), pod("w", "2"), pod("ns/Y", "2"), service("ns/Y", "3")), "ns/Y", "ns/x", "w")
	r := response(AddressType, "11", pod("w", "3"))
	r.RemovedResources = []string{"w", "ns/x", "w"}
	step("removed and set", r, "ns/Y", "w")
	if got := w.store.View().WorkloadByUID("w").CanonicalRevision; got != "3" {
		t.Errorf("w is at %s", got)
	}
}

// A mesh whose names do not fit into one request is followed nevertheless.
func TestInitialVersionsThatDoNotFit(t *testing.T) {
	w := newWorld(addresses)
	w.apply(response(AddressType, "1", pod("w1", "1"), pod("w2", "1"), pod("w3", "1"), pod("w4", "1"), service("ns/S", "1")))
	told := w.initial(34) // any two
	if len(told) != 2 || len(w.unsaid) != 3 {
		t.Fatalf("told %v, not told %v", told, w.unsaid)
	}
	// The control plane answers with the difference to what it was told: w1 and
	// w2 are gone, w3 it cannot send in a form that we take.
	r := response(AddressType, "2")
	for name := range told {
		if name == "w1" || name == "w2" {
			r.RemovedResources = append(r.RemovedResources, name)
		}
	}
	for _, res := range []*discovery.Resource{badPod("w3", "2"), pod("w4", "1"), service("ns/S", "1")} {
		if _, known := told[res.GetName()]; !known || res.GetName() == "w3" {
			r.Resources = append(r.Resources, res)
		}
	}
	w.apply(r)
	w.check(t)
	if d := cmp.Diff([]string{"ns/s", "w3", "w4"}, names(w)); d != "" {
		t.Error("(-want +got):", d)
	}
	// Later responses say nothing of what they do not mention.
	w.apply(response(AddressType, "3", pod("w5", "1")))
	if d := cmp.Diff([]string{"ns/s", "w3", "w4", "w5"}, names(w)); d != "" {
		t.Error("(-want +got):", d)
	}
}

func TestConfig(t *testing.T) {
	tests := []struct {
		cfg  Config
		want string
	}{
		{Config{Address: "https://istiod:15012"}, "needs a TLS configuration"},
		{Config{Address: "istiod:15012"}, "want https://host:port"},
		{Config{Address: "http://istiod"}, "want http://host:port"},
		{Config{Address: "http://u@istiod:1/"}, "want http://host:port"},
		{Config{Address: "unix://relative"}, "want unix:///absolute/path"},
		{Config{Address: "http://a\x00"}, "address"},
		{Config{Address: "http://a:1", OnDemand: true}, "NODE_NAME"},
		{Config{Address: "http://a:1", OnDemand: true, Node: Node{NodeName: "n"}}, ""},
		{Config{Address: "http://a:1", Headers: [][2]string{{"a b", "c"}}}, `header "a b"`},
		{Config{Address: "http://a:1", Headers: [][2]string{{"grpc-timeout", "1S"}}}, `header "grpc-timeout"`},
		{Config{Address: "http://a:1", Headers: [][2]string{{"a", "hush\n"}}}, "header a: its value has a byte at 4"},
		{Config{Address: "http://a:1", Node: Node{Metadata: map[string]any{"k": make(chan int)}}}, "node metadata k"},
		{Config{Address: "http://a:1"}, ""},
		{Config{Address: "http://[::1]:1"}, ""},
		{Config{Address: "unix:///a"}, ""},
	}
	for _, tt := range tests {
		_, err := New(tt.cfg, workload.NewStore())
		if tt.want == "" != (err == nil) || err != nil && (!strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "hush")) {
			t.Errorf("%+v: %v, want %q", tt.cfg, err, tt.want)
		}
	}
}
