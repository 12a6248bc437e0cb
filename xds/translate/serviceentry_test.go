package translate

import (
	"fmt"
	"strings"
	"testing"
	"time"

	apinetworking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/warren-mesh/warren/xds/workload"
)

// entryWith is an entry with so many hosts, ports and endpoints.
func entryWith(hosts, ports, endpoints int) *networkingv1.ServiceEntry {
	se := &networkingv1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Name: "e", Namespace: "app"}}
	for n := range hosts {
		se.Spec.Hosts = append(se.Spec.Hosts, fmt.Sprintf("h%d.example", n))
	}
	for n := range ports {
		se.Spec.Ports = append(se.Spec.Ports, &apinetworking.ServicePort{Number: uint32(n + 1), Protocol: "TCP"})
	}
	for n := range endpoints {
		se.Spec.Endpoints = append(se.Spec.Endpoints, &apinetworking.WorkloadEntry{Address: fmt.Sprintf("10.0.%d.%d", n>>8, n&255)})
	}
	return se
}

// A small object must not come down to a large mesh.
func TestEntryIsBounded(t *testing.T) {
	for _, c := range []struct {
		hosts, ports, endpoints int
		field                   string // of the problem
	}{
		{maxHosts, 1, maxEndpoints, ""}, {1, maxPorts, maxEndpoints, ""}, {maxHosts, maxPorts, 16, ""},
		{maxHosts + 1, 1, 1, "spec.hosts"}, {1, maxPorts + 1, 1, "spec.ports"}, {1, 1, maxEndpoints + 1, "spec.endpoints"},
		{maxHosts, 2, maxEndpoints, "spec"}, {2, maxPorts, maxEndpoints, "spec"},
	} {
		other := entryWith(1, 1, 1)
		other.Name, other.Spec.Hosts = "other", []string{"other.example"}
		r, err := All(Objects{ServiceEntries: []*networkingv1.ServiceEntry{entryWith(c.hosts, c.ports, c.endpoints), other}}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		want := 1 + c.endpoints
		if c.field != "" {
			want = 1
			if len(r.Problems) != 1 || r.Problems[0].Field != c.field || r.Problems[0].Name != "e" || !strings.Contains(r.Problems[0].Reason, "split it") {
				t.Errorf("%+v: problems %v", c, r.Problems)
			}
		} else if len(r.Problems) > 0 {
			t.Errorf("%+v: problems %v", c, r.Problems)
		}
		if len(r.Workloads) != want {
			t.Errorf("%+v: %d workloads, want %d", c, len(r.Workloads), want)
		}
	}
}

func TestExportTo(t *testing.T) {
	for _, c := range []struct {
		to       []string
		want     string // visibility, empty for none
		problems int
	}{
		{nil, "Public", 0}, {[]string{"*"}, "Public", 0}, {[]string{".", "*"}, "Public", 0},
		{[]string{"."}, "Namespace", 0}, {[]string{"app"}, "Namespace", 0}, {[]string{".", "app"}, "Namespace", 0},
		{[]string{"~"}, "", 0}, {[]string{"~", "."}, "Public", 1}, {[]string{".", "other", "third"}, "Public", 1},
	} {
		se := entryWith(1, 1, 0)
		se.Spec.ExportTo = c.to
		r, err := All(Objects{ServiceEntries: []*networkingv1.ServiceEntry{se}}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, s := range r.Services {
			got += s.Visibility.String()
		}
		if got != c.want || len(r.Problems) != c.problems {
			t.Errorf("exportTo %q: visibility %q, problems %v, want %q, %d", c.to, got, r.Problems, c.want, c.problems)
		}
	}
}

// Whose a host is does not depend on who is looked at first, and passes on when its owner
// goes.
func TestHostPassesOn(t *testing.T) {
	at := func(name string, year int, to ...string) *networkingv1.ServiceEntry {
		se := entryWith(1, 1, 0)
		se.Name, se.CreationTimestamp, se.Spec.ExportTo = name, metav1.NewTime(time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)), to
		return se
	}
	elsewhere := at("c", 2021)
	elsewhere.Namespace = "other"
	list := []*networkingv1.ServiceEntry{at("b", 2020, "."), at("a", 2022), elsewhere}
	for _, want := range []string{"app/b=false other/c=true", "app/a=false other/c=true", "other/c=true"} {
		for range 3 {
			mix(list)
			r, err := All(Objects{ServiceEntries: list}, Options{})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range r.Services {
				got = append(got, fmt.Sprintf("%s/%s=%v", s.Namespace, s.Name, s.Canonical))
			}
			if strings.Join(got, " ") != want {
				t.Errorf("%q, want %q", got, want)
			}
		}
		gone := strings.Split(strings.Split(want, "=")[0], "/")[1] // the owner that is named first
		for i, se := range list {
			if se.Name == gone {
				list = append(list[:i:i], list[i+1:]...)
				break
			}
		}
	}
}

// What counts is what the endpoint itself is labelled, also where it has no labels.
func TestEndpointPolicies(t *testing.T) {
	const objects = `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: a, namespace: app}
spec: {selector: {matchLabels: {app: vm}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: app}
spec: {selector: {matchLabels: {app: vm}}, mtls: {mode: STRICT}, portLevelMtls: {"80": {mode: DISABLE}, "70000": {mode: DISABLE}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: e, namespace: app, labels: {app: vm}}
spec: {hosts: [a.example], resolution: STATIC, endpoints: [{address: 10.0.0.1}, {address: 10.0.0.2, labels: {app: vm}}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: plain, namespace: app}
spec: {address: 10.0.0.3}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, namespace: app}
spec: {address: 10.0.0.4, labels: {app: vm}}
`
	r, err := All(parseObjects(t, objects), Options{})
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, w := range r.Workloads {
		got[w.Addresses[0].String()] = strings.Join(w.Policies, " ")
	}
	const vm = "app/a app/converted_peer_authentication_strict"
	if fmt.Sprint(got) != fmt.Sprint(map[string]string{"10.0.0.1": "", "10.0.0.2": vm, "10.0.0.3": "", "10.0.0.4": vm}) {
		t.Errorf("policies: %v", got)
	}
	if len(r.Problems) != 1 || r.Problems[0].Field != "spec.portLevelMtls[70000]" {
		t.Errorf("problems: %v", r.Problems)
	}
}

// A new name for a thing that proxies know would make them drop and take it again.
func TestNames(t *testing.T) {
	var w []string
	r, err := All(parseObjects(t, `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: e, namespace: app}
spec: {hosts: [a.example], resolution: STATIC, endpoints: [{address: "fd00:0::1"}, {address: Vm.Example.}, {address: 10.0.0.1}, {address: 10.0.0.1}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: w, namespace: app}
spec: {address: 10.0.0.3}`), Options{ClusterID: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range r.Workloads {
		w = append(w, o.UID)
	}
	const entry = "c1/networking.istio.io/ServiceEntry/app/e/"
	want := []string{entry + "10.0.0.1", entry + "10.0.0.1/2", entry + "Vm.Example.", entry + "fd00:0::1", "c1/networking.istio.io/WorkloadEntry/app/w"}
	if fmt.Sprint(w) != fmt.Sprint(want) {
		t.Errorf("names %q, want %q", w, want)
	}
	if s := r.Services[0]; s.ResourceName() != "app/a.example" || r.Workloads[2].Hostname != "vm.example" || s.Mode() != workload.LBStandard {
		t.Errorf("%+v, %+v", s, r.Workloads[2])
	}
}
