package workload

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"unsafe"
)

func TestSharer(t *testing.T) {
	web, other := NamespacedHostname{Namespace: "ns", Hostname: "web"}, NamespacedHostname{Namespace: "ns", Hostname: "other"}
	pod := func(services map[NamespacedHostname]PortMap) *Workload {
		return (&Workload{
			UID: "u", Name: "n", Namespace: strings.Clone("ns"), ServiceAccount: strings.Clone("sa"), TrustDomain: "td", Node: strings.Clone("node"),
			Policies: []string{strings.Clone("ns/p")}, Services: services,
		}).sealed()
	}
	same := func(a, b map[NamespacedHostname]PortMap) bool {
		return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
	}
	var s Sharer
	first := pod(map[NamespacedHostname]PortMap{web: {{Service: 80, Target: 8080}}})
	s.Workload(first)
	for name, c := range map[string]struct {
		services map[NamespacedHostname]PortMap
		shared   bool
	}{
		"equal":         {map[NamespacedHostname]PortMap{web: {{Service: 80, Target: 8080}}}, true},
		"another port":  {map[NamespacedHostname]PortMap{web: {{Service: 80, Target: 8081}}}, false},
		"one port more": {map[NamespacedHostname]PortMap{web: {{Service: 80, Target: 8080}, {Service: 81, Target: 1}}}, false},
		"another":       {map[NamespacedHostname]PortMap{other: {{Service: 80, Target: 8080}}}, false},
		"two":           {map[NamespacedHostname]PortMap{web: {{Service: 80, Target: 8080}}, other: nil}, false},
		"none":          {nil, false},
	} {
		w := pod(c.services)
		before := fmt.Sprintf("%+v", w)
		s.Workload(w)
		if after := fmt.Sprintf("%+v", w); after != before {
			t.Errorf("%s: it was %s and is %s", name, before, after)
		}
		if same(w.Services, first.Services) != c.shared {
			t.Errorf("%s: shared %v, want %v", name, !c.shared, c.shared)
		}
		for field, p := range map[string][2]string{
			"namespace": {first.Namespace, w.Namespace}, "account": {first.ServiceAccount, w.ServiceAccount}, "node": {first.Node, w.Node}, "policy": {first.Policies[0], w.Policies[0]},
		} {
			if unsafe.StringData(p[0]) != unsafe.StringData(p[1]) {
				t.Errorf("%s: %s is there twice", name, field)
			}
		}
		if &first.ids[0] != &w.ids[0] {
			t.Errorf("%s: the identity is there twice", name)
		}
	}
	for i := range maxShared + 10 {
		s.text(fmt.Sprint(i))
	}
	s.Workload(pod(nil))
	if n := len(s.texts); n > 100 {
		t.Errorf("it remembers %d texts", n)
	}
}
