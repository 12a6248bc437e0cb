//go:build istiod

package istiod

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// TestMultiNetwork: a service of two clusters on two networks is served from both, each
// pod of the other network by way of that network's gateway.
func TestMultiNetwork(t *testing.T) {
	for _, name := range []string{"warren", "istiod"} {
		t.Run(name, func(t *testing.T) {
			s := newClusters(t, name).share(t)
			t.Run("both ways", s.bothWays)
			t.Run("identities", s.identities)
			t.Run("one address in two networks", s.sameAddresses)
			t.Run("policy at the far end", s.policy)
			t.Run("failover", s.failover)
			t.Run("gateway down", s.gatewayDown)
			t.Run("gateway with nobody behind it", s.nobodyBehind)
			t.Run("waypoint of the other network", s.waypoint)
			t.Run("gateway removed", s.gatewayRemoved)
			if name == "istiod" {
				t.Run("differential", s.differential)
				t.Run("not global", s.notGlobal)
				t.Run("cluster removed", s.clusterRemoved)
			}
		})
	}
}

// shared is a service of both clusters, of which each pod has an account of its own.
type shared struct {
	*clusters
	near, far1, far2 *onehost.Pod
	to1, to2         *edge
}

const (
	sharedHost = "shared.app.svc.cluster.local:80"
	shared1VIP = "10.96.20.1" // in n1
	shared2VIP = "10.96.20.2" // in n2
	clientID   = "spiffe://cluster.local/ns/app/sa/client"
)

var sharedBy = []string{"n1:app/near", "n2:app/far-1", "n2:app/far-2"}

// share has the clusters know each other, and a service in both.
func (c *clusters) share(t *testing.T) *shared {
	t.Helper()
	s := &shared{clusters: c}
	pod := func(w *world, node int, name, account string) *onehost.Pod {
		return w.pod(t, node, onehost.PodSpec{Namespace: "app", Name: name, ServiceAccount: account, Labels: map[string]string{"app": "shared"}})
	}
	s.near, s.far1, s.far2 = pod(c.n1, 0, "near", "shared-1"), pod(c.n2, 0, "far-1", "shared-2"), pod(c.n2, 1, "far-2", "shared-3")
	s.to1, s.to2 = c.edge(t, c.n1, c.n2), c.edge(t, c.n2, c.n1)
	s.to1.lead(sharedHost, s.near)
	s.to2.lead(sharedHost, s.far1, s.far2)
	c.n1.put(t, "Service", "app", "shared", global("shared", shared1VIP, ""))
	c.n2.put(t, "Service", "app", "shared", global("shared", shared2VIP, ""))
	for _, e := range []*edge{s.to1, s.to2} {
		at, doc := e.gateway()
		at.put(t, "Gateway", "app", e.name(), doc)
	}
	c.n1.remote(t, c.n2, "shared", "shared-2", "shared-3")
	c.n2.remote(t, c.n1, "shared", "shared-1")
	c.n1.join(t, c.n2)
	c.n2.join(t, c.n1)
	return s
}

func (s *shared) bothWays(t *testing.T) {
	spread(t, s.n1.client, at(shared1VIP, 80), sharedBy...)
	spread(t, s.n2.client, at(shared2VIP, 80), sharedBy...)
	for _, e := range []*edge{s.to1, s.to2} {
		if asked, n := e.asked(); n == 0 || asked.Peer != clientID || asked.Authority != sharedHost {
			t.Errorf("the gateway of %s was asked %d times, the last time %+v", e.of.network, n, asked)
		}
	}
}

// identities: the far end is proven to the client through the gateway, and the client to
// the far end, which sees the gateway's address.
func (s *shared) identities(t *testing.T) {
	near, far := s.n1.AccessLogs(), s.n2.AccessLogs()
	spread(t, s.n1.client, at(shared1VIP, 80), sharedBy...)
	out, err := near.Lines()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, l := range out {
		if l.Direction == "outbound" && strings.HasPrefix(l.Dst, s.to2.outside.IP4().String()+":") {
			seen[l.DstIdentity] = true
		}
	}
	for _, p := range []*onehost.Pod{s.far1, s.far2} {
		id := "spiffe://cluster.local/ns/app/sa/" + p.Spec.ServiceAccount
		if !seen[id] {
			t.Errorf("no connection through the gateway is to %s: %v", id, seen)
		}
		lines, err := far.Wait(t.Context(), s.to2.inside.IPs, p.IPs, []string{"inbound"})
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range lines {
			if l.SrcIdentity != clientID || l.DstIdentity != id {
				t.Errorf("at the far end: %q → %q", l.SrcIdentity, l.DstIdentity)
			}
		}
	}
}

