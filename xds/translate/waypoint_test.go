package translate

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/warren-mesh/warren/xds/workload"
)

// TestAdmission is about who may be bound to a waypoint of another namespace.
func TestAdmission(t *testing.T) {
	const objects = `apiVersion: v1
kind: Namespace
metadata: {name: app, labels: {team: blue}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: infra, annotations: {ambient.istio.io/waypoint-inbound-binding: %q}}
spec: {gatewayClassName: istio-waypoint, listeners: [%s]}
status: {addresses: [{value: 10.1.9.1}]}
---
apiVersion: v1
kind: Service
metadata: {name: s, namespace: app, labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: infra}}
spec: {clusterIP: 10.1.0.1, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: s, namespace: infra, labels: {istio.io/use-waypoint: wp}}
spec: {clusterIP: 10.1.0.2, ports: [{port: 80}]}
`
	hbone := func(rest string) string { return "{name: m, port: 15008, protocol: HBONE" + rest + "}" }
	from := func(rest string) string { return hbone(", allowedRoutes: {namespaces: {" + rest + "}}") }
	for name, c := range map[string]struct {
		binding, listeners string
		other, own         bool
		problems           int
	}{
		"no listener":           {"NONE", "", false, true, 1},
		"says nothing":          {"NONE", hbone(""), false, true, 1},
		"says nothing of whom":  {"NONE", from(""), false, true, 1},
		"same":                  {"NONE", from("from: Same"), false, true, 1},
		"all":                   {"NONE", from("from: All"), true, true, 0},
		"none":                  {"NONE", from("from: None"), false, false, 2},
		"not known":             {"NONE", from("from: Friends"), false, true, 1},
		"selected":              {"NONE", from("from: Selector, selector: {matchLabels: {team: blue}}"), true, false, 1},
		"not selected":          {"NONE", from("from: Selector, selector: {matchLabels: {team: red}}"), false, false, 2},
		"no selector":           {"NONE", from("from: Selector"), false, false, 2},
		"bad selector":          {"NONE", from("from: Selector, selector: {matchExpressions: [{key: a, operator: Near}]}"), false, true, 2},
		"of another listener":   {"NONE", hbone("") + ", {name: web, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}", false, true, 1},
		"the usual port counts": {"NONE", "{name: x, port: 1, protocol: HBONE}, " + from("from: All"), true, true, 0},
		"bound by protocol":     {"PROXY", from("from: All") + ", {name: p, port: 15088, protocol: istio.io/PROXY}", false, true, 1},
		"bound by port":         {"NONE/7", hbone("") + ", {name: p, port: 7, protocol: TCP, allowedRoutes: {namespaces: {from: All}}}", true, true, 0},
		"bound to nothing":      {"PROXY/8", from("from: All"), true, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := All(parseObjects(t, fmt.Sprintf(objects, c.binding, c.listeners)), Options{})
			if err != nil || len(r.Services) != 2 {
				t.Fatal(r.Services, err)
			}
			if other, own := r.Services[0].Waypoint != nil, r.Services[1].Waypoint != nil; other != c.other || own != c.own {
				t.Errorf("bound from elsewhere %v, from its own namespace %v, want %v, %v", other, own, c.other, c.own)
			}
			if len(r.Problems) != c.problems {
				t.Errorf("problems %v, want %d", r.Problems, c.problems)
			}
		})
	}
}

// A hundred services in one namespace have one problem with its binding.
func TestNamespaceIsReportedOnce(t *testing.T) {
	text := "apiVersion: v1\nkind: Namespace\nmetadata: {name: app, labels: {istio.io/use-waypoint: nope, istio.io/ingress-use-waypoint: x}}"
	for n := range 100 {
		text += fmt.Sprintf("\n---\napiVersion: v1\nkind: Service\nmetadata: {name: s%d, namespace: app}", n)
	}
	r, err := All(parseObjects(t, text), Options{})
	if err != nil || len(r.Problems) != 1 || r.Problems[0].Kind != "Namespace" {
		t.Errorf("problems %v, %v", r.Problems, err)
	}
}

