package server

import (
	"runtime"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
)

// TestResponseIsWhatIsMeant: what was put together is what would have been encoded.
func TestResponseIsWhatIsMeant(t *testing.T) {
	a, errA := newResource("a", "1", AddressType, []byte("value of a"))
	b, errB := newResource("b", "2", AddressType, make([]byte, 300))
	if errA != nil || errB != nil {
		t.Fatal(errA, errB)
	}
	r := &response{kind: addresses, version: "v", nonce: "n", removed: []string{"c", "d"}, resources: []*resource{
		a, b, a.called([]string{"x", "yy"}), b.called([]string{"z"}), a.called(nil),
	}}
	pack := func(name, version string, value []byte, aliases ...string) *discovery.Resource {
		return &discovery.Resource{Name: name, Version: version, Aliases: aliases, Resource: &anypb.Any{TypeUrl: AddressType, Value: value}}
	}
	want := &discovery.DeltaDiscoveryResponse{
		TypeUrl: AddressType, SystemVersionInfo: "v", Nonce: "n", RemovedResources: []string{"c", "d"}, Resources: []*discovery.Resource{
			pack("a", "1", []byte("value of a")), pack("b", "2", make([]byte, 300)),
			pack("a", "1", []byte("value of a"), "x", "yy"), pack("b", "2", make([]byte, 300), "z"), pack("a", "1", []byte("value of a")),
		},
	}
	data, err := Codec(nil).Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	got := &discovery.DeltaDiscoveryResponse{}
	if err := proto.Unmarshal(data.Materialize(), got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Errorf("response (-want +got):\n%s", d)
	}
	if end := data[len(data)-1].ReadOnlyData(); end[len(end)-1] != 'n' {
		t.Error("the nonce is not last: it can be answered before the rest was taken")
	}
	if r.size() < int64(5*referenceSize+2*aliasedSize+len("xyyzcd")) {
		t.Errorf("size %d", r.size())
	}
}

// TestResponsesShareResources: however many are on their way, each resource exists once.
func TestResponsesShareResources(t *testing.T) {
	newest := build(t, nil, bigModel(10_000, 1))
	for name, request := range map[string]*discovery.DeltaDiscoveryRequest{
		"all":         {TypeUrl: AddressType},
		"some before": {TypeUrl: AddressType, InitialResourceVersions: map[string]string{"gone": "1"}},
		"on demand":   demanding(nil, "app/svc0.app.svc.cluster.local"),
	} {
		m := newModel(t)
		m.now = m.now.Add(companion)
		m.request(request)
		r := m.s.next(newest, m.now)
		for _, res := range r.resources {
			if &res.field.ReadOnlyData()[0] != &newest.types[addresses].byName[res.name].field.ReadOnlyData()[0] {
				t.Fatalf("%s: %s has bytes of its own", name, res.name)
			}
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := r.marshal(); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		if got, limit := int64(after.TotalAlloc-before.TotalAlloc), r.size()+small; got > limit {
			t.Errorf("%s: %d bytes for %d resources, want at most what is counted, %d", name, got, len(r.resources), limit)
		}
	}
}
