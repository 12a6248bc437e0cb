//go:build istiod

package istiod

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// The waypoint of these scenarios is a pod of the mesh whose application takes PROXY
// protocol, Istio's sandwich: what Envoy does with requests is not what is tried here, but
// which connections come to it, what it is told of them, and that they go on.

// judge is a waypoint.
type judge struct {
	*onehost.Pod
	heard chan onehost.Told
}

// judge starts a waypoint's pod, and its application, which sends everything on to where
// the client wanted to go.
func (w *world) judge(t *testing.T, namespace, name string) *judge {
	t.Helper()
	return w.judgeOf(t, namespace, name, name)
}

// judgeOf is a judge in a pod of a Gateway that has several, one after another.
func (w *world) judgeOf(t *testing.T, namespace, name, gateway string) *judge {
	t.Helper()
	p, err := w.Nodes[1].AddPod(t.Context(), onehost.PodSpec{
		Namespace: namespace, Name: name, ServiceAccount: gateway, Labels: map[string]string{"gateway.networking.k8s.io/gateway-name": gateway},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, there := w.Nodes[1].Pods[namespace+"/"+name]; there {
			_ = p.Delete(context.Background())
		}
	})
	j := &judge{Pod: p, heard: make(chan onehost.Told, 64)}
	s, err := p.ServeWaypoint(15088, j.heard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return j
}

// gateway is the Gateway of a judge. allowed says from which namespaces it may be used.
func (j *judge) gateway(kind, allowed string) string {
	return fmt.Sprintf(`apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: %s, namespace: %s, labels: {istio.io/waypoint-for: %s}, annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY/15088}}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: %s}}}]}
status: {addresses: [{type: IPAddress, value: %s}]}
`, j.Spec.Name, j.Spec.Namespace, kind, allowed, j.IP4())
}

func judged(name, vip, labels, annotations string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: %s, namespace: app, labels: {%s}, annotations: {%s}}
spec: {clusterIP: %s, clusterIPs: [%[4]s], selector: {app: web}, ports: [{name: http, port: 80, targetPort: 18080}]}
`, name, labels, annotations, vip)
}

// by waits for a call that is answered by way of who, nil for nobody, then has every call
// go so, and says what that one was told of the last.
func (w *world) by(t *testing.T, to netip.AddrPort, who *judge, others ...*judge) (told onehost.Told) {
	t.Helper()
	what := fmt.Sprintf("%s is reached as it should", to)
	once := func() (err error) { told, err = w.way(to, who, others...); return err }
	eventually(t, what, once)
	for n := range steady {
		if err := once(); err != nil {
			t.Fatalf("%s: call %d after the first success: %v", what, n+1, err)
		}
	}
	return told
}

// way makes a call and looks which way it went.
func (w *world) way(to netip.AddrPort, who *judge, others ...*judge) (told onehost.Told, err error) {
	for _, j := range append(others, who) {
		for j != nil && len(j.heard) > 0 {
			<-j.heard
		}
	}
	r, err := call(w.client, to)
	if err != nil {
		return told, err
	}
	if !strings.HasPrefix(r.who, "app/") {
		return told, fmt.Errorf("%s answered", r.who)
	}
	for _, j := range others {
		if len(j.heard) > 0 {
			return told, fmt.Errorf("by way of %s", j.Spec.Name)
		}
	}
	if who == nil {
		if r.sees != w.client.IP4() {
			err = fmt.Errorf("the server sees %s", r.sees)
		}
		return told, err
	}
	if len(who.heard) == 0 || r.sees != who.IP4() {
		return told, fmt.Errorf("the server sees %s, the waypoint was asked %d times", r.sees, len(who.heard))
	}
	return <-who.heard, nil
}

// TestRemoveAddWaypoint, TestSimpleHTTPSandwich: a service's waypoint comes and goes;
// while it is there it is told whose each connection is.
func TestRemoveAddWaypoint(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		vip := at("10.96.10.30", 80)
		w.put(t, "Service", "app", "judged", judged("judged", vip.Addr().String(), "istio.io/use-waypoint: wp", ""))
		j := w.judge(t, "app", "wp")
		w.by(t, vip, nil, j)
		t.Run("there", func(t *testing.T) {
			w.put(t, "Gateway", "app", "wp", j.gateway("service", "Same"))
			told := w.by(t, vip, j)
			if told.Src.Addr() != w.client.IP4() || told.Dst != vip || told.Identity != "spiffe://cluster.local/ns/app/sa/client" {
				t.Errorf("the waypoint was told %+v", told)
			}
			w.by(t, on(w.server, 18080), nil, j) // it is for services, not for pods
		})
		w.by(t, vip, nil, j)
	})
}

// TestWorkloadWaypoint (workload-addressed-waypoint): a pod's own waypoint is asked when
// the pod is addressed, not when a service is.
func TestWorkloadWaypoint(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		j := w.judge(t, "app", "wp-pods")
		p, err := w.Nodes[0].AddPod(t.Context(), onehost.PodSpec{
			Namespace: "app", Name: "guarded", ServiceAccount: "guarded", Labels: map[string]string{"app": "guarded", "istio.io/use-waypoint": "wp-pods"},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Delete(context.Background()) })
		s, err := p.Serve(18080, answer("app/guarded"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		w.put(t, "Gateway", "app", "wp-pods", j.gateway("workload", "Same"))
		if told := w.by(t, on(p, 18080), j); told.Dst != on(p, 18080) {
			t.Errorf("the waypoint was told %+v", told)
		}
		vip := at("10.96.10.31", 80)
		w.put(t, "Service", "app", "guarded", strings.Replace(judged("guarded", vip.Addr().String(), "", ""), "app: web", "app: guarded", 1))
		w.by(t, vip, nil, j)
	})
}

// TestCrossNamespaceWaypoint: another namespace's waypoint is used if it may be.
func TestCrossNamespaceWaypoint(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		j := w.judge(t, "far", "wp")
		vip := at("10.96.10.32", 80)
		w.put(t, "Service", "app", "lent", judged("lent", vip.Addr().String(), "istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: far", ""))
		t.Run("not for us", func(t *testing.T) {
			w.put(t, "Gateway", "far", "wp", j.gateway("service", "Same"))
			w.by(t, vip, nil, j)
		})
		w.put(t, "Gateway", "far", "wp", j.gateway("service", "All"))
		w.by(t, vip, j)
	})
}

// TestAuthorizationWaypointDefaultDeny, as far as layer 4 goes: where the mesh allows
// nobody, a workload may let its waypoint alone in, by the waypoint's own identity.
func TestAuthorizationWaypointDefaultDeny(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		const because = "allow policies exist, but none allowed"
		vip := at("10.96.10.34", 80)
		j := w.judge(t, "app", "wp-alone")
		w.put(t, "Gateway", "app", "wp-alone", j.gateway("service", "Same"))
		w.put(t, "Service", "app", "defended", judged("defended", vip.Addr().String(), "istio.io/use-waypoint: wp-alone", ""))
		w.by(t, vip, j)
		allow := func(namespace, name, spec string) {
			w.put(t, "AuthorizationPolicy", namespace, name, fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: %s, namespace: %s}\nspec: {%s}\n", name, namespace, spec))
		}
		allow(rootNamespace, "allow-nothing", "")
		for _, to := range []netip.AddrPort{on(w.server, 18080), on(w.second, 19090), vip} { // in each namespace, and at the waypoint
			w.refused(t, w.client, to, because)
		}
		w.refused(t, w.outside, on(w.server, 18080), because)
		reaches(t, w.client, on(w.outsideServer, 18080), "plain/server")
		allow("app", "to-waypoint", "selector: {matchLabels: {gateway.networking.k8s.io/gateway-name: wp-alone}}, rules: [{from: [{source: {namespaces: [app]}}]}]")
		eventually(t, "the waypoint takes it, and is itself not let in", func() error {
			logs := w.AccessLogs()
			if r, err := call(w.client, vip); err == nil {
				return fmt.Errorf("%s answered", r.who)
			}
			return logged(t, logs, j.Pod, because, 1)
		})
		allow("app", "from-waypoint", `selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: ["cluster.local/ns/app/sa/wp-alone"]}}]}]`)
		w.by(t, vip, j)
		for _, from := range []*onehost.Pod{w.client, w.other, w.outside} {
			w.refused(t, from, on(w.server, 18080), because)
		}
	})
}

// TestWeightedWaypoint (canary): a canary gets its share, and nothing while it is not
// there.
func TestWeightedWaypoint(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		stable, canary := w.judge(t, "app", "stable"), w.judge(t, "app", "canary")
		t.Run("not ready", func(t *testing.T) {
			vip := at("10.96.10.35", 80)
			w.put(t, "Gateway", "app", "stable", stable.gateway("service", "Same"))
			w.put(t, "Service", "app", "early", judged("early", vip.Addr().String(),
				"istio.io/use-waypoint: stable, istio.io/use-waypoint-canary: canary", `istio.io/use-waypoint-canary-weight: "100"`))
			w.by(t, vip, stable, canary)
		})
		for _, j := range []*judge{stable, canary} {
			w.put(t, "Gateway", "app", j.Spec.Name, j.gateway("service", "Same"))
		}
		vip := at("10.96.10.33", 80)
		const labels = "istio.io/use-waypoint: stable, istio.io/use-waypoint-canary: canary"
		weigh := func(weight string) {
			t.Helper()
			doc := judged("canaried", vip.Addr().String(), labels, `istio.io/use-waypoint-canary-weight: "`+weight+`"`)
			if err := w.Put("Service", "app", "canaried", []byte(doc)); err != nil {
				t.Fatal(err)
			}
		}
		w.put(t, "Service", "app", "canaried", judged("canaried", vip.Addr().String(), labels, ""))
		for weight, who := range map[string]*judge{"0": stable, "100": canary} {
			weigh(weight)
			other := stable
			if who == stable {
				other = canary
			}
			w.by(t, vip, who, other)
		}
		weigh("50")
		got := map[*judge]int{}
		asked := func() error {
			if _, err := call(w.client, vip); err != nil {
				return err
			}
			for _, j := range []*judge{stable, canary} {
				for len(j.heard) > 0 {
					<-j.heard
					got[j]++
				}
			}
			return nil
		}
		eventually(t, "both are asked", func() error {
			if err := asked(); err != nil {
				return err
			}
			if got[stable] == 0 || got[canary] == 0 {
				return fmt.Errorf("stable %d times, canary %d times", got[stable], got[canary])
			}
			return nil
		})
		clear(got)
		for range 80 { // of which 40 are expected: 20 is 4.5 standard deviations from that
			if err := asked(); err != nil {
				t.Fatal(err)
			}
		}
		if got[stable] < 20 || got[canary] < 20 {
			t.Errorf("of 80 connections, half of which are meant for each, %d went by stable, %d by canary", got[stable], got[canary])
		}
	})
}

// TestWaypointRollout: a waypoint that is a Service is replaced, pod by pod, and the
// connections go to who is there. TestOnDemand does it, too.
func TestWaypointRollout(t *testing.T) { both(t, rollWaypoint) }

func rollWaypoint(t *testing.T, w *world) {
	vip := at("10.96.10.44", 80)
	first := w.judgeOf(t, "app", "rolled-1", "rolled")
	w.put(t, "Service", "app", "rolled", `apiVersion: v1
kind: Service
metadata: {name: rolled, namespace: app}
spec: {clusterIP: 10.96.10.45, clusterIPs: [10.96.10.45], selector: {gateway.networking.k8s.io/gateway-name: rolled}, ports: [{name: hbone, port: 15008}]}
`)
	w.put(t, "Gateway", "app", "rolled", `apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: rolled, namespace: app, labels: {istio.io/waypoint-for: service}, annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY/15088}}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: Same}}}]}
status: {addresses: [{type: Hostname, value: rolled.app.svc.cluster.local}]}
`)
	w.put(t, "Service", "app", "judged-by-turns", judged("judged-by-turns", vip.Addr().String(), "istio.io/use-waypoint: rolled", ""))
	w.by(t, vip, first)
	for i := range 2 {
		next := w.judgeOf(t, "app", fmt.Sprintf("rolled-%d", i+2), "rolled")
		w.end(t, first.Pod)
		w.by(t, vip, next)
		first = next
	}
}