// TestBinding is who goes through which waypoint: the label on the object before that on
// its namespace, what the Gateway or else its class is for, and nobody through one that
// is not there yet, which is told.
func TestBinding(t *testing.T) {
	const objects = `apiVersion: v1
kind: Namespace
metadata: {name: app, labels: {%[1]s}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: waypoint, labels: {%[4]s}}
spec: {controllerName: x}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: app, labels: {%[3]s}}
spec: {gatewayClassName: waypoint, listeners: [{name: m, port: 15008, protocol: HBONE}]}
status: {addresses: [%[5]s]}
---
apiVersion: v1
kind: Service
metadata: {name: s, namespace: app, labels: {%[2]s}}
spec: {clusterIP: 10.1.0.1, ports: [{port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: e, namespace: app, labels: {%[2]s}}
spec: {hosts: [e.example], addresses: [10.2.0.1], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: w, namespace: app, labels: {%[2]s}}
spec: {address: 10.3.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: app, uid: u, labels: {%[2]s}}
spec: {nodeName: n}
status: {phase: Running, podIP: 10.4.0.1, podIPs: [{ip: 10.4.0.1}]}
`
	const use, ip = "istio.io/use-waypoint: wp", "{type: IPAddress, value: 10.1.9.1}"
	for name, c := range map[string]struct {
		namespace, object, gateway, class, addresses string

		services, workloads bool   // that go through it
		reason              string // of the Service's binding; empty: it says nothing
	}{
		"nobody asks":                   {"", "", "", "", ip, false, false, ""},
		"the object asks":               {"", use, "", "", ip, true, false, "WaypointAccepted"},
		"the namespace asks":            {use, "", "", "", ip, true, false, "WaypointAccepted"},
		"the object does not want":      {use, "istio.io/use-waypoint: none", "", "", ip, false, false, ""},
		"the namespace does not want":   {"istio.io/use-waypoint: none", "", "", "", ip, false, false, ""},
		"the object before that":        {"istio.io/use-waypoint: other", use, "", "", ip, true, false, "WaypointAccepted"},
		"for workloads":                 {"", use, "istio.io/waypoint-for: workload", "", ip, false, true, "UnsupportedTrafficType"},
		"for workloads, by namespace":   {use, "", "istio.io/waypoint-for: workload", "", ip, false, true, ""},
		"for all":                       {"", use, "istio.io/waypoint-for: all", "", ip, true, true, "WaypointAccepted"},
		"for none":                      {"", use, "istio.io/waypoint-for: none", "", ip, false, false, "UnsupportedTrafficType"},
		"for what is not known":         {"", use, "istio.io/waypoint-for: everybody", "", ip, false, false, "UnsupportedTrafficType"},
		"for all, by class":             {"", use, "", "istio.io/waypoint-for: all", ip, true, true, "WaypointAccepted"},
		"the Gateway before its class":  {"", use, "istio.io/waypoint-for: service", "istio.io/waypoint-for: all", ip, true, false, "WaypointAccepted"},
		"not there":                     {"", "istio.io/use-waypoint: other", "", "", ip, false, false, "WaypointIsNotReady"},
		"in another namespace":          {"", use + ", istio.io/use-waypoint-namespace: infra", "", "", ip, false, false, "WaypointIsNotReady"},
		"its namespace by name":         {"", use + ", istio.io/use-waypoint-namespace: app", "", "", ip, true, false, "WaypointAccepted"},
		"no address yet":                {"", use, "", "", "", false, false, "WaypointIsNotReady"},
		"an address that is none":       {"", use, "", "", "{type: IPAddress, value: x}", false, false, "WaypointIsNotReady"},
		"a hostname":                    {"", use, "", "", "{type: Hostname, value: wp.app.svc.cluster.local}, " + ip, true, false, "WaypointAccepted"},
		"of a waypoint itself":          {use, "gateway.istio.io/managed: istio.io-mesh-controller", "istio.io/waypoint-for: all", "", ip, false, false, ""},
		"of an east-west gateway":       {use, "gateway.istio.io/managed: istio.io-eastwest-controller", "istio.io/waypoint-for: all", "", ip, false, false, ""},
		"of what somebody else manages": {use, "gateway.istio.io/managed: istio.io-gateway-controller", "", "", ip, true, false, "WaypointAccepted"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := All(parseObjects(t, fmt.Sprintf(objects, c.namespace, c.object, c.gateway, c.class, c.addresses)), Options{Network: "net"})
			if err != nil || len(r.Services) != 2 || len(r.Workloads) != 2 {
				t.Fatal(len(r.Services), len(r.Workloads), err)
			}
			check := func(what string, g *workload.GatewayAddress, want bool) {
				t.Helper()
				if (g != nil) != want {
					t.Errorf("%s goes through %v, want one: %v", what, g, want)
				}
				if g == nil {
					return
				}
				if host := strings.Contains(c.addresses, "Hostname"); g.HBONEPort != 15008 || (g.Hostname.Hostname == "wp.app.svc.cluster.local" && g.Hostname.Namespace == "app") != host ||
					!host && (g.Address.Network != "net" || g.Address.Addr.String() != "10.1.9.1") {
					t.Errorf("%s is sent to %+v", what, *g)
				}
			}
			for _, s := range r.Services {
				check(s.Hostname, s.Waypoint, c.services)
			}
			for _, w := range r.Workloads {
				check(w.UID, w.Waypoint, c.workloads)
			}
			for _, kind := range []string{"Service", "ServiceEntry"} {
				reason := ""
				for _, b := range r.Bindings {
					if b.Kind == kind {
						reason = b.Reason
						if b.Bound != c.services || b.Message == "" {
							t.Errorf("%s: %+v", kind, b)
						}
					}
				}
				if reason != c.reason {
					t.Errorf("%s says %q, want %q", kind, reason, c.reason)
				}
			}
		})
	}
}

