package workload

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"istio.io/istio/pkg/workloadapi"
)

// ordinaryService is a service as a large mesh has many.
func ordinaryService() *workloadapi.Service {
	return &workloadapi.Service{
		Name: "web", Namespace: "app", Hostname: "web.App.svc.example", Canonical: true, IpFamilies: workloadapi.IPFamilies_DUAL,
		Addresses: []*workloadapi.NetworkAddress{{Network: "n1", Address: []byte{10, 96, 0, 1}}, {Address: append(make([]byte, 15), 1)}},
		Ports:     []*workloadapi.Port{{ServicePort: 443, TargetPort: 8443, AppProtocol: workloadapi.AppProtocol_HTTP2}, {ServicePort: 80}},
	}
}

func packedService(tb testing.TB, s *workloadapi.Service) []byte {
	b, err := proto.Marshal(&workloadapi.Address{Type: &workloadapi.Address_Service{Service: s}})
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestServiceFromWire(t *testing.T) {
	var s Sharer
	other := ordinaryService()
	other.Ports, other.Name = nil, "another"
	for _, p := range []*workloadapi.Service{ordinaryService(), other, {Namespace: "n", Hostname: "h"}, ordinaryService()} {
		packed := packedService(t, p)
		svc, ok := s.ServiceFromWire(packed)
		if !ok {
			t.Fatalf("not taken: %v", p)
		}
		like(t, nil, svc, packed)
		clear(packed)
		if svc.Name != p.GetName() || !strings.EqualFold(svc.Hostname, p.GetHostname()) {
			t.Error("it keeps the message's memory")
		}
	}
}

// TestServicesLeftToTheGeneralReader: what is rare or wrong is not decided here.
func TestServicesLeftToTheGeneralReader(t *testing.T) {
	for name, change := range map[string]func(*workloadapi.Service){
		"no namespace":       func(s *workloadapi.Service) { s.Namespace = "" },
		"no hostname":        func(s *workloadapi.Service) { s.Hostname = "" },
		"a slash":            func(s *workloadapi.Service) { s.Hostname = "a/b" },
		"another slash":      func(s *workloadapi.Service) { s.Namespace = "a/b" },
		"a long hostname":    func(s *workloadapi.Service) { s.Hostname = strings.Repeat("h", maxHostname+1) },
		"an odd address":     func(s *workloadapi.Service) { s.Addresses[0].Address = []byte{1, 2, 3} },
		"no address":         func(s *workloadapi.Service) { s.Addresses[1].Address = nil },
		"a range":            func(s *workloadapi.Service) { s.Addresses[0].Length = proto.Uint32(16) },
		"too many addresses": func(s *workloadapi.Service) { s.Addresses = make([]*workloadapi.NetworkAddress, maxAddresses+1) },
		"a bad port":         func(s *workloadapi.Service) { s.Ports[1].TargetPort = 1 << 16 },
		"new families":       func(s *workloadapi.Service) { s.IpFamilies = 4 },
		"names":              func(s *workloadapi.Service) { s.SubjectAltNames = []string{"a"} },
		"a waypoint":         func(s *workloadapi.Service) { s.Waypoint = &workloadapi.GatewayAddress{} },
		"a balance":          func(s *workloadapi.Service) { s.LoadBalancing = &workloadapi.LoadBalancing{} },
		"an ingress":         func(s *workloadapi.Service) { s.IngressUseWaypoint = true },
		"weights":            func(s *workloadapi.Service) { s.WeightedWaypoints = []*workloadapi.WeightedWaypoint{{}} },
		"private":            func(s *workloadapi.Service) { s.Visibility = workloadapi.Service_NAMESPACE },
		"new":                func(s *workloadapi.Service) { s.ProtoReflect().SetUnknown([]byte{0xf8, 0x01, 1}) },
		"new in a port":      func(s *workloadapi.Service) { s.Ports[0].ProtoReflect().SetUnknown([]byte{0x20, 1}) },
		"new in an address":  func(s *workloadapi.Service) { s.Addresses[0].ProtoReflect().SetUnknown([]byte{0x22, 0}) },
	} {
		p := ordinaryService()
		change(p)
		for i, a := range p.Addresses {
			if a == nil {
				p.Addresses[i] = &workloadapi.NetworkAddress{Address: []byte{10, 0, 0, 1}}
			}
		}
		var s Sharer
		if _, ok := s.ServiceFromWire(packedService(t, p)); ok {
			t.Errorf("%s: taken", name)
		}
	}
	var s Sharer
	good := packedService(t, ordinaryService())
	for name, packed := range map[string][]byte{
		"nothing": nil, "cut short": good[:len(good)-1], "more behind": append(good, 0x0a, 0), "a workload": packedWorkload(t, ordinary()),
		"not text": []byte(strings.Replace(string(good), "example", "ex\xffmple", 1)), "not text, the name": []byte(strings.Replace(string(good), "web", "w\xffb", 1)),
	} {
		if _, ok := s.ServiceFromWire(packed); ok {
			t.Errorf("%s: taken", name)
		}
	}
}
