package workload

import (
	"fmt"
	"strings"
	"testing"
	"unsafe"

	"istio.io/istio/pkg/workloadapi"
)

func TestSharer(t *testing.T) {
	web, other := NamespacedHostname{Namespace: "ns", Hostname: "web"}, NamespacedHostname{Namespace: "ns", Hostname: "other"}
	pod := func(services Memberships) *Workload {
		return (&Workload{
			UID: "u", Name: "n", Namespace: strings.Clone("ns"), ServiceAccount: strings.Clone("sa"), TrustDomain: "td", Node: strings.Clone("node"),
			Policies: []string{strings.Clone("ns/p")}, Services: services,
		}).sealed()
	}
	same := func(a, b Memberships) bool { return len(a) > 0 && len(b) > 0 && &a[0] == &b[0] }
	var s Sharer
	first := pod(Memberships{{web, PortMap{{Service: 80, Target: 8080}}}})
	s.Workload(first)
	for name, c := range map[string]struct {
		services Memberships
		shared   bool
	}{
		"equal":         {Memberships{{web, PortMap{{Service: 80, Target: 8080}}}}, true},
		"another port":  {Memberships{{web, PortMap{{Service: 80, Target: 8081}}}}, false},
		"one port more": {Memberships{{web, PortMap{{Service: 80, Target: 8080}, {Service: 81, Target: 1}}}}, false},
		"another":       {Memberships{{other, PortMap{{Service: 80, Target: 8080}}}}, false},
		"two":           {Memberships{{other, nil}, {web, PortMap{{Service: 80, Target: 8080}}}}, false},
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

// TestSharerForgets: what it remembers is bounded in bytes, however long the texts are that
// a control plane comes with.
func TestSharerForgets(t *testing.T) {
	var s Sharer
	remembered := func() int {
		n := 0
		for text := range s.texts {
			n += len(text)
		}
		for key := range s.identities {
			n += len(key.trustDomain) + len(key.namespace) + len(key.serviceAccount)
		}
		for key := range s.services {
			n += len(key)
		}
		for key := range s.members {
			n += len(key)
		}
		return n
	}
	long := func(n int) *workloadapi.Workload {
		w := ordinary()
		w.Namespace, w.ServiceAccount, w.Node, w.AuthorizationPolicies = strings.Repeat("n", n), strings.Repeat("s", n), strings.Repeat("o", n), []string{strings.Repeat("p", n)}
		w.Services = map[string]*workloadapi.PortList{strings.Repeat("s", n) + "/web": {}}
		return w
	}
	read := func(p *workloadapi.Workload) {
		t.Helper()
		packed := packedWorkload(t, p)
		w, ok := s.WorkloadFromWire(packed)
		if !ok {
			t.Fatal("not taken")
		}
		like(t, w, nil, packed)
		w, err := WorkloadFromProto(p)
		if err != nil {
			t.Fatal(err)
		}
		s.Workload(w)
	}
	read(ordinary())
	before := remembered()
	read(long(maxSharedText + 1))
	if n := remembered(); n != before || n != s.size {
		t.Errorf("it remembers %d bytes, before what is long %d, counted %d", n, before, s.size)
	}
	for i := range maxSharedBytes/maxSharedText + 100 {
		s.Workload(&Workload{Node: fmt.Sprintf("%0*d", maxSharedText, i)})
		if n := s.size; n > maxSharedBytes+maxSharedText {
			t.Fatalf("it remembers %d bytes", n)
		}
	}
	if n := remembered(); n > maxSharedBytes/2 || n != s.size {
		t.Errorf("it remembers %d bytes, counted %d", n, s.size)
	}
	many := ordinary()
	for len(many.AuthorizationPolicies) < maxPolicies {
		many.AuthorizationPolicies = append(many.AuthorizationPolicies, "ns/p")
	}
	read(many)
	if read(ordinary()); cap(s.policies)+len(s.lastPolicies) > maxSharedText {
		t.Error("it keeps the names of one workload's many policies")
	}
}
