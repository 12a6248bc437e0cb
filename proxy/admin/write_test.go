package admin_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/warren-mesh/warren/proxy/admin"
	"github.com/warren-mesh/warren/proxy/track"
	"github.com/warren-mesh/warren/xds/workload"
)

// pieces notes the largest write, and may stop at the first one.
type pieces struct {
	*httptest.ResponseRecorder
	largest int
	begun   chan struct{} // nil: it does not stop
	goOn    chan struct{}
}

func (p *pieces) Write(b []byte) (int, error) {
	if p.begun != nil {
		close(p.begun)
		<-p.goOn
		p.begun = nil
	}
	p.largest = max(p.largest, len(b))
	return p.ResponseRecorder.Write(b)
}

// A dump of a large mesh is written as it is made, one at a time.
func TestDumpIsBounded(t *testing.T) {
	src := source()
	store := workload.NewStore()
	var b workload.Batch
	for i := range 500 {
		name := fmt.Sprint("svc", i)
		b.Services = append(b.Services, &workload.Service{
			Name: name, Namespace: "a", Hostname: name + ".a.svc.cluster.local", Ports: workload.NewPortMap(workload.Port{Service: 80, Target: 8080}),
			VIPs: []workload.NetworkAddr{{Addr: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})}},
		})
	}
	for i := range 5000 {
		name := fmt.Sprint("pod", i)
		b.Workloads = append(b.Workloads, &workload.Workload{
			UID: "Kubernetes//Pod/a/" + name, Name: name, Namespace: "a", TrustDomain: "cluster.local",
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}, Services: workload.Memberships{{Service: b.Services[i/10].Key()}},
		})
	}
	store.Apply(b)
	src.View = store.View
	h := admin.Handler(src)
	for _, path := range []string{"/config_dump", "/config_dump?format=legacy"} {
		t.Run(path, func(t *testing.T) { testBounded(t, h, path) })
	}
}

func testBounded(t *testing.T, h http.Handler, path string) {
	ask := func(ctx context.Context, w http.ResponseWriter) {
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil).WithContext(ctx))
	}
	first := &pieces{ResponseRecorder: httptest.NewRecorder(), begun: make(chan struct{}), goOn: make(chan struct{})}
	begun, ended := first.begun, make(chan struct{})
	go func() { defer close(ended); ask(t.Context(), first) }()
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	cancel()       // it waits for nothing
	for range 20 { // were there room beside the first, one of them would have got in
		second := httptest.NewRecorder()
		ask(ctx, second)
		if second.Code != http.StatusServiceUnavailable {
			t.Errorf("a second dump beside the first: status %d", second.Code)
			break
		}
	}
	close(first.goOn)
	<-ended
	if n := first.Body.Len(); n < 1<<20 || first.largest > 128<<10 {
		t.Errorf("of %d bytes %d were written at once", n, first.largest)
	}
	third := httptest.NewRecorder()
	ask(t.Context(), third)
	if third.Body.Len() != first.Body.Len() || !json.Valid(third.Body.Bytes()) {
		t.Error("the third is another one, or none")
	}
}

// Pods of the node's network share an address, which is a name in the older dump: each
// name is there once, and what is behind it is that of all.
func TestLegacyDumpOfOneAddress(t *testing.T) {
	src, store := source(), workload.NewStore()
	port := func(service, target uint16) workload.PortMap {
		return workload.NewPortMap(workload.Port{Service: service, Target: target})
	}
	service := func(name string, vip byte, ports workload.PortMap) *workload.Service {
		return &workload.Service{
			Name: name, Namespace: "a", Hostname: name + ".a.svc.cluster.local", Ports: ports,
			VIPs: []workload.NetworkAddr{{Addr: netip.AddrFrom4([4]byte{10, 96, 0, vip})}},
		}
	}
	one, two, idle := service("one", 1, port(80, 8080)), service("two", 2, port(443, 0)), service("idle", 3, port(80, 80))
	pod := func(name string, to workload.Membership) *workload.Workload {
		return &workload.Workload{
			UID: "Kubernetes//Pod/a/" + name, Name: name, Namespace: "a", NetworkMode: workload.HostNetwork,
			Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.9")}, Services: workload.Memberships{to},
		}
	}
	free := &workload.Workload{UID: "Kubernetes//Pod/a/z", Name: "z", Namespace: "a", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.10")}}
	store.Apply(workload.Batch{Services: []*workload.Service{one, two, idle}, Workloads: []*workload.Workload{
		pod("x", workload.Membership{Service: one.Key()}), pod("y", workload.Membership{Service: two.Key(), Ports: port(443, 8443)}), free,
	}})
	src.View = store.View
	w := httptest.NewRecorder()
	admin.Handler(src).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/config_dump?format=legacy", nil))
	var got struct {
		VIPs      map[string]json.RawMessage `json:"vips"`
		ToVIP     map[string]json.RawMessage `json:"workload_to_vip"`
		Workloads map[string]struct{ Name string }
	}
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	text := func(m map[string]json.RawMessage) string {
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if s := text(got.VIPs); s != `{"10.96.0.1:80":[["10.0.0.9",8080]],"10.96.0.2:443":[["10.0.0.9",8443]],"10.96.0.3:80":[]}` {
		t.Errorf("addresses of services: %s", s)
	}
	if s := text(got.ToVIP); s != `{"10.0.0.9":[["10.96.0.1:80",8080],["10.96.0.2:443",8443]]}` {
		t.Errorf("by workload: %s", s)
	}
	if n := strings.Count(w.Body.String(), `"workloadIp": "10.0.0.9"`); n != 1 || got.Workloads["10.0.0.9"].Name != "y" || len(got.Workloads) != 2 {
		t.Errorf("%d workloads at one address, of %v", n, got.Workloads)
	}
}

// Very many connections are written as they are made, and not looked at by who asks for the
// lines and alarms alone.
func TestConnectionsAreBounded(t *testing.T) {
	src := source()
	asked := 0
	src.Connections = func() map[string][]track.Facts {
		asked++
		all := make(map[string][]track.Facts)
		for i := range 10000 {
			uid := fmt.Sprint("u", i%100)
			all[uid] = append(all[uid], track.Facts{Pod: uid, Src: netip.MustParseAddrPort("10.0.0.1:40000"), Dst: netip.MustParseAddrPort("10.0.0.2:80")})
		}
		return all
	}
	ask := func(path string) (p *pieces, got map[string]json.RawMessage) {
		p = &pieces{ResponseRecorder: httptest.NewRecorder()}
		admin.Handler(src).ServeHTTP(p, httptest.NewRequest(http.MethodGet, path, nil))
		if err := json.Unmarshal(p.Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		return p, got
	}
	if p, _ := ask("/debug/connections"); p.Body.Len() < 1<<20 || p.largest > 128<<10 || asked != 1 {
		t.Errorf("of %d bytes %d were written at once", p.Body.Len(), p.largest)
	}
	p, got := ask("/debug/connections?connections=false")
	if _, there := got["connections"]; there || asked != 1 || p.Body.Len() > 4<<10 {
		t.Errorf("%d bytes, asked for connections %d times", p.Body.Len(), asked)
	}
	for _, name := range []string{"alarms", "ca", "sds", "xds", "zds"} {
		if len(got[name]) < len("{}") {
			t.Errorf("%s: %s", name, got[name])
		}
	}
}
