package translate

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apinetworking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
)

func TestPlacements(t *testing.T) {
	const objects = `apiVersion: v1
kind: Namespace
metadata: {name: app, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: starts, namespace: app}
spec: {nodeName: n1, serviceAccountName: starts}
status: {phase: Pending}
---
apiVersion: v1
kind: Pod
metadata: {name: runs, namespace: app}
spec: {nodeName: n1}
status: {phase: Running, podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: elsewhere, namespace: app}
spec: {nodeName: n2, serviceAccountName: starts}
---
apiVersion: v1
kind: Pod
metadata: {name: unplaced, namespace: app}
spec: {serviceAccountName: unplaced}
---
apiVersion: v1
kind: Pod
metadata: {name: done, namespace: app}
spec: {nodeName: n1, serviceAccountName: done}
status: {phase: Failed}
---
apiVersion: v1
kind: Pod
metadata: {name: enrolled, namespace: app, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: n1, serviceAccountName: done}
status: {phase: Succeeded}
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: app}
spec: {nodeName: n1, serviceAccountName: host, hostNetwork: true}
---
apiVersion: v1
kind: Pod
metadata: {name: outside, namespace: other}
spec: {nodeName: n1, serviceAccountName: outside}
---
apiVersion: v1
kind: Pod
metadata: {name: leaving, namespace: other, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: n1, serviceAccountName: leaving}
`
	for name, c := range map[string]struct {
		opts Options
		n1   []string
	}{
		"annotation": {Options{TrustDomain: "td"}, []string{"spiffe://td/ns/app/sa/default", "spiffe://td/ns/app/sa/starts", "spiffe://td/ns/other/sa/leaving"}},
		"assumed":    {Options{TrustDomain: "td", AssumeRedirected: true}, []string{"spiffe://td/ns/app/sa/default", "spiffe://td/ns/app/sa/starts"}},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := All(parseObjects(t, objects), c.opts)
			if err != nil {
				t.Fatal(err)
			}
			got := make(map[string][]string)
			for node, ids := range r.Placements {
				for id := range maps.Keys(ids) {
					got[node] = append(got[node], id.String())
				}
				slices.Sort(got[node])
			}
			if d := cmp.Diff(map[string][]string{"n1": c.n1, "n2": {"spiffe://td/ns/app/sa/starts"}}, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
	if _, err := All(Objects{}, Options{TrustDomain: "Not A Domain"}); err == nil {
		t.Error("a trust domain that is none is accepted")
	}
}

// A pod whose account cannot be part of an identity is left out and named.
func TestOddAccount(t *testing.T) {
	r, err := All(parseObjects(t, "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: app}\nspec: {serviceAccountName: a/b, nodeName: n}\nstatus: {podIPs: [{ip: 10.0.0.1}]}"), Options{})
	if err != nil || len(r.Workloads) != 0 || len(r.Placements) != 0 || len(r.Problems) != 1 {
		t.Errorf("result = %+v, %v, want only a problem", r, err)
	}
}

// A slice of one namespace does not make a pod of another an endpoint.
func TestSliceOfAnotherNamespace(t *testing.T) {
	const objects = `apiVersion: v1
kind: Service
metadata: {name: bait, namespace: %[1]s}
spec: {clusterIP: 10.1.0.1, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: bait-1, namespace: %[1]s, labels: {kubernetes.io/service-name: bait}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.0.0.1], targetRef: {kind: Pod, namespace: app, name: p}}]
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: app}
status: {podIPs: [{ip: 10.0.0.1}]}
`
	for namespace, want := range map[string]int{"app": 1, "evil": 0} {
		r, err := All(parseObjects(t, fmt.Sprintf(objects, namespace)), Options{})
		if err != nil || len(r.Workloads) != 1 {
			t.Fatalf("%s: %d workloads, %v", namespace, len(r.Workloads), err)
		}
		if got := len(r.Workloads[0].Services); got != want {
			t.Errorf("slice in %s: the pod is in %d services, want %d", namespace, got, want)
		}
	}
}

// An address that two pods have is told of, unless one of them goes, has none of its own
// or is not ready.
func TestTwoPodsOneAddress(t *testing.T) {
	for name, c := range map[string]struct {
		spec, meta, ip, ready string
		problems              int
	}{
		"both":            {"", "", "10.0.0.1", "True", 2},
		"another address": {"", "", "10.0.0.2", "True", 0},
		"not ready":       {"", "", "10.0.0.1", "False", 0},
		"going":           {"", ", deletionTimestamp: 2026-01-01T00:00:00Z", "10.0.0.1", "True", 0},
		"the node's":      {", hostNetwork: true", "", "10.0.0.1", "True", 0},
	} {
		const pod = `apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: app%s}
spec: {nodeName: n%s}
status: {phase: Running, podIPs: [{ip: %s}], conditions: [{type: Ready, status: "%s"}]}
`
		r, err := All(parseObjects(t, fmt.Sprintf(pod+"---\n"+pod, "a", "", "", "10.0.0.1", "True", "b", c.meta, c.spec, c.ip, c.ready)), Options{})
		if err != nil || len(r.Workloads) != 2 || len(r.Problems) != c.problems {
			t.Errorf("%s: %d workloads, problems %v, %v", name, len(r.Workloads), r.Problems, err)
		}
		for i, who := range [][2]string{{"b", "a"}, {"a", "b"}}[:min(2, len(r.Problems))] {
			if p := r.Problems[i]; p.Name != who[0] || !strings.Contains(p.Reason, "10.0.0.1 is also that of pod app/"+who[1]) {
				t.Errorf("%s: %v", name, r.Problems)
			}
		}
	}
}

// One object's mistakes are told up to a number, and the others' all the same.
func TestBoundedProblems(t *testing.T) {
	var entries []*networkingv1.ServiceEntry
	for i := range 3 {
		se := entryWith(1, 1, 0)
		se.Namespace, se.Name, se.Spec.Hosts = "app", fmt.Sprint("e", i), []string{fmt.Sprintf("h%d.example", i)}
		for range 1000 {
			se.Spec.Endpoints = append(se.Spec.Endpoints, &apinetworking.WorkloadEntry{Address: "999.1.1.1"})
		}
		entries = append(entries, se)
	}
	r, err := All(Objects{ServiceEntries: entries}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Problems) != 3*(maxProblems+1) {
		t.Errorf("%d problems", len(r.Problems))
	}
	if last := r.Problems[maxProblems]; last.Name != "e0" || last.Reason != "and 968 more" || last.Field != "" {
		t.Errorf("the last is %v", last)
	}
}
