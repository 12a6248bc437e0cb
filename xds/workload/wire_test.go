package workload

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"istio.io/istio/pkg/workloadapi"
)

// ordinary is a workload as a large mesh has many.
func ordinary() *workloadapi.Workload {
	return &workloadapi.Workload{
		Uid: "Kubernetes//Pod/app/web-1", Name: "web-1", Namespace: "app", Addresses: [][]byte{{10, 0, 0, 1}, append(make([]byte, 15), 1)},
		Network: "n1", TunnelProtocol: workloadapi.TunnelProtocol_HBONE, TrustDomain: "td.example", ServiceAccount: "sa", Node: "node",
		CanonicalName: "web", CanonicalRevision: "v1", WorkloadType: workloadapi.WorkloadType_POD, WorkloadName: "web", NativeTunnel: true,
		AuthorizationPolicies: []string{"app/p", "app/q"}, Status: workloadapi.WorkloadStatus_UNHEALTHY, ClusterId: "c1",
		Locality: &workloadapi.Locality{Region: "r", Zone: "z", Subzone: "s"}, NetworkMode: workloadapi.NetworkMode_HOST_NETWORK,
		Services: map[string]*workloadapi.PortList{
			"app/web.example": {Ports: []*workloadapi.Port{{ServicePort: 80, TargetPort: 8080, AppProtocol: workloadapi.AppProtocol_HTTP2}}},
			"app/Other":       {},
		},
	}
}

func packedWorkload(tb testing.TB, w *workloadapi.Workload) []byte {
	b, err := proto.Marshal(&workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w}})
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// like holds what was read from the wire, a workload or a service, to what the general
// reader makes of it.
func like(t *testing.T, w *Workload, svc *Service, packed []byte) {
	t.Helper()
	p := &workloadapi.Address{}
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(packed, p); err != nil {
		t.Fatalf("the general reader refuses what the other takes: %v", err)
	}
	want, wantService, err := AddressFromProto(p)
	if err != nil {
		t.Fatalf("the general reader refuses what the other takes: %v", err)
	}
	if d := cmp.Diff(want, w, cmpModel) + cmp.Diff(wantService, svc, cmpModel); d != "" {
		t.Errorf("general (-), from the wire (+):\n%s", d)
	}
}

func TestWorkloadFromWire(t *testing.T) {
	var s Sharer
	plain := &workloadapi.Workload{Uid: "u"}
	many := &workloadapi.Workload{Uid: "u", Addresses: manyAddresses(maxAddresses), Services: manyServices(maxServices), AuthorizationPolicies: make([]string, maxPolicies)}
	for _, p := range []*workloadapi.Workload{ordinary(), ordinary(), plain, many} {
		packed := packedWorkload(t, p)
		w, ok := s.WorkloadFromWire(packed)
		if !ok {
			t.Fatalf("not taken: %v", p)
		}
		like(t, w, nil, packed)
		clear(packed)
		if p.GetName() != "" && w.Name != "web-1" || w.UID != p.GetUid() {
			t.Error("it keeps the message's memory")
		}
	}
	one, other := ordinary(), ordinary()
	delete(one.Services, "app/Other")
	delete(other.Services, "app/Other")
	other.Uid, other.Name = "Kubernetes//Pod/app/web-2", "web-2"
	a, _ := s.WorkloadFromWire(packedWorkload(t, one))
	b, _ := s.WorkloadFromWire(packedWorkload(t, other))
	if a == nil || b == nil || &a.ids[0] != &b.ids[0] || &a.Policies[0] != &b.Policies[0] {
		t.Error("two of one deployment share nothing")
	}
	allocations := testing.AllocsPerRun(100, func() { s.WorkloadFromWire(packedWorkload(t, one)) }) -
		testing.AllocsPerRun(100, func() { packedWorkload(t, one) })
	if allocations > 6 { // itself, its two names, addresses
		t.Errorf("%.0f allocations for a workload like others", allocations)
	}
}

