package proxy

import (
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/route"
	"github.com/warren-mesh/warren/proxy/track"
	"github.com/warren-mesh/warren/xds/client"
	"github.com/warren-mesh/warren/xds/workload"
)

// abroad is a mesh in which a service has one endpoint in each of two other networks. Of
// the second one's gateway nothing is known.
type abroad struct {
	self, second *workload.Workload
	web          *workload.Service
	server       *Server
	pod          *pod
}

func newAbroad(t *testing.T) *abroad {
	t.Helper()
	key := workload.NamespacedHostname{Namespace: "ns", Hostname: "web"}
	far := func(uid, network, gateway string) *workload.Workload {
		return &workload.Workload{
			UID: uid, Name: uid, Namespace: "ns", Network: network, Protocol: workload.HBONE, TrustDomain: "td", ServiceAccount: "sa",
			Services:       workload.Memberships{{Service: key}},
			NetworkGateway: &workload.GatewayAddress{Address: workload.NetworkAddr{Network: network, Addr: netip.MustParseAddr(gateway)}, HBONEPort: 15008},
		}
	}
	gateway := &workload.Workload{
		UID: "gw", Name: "gw", Namespace: "ns", Network: "n2", Protocol: workload.HBONE, TrustDomain: "td", ServiceAccount: "gw",
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
	}
	m, _ := testMetrics()
	a := &abroad{
		self:   &workload.Workload{UID: "here", Name: "here", Namespace: "ns", Node: "one", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}},
		second: far("second", "n3", "192.0.2.3"),
		web: &workload.Service{
			Name: "web", Namespace: "ns", Hostname: "web", VIPs: []workload.NetworkAddr{{Addr: netip.MustParseAddr("10.9.0.1")}},
			Ports: workload.NewPortMap(workload.Port{Service: 80, Target: 8080}),
		},
		server: &Server{cfg: Config{NodeName: "one", ConnectRetries: 3}, store: workload.NewStore(), tracked: track.New(10, 10), metrics: m},
	}
	a.server.store.Apply(workload.Batch{Workloads: []*workload.Workload{a.self, far("first", "n2", "192.0.2.1"), gateway}, Services: []*workload.Service{a.web}})
	a.pod = &pod{s: a.server, hard: t.Context(), info: zds.Info{Name: "here", Namespace: "ns"}, uid: "here"}
	return a
}

// A gateway behind which somebody failed is asked once more where nobody else can be: not
// where it is not known who else there is, nor past a waypoint that has come to guard the
// service.
func TestBehindAGatewayAgain(t *testing.T) {
	waypoint := func(a *abroad) {
		guarded := *a.web
		guarded.Waypoint = &workload.GatewayAddress{Hostname: workload.NamespacedHostname{Namespace: "ns", Hostname: "waypoint"}, HBONEPort: 15008}
		a.server.store.Apply(workload.Batch{Services: []*workload.Service{&guarded}})
	}
	for _, tt := range []struct {
		name   string
		change func(*testing.T, *abroad)
		again  bool
	}{
		{"there is nobody else", func(*testing.T, *abroad) {}, true},
		{"nothing is known of the other gateway", func(_ *testing.T, a *abroad) {
			a.server.store.Apply(workload.Batch{Workloads: []*workload.Workload{a.second}})
		}, true},
		{"the control plane does not say what the other gateway is", func(t *testing.T, a *abroad) {
			var err error
			if a.server.xds, err = client.New(client.Config{Address: "unix:///nowhere", OnDemand: true, Node: client.Node{NodeName: "one"}}, a.server.store); err != nil {
				t.Fatal(err)
			}
			a.server.cfg.OnDemand = true
			a.server.store.Apply(workload.Batch{Workloads: []*workload.Workload{a.second}})
		}, true}, // the other one is not waited for
		{"the control plane does not know the pod any more", func(_ *testing.T, a *abroad) {
			a.pod.info.Name, a.pod.last, a.server.cfg.NodeName = "another", nil, ""
		}, false},
		{"a waypoint guards it that is not known", func(_ *testing.T, a *abroad) { waypoint(a) }, false},
		{"a waypoint guards it that has no endpoints", func(_ *testing.T, a *abroad) {
			waypoint(a)
			a.server.store.Apply(workload.Batch{Services: []*workload.Service{{
				Name: "waypoint", Namespace: "ns", Hostname: "waypoint", VIPs: []workload.NetworkAddr{{Addr: netip.MustParseAddr("10.9.0.2")}},
				Ports: workload.NewPortMap(workload.Port{Service: 15008, Target: 15008}),
			}}})
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // the control plane is waited for
				a := newAbroad(t)
				src, to := netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.9.0.1:80")
				c, d, _, err := a.pod.decideOutbound(t.Context(), src, to)
				if err != nil || d.Protocol != route.DoubleHBONE {
					t.Fatalf("%+v, %v", d, err)
				}
				tt.change(t, a)
				there := d // as openInner has it
				there.Gateway = route.Endpoint{}
				if got := c.another(*c.search, there); got != tt.again {
					t.Errorf("while it is silent there is another one: %v, want %v", got, tt.again)
				}
				n, next, self := c.elsewhere(d, &behindError{&hbone.StatusError{Code: 503}})
				if (n != nil) != tt.again {
					t.Fatalf("goes on to %+v, after %q; want it to be asked again: %v", next, c.search.text(), tt.again)
				}
				if n == nil {
					return
				}
				nobody := there // a waypoint of which there is one
				if nobody.Endpoint = (route.Endpoint{}); n.another(*n.search, nobody) {
					t.Error("there is another one where elsewhere finds none")
				}
				if next.Protocol != route.DoubleHBONE || next.Dial != d.Dial || self == nil || self.UID != a.self.UID {
					t.Errorf("goes to %+v as %+v, want the gateway of before", next, self)
				}
				if n.another(*n.search, there) {
					t.Error("there is another one, a third time")
				}
				if last, next, _ := n.elsewhere(next, &behindError{&hbone.StatusError{Code: 503}}); last != nil {
					t.Errorf("goes to %+v, a third time", next)
				}
			})
		})
	}
}