// TestCanary: a second waypoint has a share, and one that cannot have it leaves all to
// the first, which the binding says.
func TestCanary(t *testing.T) {
	const objects = `apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: app}
spec: {gatewayClassName: waypoint, listeners: [{name: m, port: 15008, protocol: HBONE}]}
status: {addresses: [{value: 10.1.9.1}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: new, namespace: app, labels: {%[1]s}}
spec: {gatewayClassName: waypoint, listeners: [{name: m, port: 15008, protocol: HBONE}]}
status: {addresses: [{value: 10.1.9.2}]}
---
apiVersion: v1
kind: Service
metadata: {name: s, namespace: app, labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-canary: %[2]s}, annotations: {istio.io/use-waypoint-canary-weight: "%[3]s"}}
spec: {clusterIP: 10.1.0.1, ports: [{port: 80}]}
`
	for name, c := range map[string]struct {
		gateway, canary, weight string
		share                   []uint32 // nil: all to the first
		says                    string
	}{
		"a share":         {"", "new", "20", []uint32{80, 20}, "20 % of it through Gateway app/new"},
		"nothing":         {"", "new", "0", []uint32{100, 0}, "0 % of it"},
		"everything":      {"", "new", "100", []uint32{0, 100}, "100 % of it"},
		"too much":        {"", "new", "101", nil, "101"},
		"no number":       {"", "new", "half", nil, "half"},
		"the same":        {"", "wp", "20", nil, "the waypoint itself"},
		"not there":       {"", "nope", "20", nil, "no Gateway app/nope"},
		"for other kinds": {"istio.io/waypoint-for: workload", "new", "20", nil, "is for workload"},
		"none":            {"", "none", "20", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := All(parseObjects(t, fmt.Sprintf(objects, c.gateway, c.canary, c.weight)), Options{})
			if err != nil || len(r.Services) != 1 || r.Services[0].Waypoint == nil || len(r.Bindings) != 1 {
				t.Fatal(r.Services, r.Bindings, err)
			}
			var share []uint32
			for _, w := range r.Services[0].WeightedWaypoints {
				share = append(share, w.Weight)
			}
			if !slices.Equal(share, c.share) {
				t.Errorf("shares %v, want %v", share, c.share)
			}
			b := r.Bindings[0]
			if !b.Bound || b.Reason != "WaypointAccepted" || !strings.Contains(b.Message, c.says) || c.says == "" && strings.Contains(b.Message, "canary") {
				t.Errorf("says %+v, want %q", b, c.says)
			}
			if wrong := len(r.Problems) > 0; wrong != (c.share == nil && c.canary != "none") {
				t.Errorf("problems %v", r.Problems)
			}
		})
	}
}