// sameAddresses: an address is one of a network. Pods of both have the same ones, and a
// service of one network has the address that another service has in the other.
func (s *shared) sameAddresses(t *testing.T) {
	if s.n1.server.IP4() != s.n2.server.IP4() {
		t.Fatalf("%s and %s: not one address", s.n1.server.IP4(), s.n2.server.IP4())
	}
	s.n1.put(t, "Service", "app", "alone", judged("alone", shared2VIP, "", ""))
	s.n1.put(t, "WorkloadEntry", "app", "twin", fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: twin, namespace: app, labels: {app: nobody}}
spec: {address: %s, network: n2, serviceAccount: twin}
`, s.n1.server.IP4()))
	for _, w := range []*world{s.n1, s.n2} {
		for _, port := range ports {
			reaches(t, w.client, on(w.server, port), w.network+":app/server")
		}
		spread(t, w.client, at(webVIP, 80), w.network+":app/server", w.network+":app/second")
	}
	spread(t, s.n1.client, at(shared2VIP, 80), "n1:app/server", "n1:app/second")
	spread(t, s.n2.client, at(shared2VIP, 80), sharedBy...)
	spread(t, s.n1.client, at(shared1VIP, 80), sharedBy...)
}

// policy: what counts at the far end is who the client is, not the gateway.
func (s *shared) policy(t *testing.T) {
	s.leave(t, s.near)
	vip := at(shared1VIP, 80)
	s.n2.put(t, "PeerAuthentication", "app", "strict", "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: app}\nspec: {mtls: {mode: STRICT}}\n")
	s.n2.refused(t, s.n2.outside, on(s.far1, 18080), "explicitly denied by: "+strictPolicy)
	spread(t, s.n1.client, vip, sharedBy[1:]...)
	for name, spec := range map[string]string{
		"deny":  `action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/app/sa/client]}}]}]`,
		"allow": `action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/app/sa/other]}}]}]`,
	} {
		t.Run(name, func(t *testing.T) {
			because := map[string]string{"deny": "explicitly denied by: app/far", "allow": "allow policies exist, but none allowed"}[name]
			s.n2.put(t, "AuthorizationPolicy", "app", "far", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: far, namespace: app}\nspec: {selector: {matchLabels: {app: shared}}, "+spec+"}\n")
			far := s.n2.AccessLogs()
			s.n1.refused(t, s.n1.client, vip, "http status: 401")
			if err := logged(t, far, s.to2.inside, because, steady); err != nil {
				t.Errorf("at the far end: %v", err)
			}
			spread(t, s.n1.other, vip, sharedBy[1:]...)
		})
	}
}

// leave has a pod be ready no more until the test ends.
func (s *shared) leave(t *testing.T, p *onehost.Pod) {
	t.Helper()
	if err := p.SetReady(false); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.SetReady(true); err != nil {
			t.Error(err)
		}
		spread(t, s.n1.client, at(shared1VIP, 80), sharedBy...)
	})
}

// failover: who prefers what is near goes to the other network when nobody is left.
func (s *shared) failover(t *testing.T) {
	vip := at(shared1VIP, 80)
	change := func(more string) {
		t.Helper()
		if err := s.n1.Put("Service", "app", "shared", []byte(global("shared", shared1VIP, more))); err != nil {
			t.Fatal(err)
		}
	}
	change("trafficDistribution: PreferClose")
	s.only(t, "n1:app/near")
	if err := s.near.SetReady(false); err != nil {
		t.Fatal(err)
	}
	s.only(t, sharedBy[1:]...)
	if err := s.near.SetReady(true); err != nil {
		t.Fatal(err)
	}
	s.only(t, "n1:app/near")
	change("")
	spread(t, s.n1.client, vip, sharedBy...)
}

// many calls in a row by one who would otherwise be every third: chance is 1 in 200,000.
const many = 11

// only waits until nobody but who answers the client, whom somebody answers at all times.
func (s *shared) only(t *testing.T, who ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("only %v answer", who), func() error {
		for range many {
			r, err := call(s.n1.client, at(shared1VIP, 80))
			if err != nil {
				t.Fatalf("a call failed: %v", err)
			}
			if !slices.Contains(who, r.who) {
				return fmt.Errorf("%s answered", r.who)
			}
		}
		return nil
	})
}

// gatewayDown: no connection is lost to a gateway that refuses, and it is left alone for a
// while; when it is back it is used.
func (s *shared) gatewayDown(t *testing.T) { s.without(t, s.to2.down, s.to2.up) }

// nobodyBehind: nor to one that has nowhere to go.
func (s *shared) nobodyBehind(t *testing.T) {
	s.without(t, func(*testing.T) { s.to2.lead(sharedHost) }, func(*testing.T) { s.to2.lead(sharedHost, s.far1, s.far2) })
}

func (s *shared) without(t *testing.T, down, up func(*testing.T)) {
	vip := at(shared1VIP, 80)
	before := s.retries(t)
	s.to2.asked()
	down(t)
	l := underLoad(vip, s.n1.client, s.n1.other)
	l.goesOn(t, 60)
	calls, failed := l.stop()
	if len(failed) > 0 {
		t.Errorf("%d of %d connections failed: %v", len(failed), calls, failed[0].err)
	}
	switch tried := s.retries(t) - before; {
	case tried == 0:
		t.Errorf("none of %d connections left the gateway", calls)
	case tried > calls/4: // without a rest two of three would try it
		t.Errorf("%d of %d connections tried the gateway", tried, calls)
	}
	s.only(t, "n1:app/near")
	up(t)
	spread(t, s.n1.client, vip, sharedBy...)
}

// retries is how many connections of n1's clients left an endpoint for another.
func (s *shared) retries(t *testing.T) (sum int) {
	t.Helper()
	text, err := s.n1.Nodes[0].Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		var n int
		if _, value, ok := strings.Cut(line, "} "); ok && strings.HasPrefix(line, "warren_connect_retries_total{") {
			if _, err := fmt.Sscan(value, &n); err != nil {
				t.Fatal(err)
			}
			sum += n
		}
	}
	return sum
}

// waypoint: a waypoint that both networks have judges in either; one that is in the other
// network gets its connections through the gateway, and is told whose they are and which
// of its own network's services they are for.
func (s *shared) waypoint(t *testing.T) {
	const vip1, vip2 = "10.96.20.7", "10.96.20.8"
	judges := map[*world]*judge{}
	for w, addr := range map[*world][2]string{s.n1: {"10.96.20.5", vip1}, s.n2: {"10.96.20.6", vip2}} {
		judges[w] = w.judgeOf(t, "app", "wp-of-"+w.network, "wp")
		w.hold(t, "Service", "app", "wp", strings.NewReplacer("VIP", addr[0]).Replace(`apiVersion: v1
