package workload

import (
	"fmt"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// crowdAt is n services, n workloads and n policies of each scope, all of which say the
// same of themselves: one address, one hostname, one range, one namespace.
func crowdAt(n int) Batch {
	var b Batch
	for i := range n {
		b.Services = append(b.Services, svc(fmt.Sprintf("ns%06d/one", i), "10.96.0.1", "10.97.0.0/16"))
		w := wl(fmt.Sprintf("c//Pod/app/%06d", i), addrs("10.0.0.1"))
		w.Name, w.Hostname = "same", "same.example"
		b.Workloads = append(b.Workloads, w.sealed())
		b.Policies = append(b.Policies, &Policy{Namespace: "app", Name: fmt.Sprintf("n%06d", i), Scope: ScopeNamespace},
			&Policy{Namespace: "root", Name: fmt.Sprintf("g%06d", i), Scope: ScopeGlobal})
	}
	return b
}

// TestCrowd: what many claim is found as what few do, after each of them was replaced by
// another, by itself, or not at all.
func TestCrowd(t *testing.T) {
	const n = 5 * crowded
	s := NewStore()
	first := crowdAt(n)
	s.Apply(first)
	again := crowdAt(n)
	for i := range again.Workloads {
		if i%3 == 0 {
			again.Workloads[i] = first.Workloads[i]
		}
	}
	again.RemovedAddresses = []string{again.Workloads[1].UID, again.Workloads[3].UID}
	s.Apply(again)
	s.Apply(Batch{RemovedAddresses: []string{again.Workloads[n-1].UID, again.Services[0].ResourceName()}, RemovedPolicies: []string{"app/n000000", "root/g000001"}})
	want := again
	want.Workloads, want.Services = again.Workloads[:n-1], again.Services[1:]
	want.Policies = slices.DeleteFunc(slices.Clone(again.Policies), func(p *Policy) bool { return p.Name == "n000000" || p.Name == "g000001" })
	if diff := cmp.Diff(contents(viewOf(want)), contents(s.View())); diff != "" {
		t.Fatalf("(-at once +step by step):\n%s", diff)
	}
	for uid, w := range map[string]*Workload{
		"by address": s.View().WorkloadByAddr(at("10.0.0.1")), "by hostname": s.View().WorkloadByHostname(NamespacedHostname{"app", "same.example"}),
	} {
		if w != again.Workloads[n-2] {
			t.Errorf("%s: %v, want the latest", uid, w)
		}
	}
	if w := s.View().Local("same", "app", "sa", ""); w != again.Workloads[0] {
		t.Errorf("by name: %v, want the first by UID", w)
	}
	for ns, want := range map[string]string{"ns000007": "ns000007/one", "other": "ns000001/one"} {
		if got := s.View().ServiceByVIP(at("10.96.0.1"), ns); got == nil || got.ResourceName() != want {
			t.Errorf("from %s: %v, want %s", ns, got, want)
		}
	}
}

// TestCrowdCosts: what many claim is listed in a time and in memory that grow with how
// many they are, not with the square of it. A control plane that says so must not hold
// up what else it says.
func TestCrowdCosts(t *testing.T) {
	const n = 20_000
	const each = 4 << 10 // bytes, of four objects listed in ten places; their square would be 160,000
	first, again := crowdAt(n), crowdAt(n)
	s := NewStore()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s.Apply(first)
	s.Apply(again)
	runtime.ReadMemStats(&after)
	if got := (after.TotalAlloc - before.TotalAlloc) / n / 2; got > each {
		t.Errorf("%d bytes for each, want at most %d", got, each)
	}
}

// BenchmarkCrowd: many that share one address, hostname and range come, and all change.
func BenchmarkCrowd(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			first, again := crowdAt(n), crowdAt(n)
			b.ReportAllocs()
			for b.Loop() {
				s := NewStore()
				s.Apply(first)
				s.Apply(again)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(2*n), "ns/object")
		})
	}
}