// TestLeftToTheGeneralReader: what is rare or wrong is not decided here.
func TestLeftToTheGeneralReader(t *testing.T) {
	for name, change := range map[string]func(*workloadapi.Workload){
		"no uid":               func(w *workloadapi.Workload) { w.Uid = "" },
		"legacy tunnel":        func(w *workloadapi.Workload) { w.TunnelProtocol = workloadapi.TunnelProtocol_LEGACY_ISTIO_MTLS },
		"unknown type":         func(w *workloadapi.Workload) { w.WorkloadType = 9 },
		"unknown status":       func(w *workloadapi.Workload) { w.Status = -1 },
		"unknown network mode": func(w *workloadapi.Workload) { w.NetworkMode = 2 },
		"an odd address":       func(w *workloadapi.Workload) { w.Addresses = [][]byte{{1, 2, 3}} },
		"too many addresses":   func(w *workloadapi.Workload) { w.Addresses = manyAddresses(maxAddresses + 1) },
		"too many services":    func(w *workloadapi.Workload) { w.Services = manyServices(maxServices + 1) },
		"too many policies":    func(w *workloadapi.Workload) { w.AuthorizationPolicies = make([]string, maxPolicies+1) },
		"a bad service":        func(w *workloadapi.Workload) { w.Services["nothing"] = &workloadapi.PortList{} },
		"a bad port": func(w *workloadapi.Workload) {
			w.Services["a/b"] = &workloadapi.PortList{Ports: []*workloadapi.Port{{ServicePort: 1 << 16}}}
		},
		"new in a port": func(w *workloadapi.Workload) {
			w.Services["app/web.example"].Ports[0].ProtoReflect().SetUnknown([]byte{0x20, 1})
		},
		"new in a list": func(w *workloadapi.Workload) {
			w.Services["app/web.example"].ProtoReflect().SetUnknown([]byte{0x20, 1})
		},
		"one service twice":     func(w *workloadapi.Workload) { w.Services["app/other"] = &workloadapi.PortList{} },
		"no identity":           func(w *workloadapi.Workload) { w.ServiceAccount = "a/b" },
		"a waypoint":            func(w *workloadapi.Workload) { w.Waypoint = &workloadapi.GatewayAddress{} },
		"a weight":              func(w *workloadapi.Workload) { w.Capacity = wrapperspb.UInt32(0) },
		"a hostname":            func(w *workloadapi.Workload) { w.Hostname = "h" },
		"an application tunnel": func(w *workloadapi.Workload) { w.ApplicationTunnel = &workloadapi.ApplicationTunnel{} },
		"a network gateway":     func(w *workloadapi.Workload) { w.NetworkGateway = &workloadapi.GatewayAddress{} },
		"new":                   func(w *workloadapi.Workload) { w.ProtoReflect().SetUnknown([]byte{0xf8, 0x01, 1}) },
	} {
		p := ordinary()
		change(p)
		var s Sharer
		if _, ok := s.WorkloadFromWire(packedWorkload(t, p)); ok {
			t.Errorf("%s: taken", name)
		}
	}
	var s Sharer
	good := packedWorkload(t, ordinary())
	for name, packed := range map[string][]byte{
		"nothing": nil, "cut short": good[:len(good)-1], "more behind": append(good, 0x10, 1), "a service": {0x12, 0},
		"not text": []byte(strings.Replace(string(good), "node", "no\xffe", 1)), "not text, the name": []byte(strings.Replace(string(good), "web-1", "web\xff1", 1)),
	} {
		if _, ok := s.WorkloadFromWire(packed); ok {
			t.Errorf("%s: taken", name)
		}
	}
}

// FuzzWire: what is read from the wire is what the general reader makes of it, the first
// time and when it is known.
func FuzzWire(f *testing.F) {
	f.Add(packedWorkload(f, ordinary()), packedWorkload(f, &workloadapi.Workload{Uid: "u"}))
	f.Add(packedWorkload(f, fullWorkload()), packedWorkload(f, ordinary()))
	f.Add(packedService(f, ordinaryService()), packedService(f, fullService()))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var s Sharer
		for _, packed := range [][]byte{first, second, first} {
			if w, ok := s.WorkloadFromWire(packed); ok {
				like(t, w, nil, packed)
			}
			if svc, ok := s.ServiceFromWire(packed); ok {
				like(t, nil, svc, packed)
			}
		}
	})
}