// TestCanaryByLevel: what a service says of a canary counts before what its namespace says,
// label and weight each by itself, and its namespace is asked only for a waypoint of its.
func TestCanaryByLevel(t *testing.T) {
	const gateway = `apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: %[1]s, namespace: %[2]s}
spec: {gatewayClassName: waypoint, listeners: [{name: m, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]}
status: {addresses: [{value: %[3]s}]}
---
`
	const objects = `apiVersion: v1
kind: Namespace
metadata: {name: app, labels: {%s}, annotations: {%s}}
---
apiVersion: v1
kind: Service
metadata: {name: s, namespace: app, labels: {%s}, annotations: {%s}}
spec: {clusterIP: 10.1.0.1, ports: [{port: 80}]}
`
	gateways := fmt.Sprintf(gateway, "wp", "app", "10.1.9.1") + fmt.Sprintf(gateway, "new", "app", "10.1.9.2") +
		fmt.Sprintf(gateway, "other", "app", "10.1.9.3") + fmt.Sprintf(gateway, "new", "infra", "10.1.9.4")
	const wp, canary, weight = "istio.io/use-waypoint: wp", ", istio.io/use-waypoint-canary: ", "istio.io/use-waypoint-canary-weight: "
	for name, c := range map[string]struct {
		namespace, namespaceWeight, service, weight string
		want                                        string // addresses and weights
		problem                                     string // whose
	}{
		"all by the namespace":                {wp + canary + "new", weight + `"10"`, "", "", "10.1.9.1 90 10.1.9.2 10", ""},
		"rolled back by weight":               {wp + canary + "new", weight + `"10"`, "", weight + `"0"`, "10.1.9.1 100 10.1.9.2 0", ""},
		"ahead by weight":                     {wp + canary + "new", weight + `"10"`, "", weight + `"100"`, "10.1.9.1 0 10.1.9.2 100", ""},
		"a weight without the namespace's":    {wp + canary + "new", "", "", weight + `"30"`, "10.1.9.1 70 10.1.9.2 30", ""},
		"a wrong weight":                      {wp + canary + "new", weight + `"10"`, "", weight + `"x"`, "", "Service app/s"},
		"a wrong weight of the namespace":     {wp + canary + "new", weight + `"x"`, "", "", "", "Namespace app"},
		"a right weight before a wrong one":   {wp + canary + "new", weight + `"x"`, "", weight + `"5"`, "10.1.9.1 95 10.1.9.2 5", ""},
		"another canary, the same weight":     {wp + canary + "new", weight + `"10"`, canary[2:] + "other", "", "10.1.9.1 90 10.1.9.3 10", ""},
		"a canary of its own":                 {wp, "", canary[2:] + "new", weight + `"100"`, "10.1.9.1 0 10.1.9.2 100", ""},
		"no canary":                           {wp + canary + "new", weight + `"10"`, canary[2:] + "none", "", "", ""},
		"one that is not there":               {wp + canary + "new", weight + `"10"`, canary[2:] + "nope", "", "", "Service app/s"},
		"the namespace's is not there":        {wp + canary + "nope", weight + `"10"`, "", "", "", "Namespace app"},
		"elsewhere, of the label's level":     {wp + canary + "new, istio.io/use-waypoint-canary-namespace: infra", weight + `"10"`, "", "", "10.1.9.1 90 10.1.9.4 10", ""},
		"not elsewhere, by another level":     {wp + canary + "new, istio.io/use-waypoint-canary-namespace: infra", weight + `"10"`, canary[2:] + "other", "", "10.1.9.1 90 10.1.9.3 10", ""},
		"a waypoint of its own, no canary":    {wp + canary + "new", weight + `"10"`, wp, "", "", ""},
		"a waypoint and a canary of its own":  {wp + canary + "new", weight + `"10"`, wp + canary + "other", "", "10.1.9.1 100 10.1.9.3 0", ""},
		"no waypoint":                         {canary[2:] + "new", weight + `"10"`, canary[2:] + "new", weight + `"10"`, "", ""},
		"nothing here counts without a label": {wp, weight + `"10"`, "", weight + `"10"`, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := All(parseObjects(t, gateways+fmt.Sprintf(objects, c.namespace, c.namespaceWeight, c.service, c.weight)), Options{})
			if err != nil || len(r.Services) != 1 {
				t.Fatal(r.Services, err)
			}
			var got []string
			for _, w := range r.Services[0].WeightedWaypoints {
				got = append(got, fmt.Sprint(w.Destination.Address.Addr, " ", w.Weight))
			}
			if s := strings.Join(got, " "); s != c.want {
				t.Errorf("%q, want %q", s, c.want)
			}
			var problems []string
			for _, p := range r.Problems {
				problems = append(problems, strings.TrimSpace(p.Kind+" "+strings.Trim(p.Namespace+"/"+p.Name, "/")))
			}
			if s := strings.Join(problems, " "); s != c.problem {
				t.Errorf("problems of %q, want %q: %v", s, c.problem, r.Problems)
			}
		})
	}
}