kind: Service
metadata: {name: wp, namespace: app, labels: {istio.io/global: "true"}}
spec: {clusterIP: VIP, clusterIPs: [VIP], selector: {gateway.networking.k8s.io/gateway-name: wp}, ports: [{name: hbone, port: 15008}]}
`))
		w.hold(t, "Gateway", "app", "wp", `apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: app, labels: {istio.io/waypoint-for: service}, annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY/15088}}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: Same}}}]}
status: {addresses: [{type: Hostname, value: wp.app.svc.cluster.local}]}
`)
		w.hold(t, "Service", "app", "judged", strings.Replace(
			judged("judged", addr[1], `istio.io/use-waypoint: wp, istio.io/global: "true"`, ""), "ports:", "trafficDistribution: PreferClose, ports:", 1))
	}
	if s.n1.name == "warren" {
		s.n1.put(t, "WorkloadEntry", "app", "wp-of-n2", `apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: wp-of-n2, namespace: app, labels: {gateway.networking.k8s.io/gateway-name: wp}}
spec: {network: n2, serviceAccount: wp, labels: {gateway.networking.k8s.io/gateway-name: wp}}
`)
	}
	// A gateway that is asked for a service with a waypoint leads to the waypoint: what the
	// waypoint itself sends on has to stay in its network.
	s.to2.lead("judged.app.svc.cluster.local:80", judges[s.n2].Pod)
	web := []string{"n1:app/server", "n1:app/second", "n2:app/server", "n2:app/second"}
	spread(t, s.n1.client, at(vip1, 80), web...)
	near, far := drain(judges[s.n1]), drain(judges[s.n2])
	if near.Src.Addr() != s.n1.client.IP4() || near.Dst != at(vip1, 80) || near.Identity != clientID {
		t.Errorf("the client's own waypoint was told %+v", near)
	}
	if far.Src.Addr() != s.to2.inside.IP4() || far.Dst != at(vip2, 80) || far.Identity != clientID {
		t.Errorf("the other network's waypoint was told %+v", far)
	}
	s.n1.end(t, judges[s.n1].Pod)
	spread(t, s.n1.client, at(vip1, 80), web[2:]...)
}

// hold has an object be in place until the test ends, and waits for nothing: a service that
// another cluster has, too, does not go with this one's.
func (w *world) hold(t *testing.T, kind, namespace, name, doc string) {
	t.Helper()
	if err := w.Put(kind, namespace, name, []byte(doc)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Remove(kind, namespace, name); err != nil {
			t.Error(err)
		}
	})
}

// drain is what a waypoint was told last.
func drain(j *judge) (last onehost.Told) {
	for len(j.heard) > 0 {
		last = <-j.heard
	}
	return last
}

// gatewayRemoved: a network that no gateway is known of is not there.
func (s *shared) gatewayRemoved(t *testing.T) {
	at, doc := s.to2.gateway()
	s.gone(t,
		func() error { return at.Remove("Gateway", "app", s.to2.name()) },
		func() error { return at.Put("Gateway", "app", s.to2.name(), []byte(doc)) })
}

// notGlobal: a service is one of all clusters where each of them says so.
func (s *shared) notGlobal(t *testing.T) {
	for w, vip := range map[*world]string{s.n1: shared1VIP, s.n2: shared2VIP} {
		t.Run("in "+w.network, func(t *testing.T) {
			doc := global("shared", vip, "")
			s.gone(t,
				func() error {
					return w.Put("Service", "app", "shared", []byte(strings.Replace(doc, `"true"`, `"false"`, 1)))
				},
				func() error { return w.Put("Service", "app", "shared", []byte(doc)) })
		})
	}
}

func (s *shared) clusterRemoved(t *testing.T) {
	s.gone(t, func() error { s.n1.leave(t); return nil }, func() error { s.n1.join(t, s.n2); return nil })
}

// gone takes away what leads to the other network, and brings it back: the service is
// served from its own then, without a call that fails, or from nowhere.
func (s *shared) gone(t *testing.T, remove, restore func() error) {
	t.Helper()
	vip := at(shared1VIP, 80)
	spread(t, s.n1.client, vip, sharedBy...)
	if err := remove(); err != nil {
		t.Fatal(err)
	}
	s.only(t, "n1:app/near")
	if err := s.near.SetReady(false); err != nil {
		t.Fatal(err)
	}
	s.n1.refused(t, s.n1.client, vip, "no healthy upstream: "+vip.String())
	if err := errors.Join(s.near.SetReady(true), restore()); err != nil {
		t.Fatal(err)
	}
	spread(t, s.n1.client, vip, sharedBy...)
}

// differential: what n1's proxies are told by istiod, and by our control plane of the
// objects of n1 alone.
func (s *shared) differential(t *testing.T) {
	i := s.n1.Opts.ControlPlane.(*istiod)
	for _, o := range []struct{ kind, name, doc string }{
		{"Service", "third", global("third", "10.96.20.3", "")},
		{"Service", "own", judged("own", "10.96.20.4", "", "")},
		{"WorkloadEntry", "third-1", `apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: third-1, namespace: app, labels: {app: third}}
spec: {network: n3, serviceAccount: third-1, weight: 3, labels: {app: third}}
`},
		{"WorkloadEntry", "third-2", `apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: third-2, namespace: app, labels: {app: third}}
spec: {address: 10.0.3.2, network: n3, serviceAccount: third-2, labels: {app: third}}
`},
		{"WorkloadEntry", "own-1", `apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: own-1, namespace: app, labels: {app: web}}
spec: {address: 10.0.3.3, network: n3, serviceAccount: own, labels: {app: web}}
`},
		{"Gateway", "edge-of-n3", `apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge-of-n3, namespace: app, labels: {topology.istio.io/network: n3}}
spec: {gatewayClassName: istio-remote, listeners: [{name: mesh, port: 15018, protocol: HBONE}]}
status: {addresses: [{type: IPAddress, value: 192.0.2.3}]}
`},
	} {
		if err := i.Put([]byte(o.doc)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := i.Gone(o.kind, "app", o.name); err != nil {
				t.Error(err)
			}
		})
	}
	seen := make(map[string]bool)
	i.compare(t, acceptedNetworks, seen, make(filled), make(filled))
	provoked(t, acceptedNetworks, seen)
}
