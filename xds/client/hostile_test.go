package client

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"istio.io/istio/pkg/workloadapi"

	"github.com/warren-mesh/warren/xds/workload"
)

// synchronized is a client that knows one workload, and its stream.
func synchronized(t *testing.T, cfg Config) (*Client, *workload.Store, *stub, *stubStream) {
	t.Helper()
	s := newStub(t, grpc.MaxRecvMsgSize(64<<20))
	cfg.Address = s.Address
	c, store := newClient(t, cfg)
	run(t, c)
	x, _, _ := s.subscribed()
	x.push(response(AuthorizationType, "p1"))
	x.push(response(AddressType, "a1", pod("w", "1")))
	<-c.Synced()
	return c, store, s, x
}

// TestLargeResponse: gRPC's own limit is 4 MiB; a mesh is larger.
func TestLargeResponse(t *testing.T) {
	_, store, _, x := synchronized(t, Config{})
	var list []*discovery.Resource
	for i := range 40 {
		r := service(fmt.Sprintf("ns/s%d", i), "1")
		r.Resource = pack(AddressType, &workloadapi.Address{Type: &workloadapi.Address_Service{Service: &workloadapi.Service{
			Name: strings.Repeat("x", 512<<10), Namespace: "ns", Hostname: fmt.Sprint("s", i),
		}}})
		list = append(list, r)
	}
	if a := x.push(response(AddressType, "a2", list...)); a.GetErrorDetail() != nil {
		t.Errorf("20 MiB: %.200s", a.GetErrorDetail().GetMessage())
	}
	if _, n, _ := store.View().Len(); n != len(list) {
		t.Errorf("%d services, want %d", n, len(list))
	}
}

// TestMillionNames: names of what was never there change nothing and leave nothing.
func TestMillionNames(t *testing.T) {
	for name, cfg := range map[string]Config{"everything": {}, "on demand": onDemandConfig("")} {
		t.Run(name, func(t *testing.T) {
			_, store, _, x := synchronized(t, cfg)
			names := make([]string, 1_000_000)
			for i := range names {
				names[i] = fmt.Sprintf("cluster//Pod/ns/p%d", i)
			}
			r := removal(AddressType, "a2", names...)
			runtime.GC()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if err := x.Send(r); err != nil {
				t.Fatal(err)
			}
			if a := x.requestWithin(2 * time.Minute); a.GetErrorDetail() != nil || a.GetResponseNonce() != r.GetNonce() {
				t.Errorf("refused: %.200s", a.GetErrorDetail().GetMessage())
			}
			x.push(response(AddressType, "a3", pod("w", "2"))) // it goes on
			runtime.GC()                                       // twice: pools keep what they have for one
			runtime.GC()
			runtime.ReadMemStats(&after)
			if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
				t.Errorf("%d MiB stay", grown>>20)
			}
			if w := store.View().WorkloadByUID("w"); w == nil || w.CanonicalRevision != "2" {
				t.Errorf("after it: %+v", w)
			}
			runtime.KeepAlive(names)
		})
	}
}

// TestBadAmongGood: what cannot be read is refused by name, with the reason, what was
// there before stays, and nothing else waits for it.
func TestBadAmongGood(t *testing.T) {
	_, store, _, x := synchronized(t, Config{})
	junk := &discovery.Resource{Name: "junk", Version: "1", Resource: pack(AddressType, &workloadapi.Address{})}
	junk.Resource.Value = []byte{0xff, 0xff, 0xff}
	a := x.push(response(AddressType, "a2", badPod("w", "2"), pod("good", "1"), junk, &discovery.Resource{Name: "empty"}))
	for _, want := range []string{"w: ", "junk: ", "empty: no resource inside"} {
		if !strings.Contains(a.GetErrorDetail().GetMessage(), want) {
			t.Errorf("%q is not in: %s", want, a.GetErrorDetail().GetMessage())
		}
	}
	if strings.Contains(a.GetErrorDetail().GetMessage(), "good") {
		t.Errorf("what was taken is named: %s", a.GetErrorDetail().GetMessage())
	}
	v := store.View()
	if w := v.WorkloadByUID("w"); w == nil || w.CanonicalRevision != "1" {
		t.Errorf("the last good version is %+v", w)
	}
	if v.WorkloadByUID("good") == nil {
		t.Error("the good one was not taken")
	}
}

// TestCirclesAndHoles: waypoints that point at each other, services without endpoints
// and endpoints without services are taken as they are.
func TestCirclesAndHoles(t *testing.T) {
	_, store, _, x := synchronized(t, Config{})
	behind := func(name, waypoint string) *discovery.Resource {
		return &discovery.Resource{Name: "ns/" + name, Version: "1", Resource: pack(AddressType, &workloadapi.Address{Type: &workloadapi.Address_Service{Service: &workloadapi.Service{
			Name: name, Namespace: "ns", Hostname: name, Waypoint: &workloadapi.GatewayAddress{
				Destination: &workloadapi.GatewayAddress_Hostname{Hostname: &workloadapi.NamespacedHostname{Namespace: "ns", Hostname: waypoint}}, HboneMtlsPort: 15008,
			},
		}}})}
	}
	lost := &discovery.Resource{Name: "lost", Version: "1", Resource: pack(AddressType, &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: &workloadapi.Workload{
		Uid: "lost", Name: "lost", Namespace: "ns", Services: map[string]*workloadapi.PortList{"ns/nowhere": {}},
	}}})}
	if a := x.push(response(AddressType, "a2", behind("a", "b"), behind("b", "a"), behind("self", "self"), lost)); a.GetErrorDetail() != nil {
		t.Error(a.GetErrorDetail().GetMessage())
	}
	v := store.View()
	for _, host := range []string{"a", "b", "self"} {
		if s := v.Service(workload.NamespacedHostname{Namespace: "ns", Hostname: host}); s == nil || len(v.Endpoints(s).All()) != 0 {
			t.Errorf("%s is %+v", host, s)
		}
	}
	if a := x.push(removal(AddressType, "a3", "ns/a", "lost")); a.GetErrorDetail() != nil {
		t.Error(a.GetErrorDetail().GetMessage())
	}
}
