package translate

import (
	"fmt"
	"testing"
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
