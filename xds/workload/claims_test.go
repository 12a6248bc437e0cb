package workload

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// arrivals are the workloads of a mesh as they came. What a view finds is found by going
// through all of them.
type arrivals []*Workload

func (l arrivals) after(b Batch) arrivals {
	l = slices.Clone(l)
	remove := func(uid string) {
		l = slices.DeleteFunc(l, func(w *Workload) bool { return w.UID == uid })
	}
	for _, uid := range b.RemovedAddresses {
		remove(uid)
	}
	for _, w := range b.Workloads {
		remove(w.UID)
		l = append(l, w)
	}
	return l
}

// latest is the last one of the highest rank.
func (l arrivals) latest(claims func(*Workload) bool) *Workload {
	var best *Workload
	for _, w := range l {
		if claims(w) && (best == nil || rank(w) >= rank(best)) {
			best = w
		}
	}
	return best
}

// local is who is meant on a node, "" for any.
func (l arrivals) local(name, node, cluster string) *Workload {
	var best *Workload
	for _, w := range l {
		if w.Name == name && (node == "" || w.Node == node) && (best == nil || w.before(best, cluster)) {
			best = w
		}
	}
	return best
}

// claimant is a workload that claims some of a few keys, one of them mostly.
func claimant(r *rand.Rand, i int) *Workload {
	pick := func(list ...string) string { return list[min(r.IntN(len(list)*2), len(list)-1)] }
	kind := pick("VM", "Pod")
	w := wl(fmt.Sprintf("c//%s/app/%06d", kind, i), addrs(pick("10.0.0.3", "10.0.0.2", "10.0.0.1"), "10.0.0.1"))
	w.Name, w.Hostname = pick("b", "a"), pick("", "Two.example", "one.example")
	w.Node, w.ClusterID = pick("", "n3", "n2", "n1"), pick("", "west", "east")
	w.Status, w.Protocol = Status(r.IntN(2)), []TunnelProtocol{0, HBONE}[r.IntN(2)]
	if r.IntN(10) == 0 {
		w.NetworkMode = HostNetwork
	}
	return w.sealed()
}

// names are what a mesh of claimants is asked for.
func (l arrivals) differences(v *View) []string {
	var out []string
	compare := func(what string, want, got *Workload) {
		if got != want {
			out = append(out, fmt.Sprintf("%s: %v, want %v", what, got, want))
		}
	}
	for _, a := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"} {
		want := l.latest(func(w *Workload) bool { return w.NetworkMode != HostNetwork && w.ownsAddr(at(a)) })
		compare(a, want, v.WorkloadByAddr(at(a)))
	}
	for _, h := range []string{"one.example", "two.example", "three.example"} {
		key := NamespacedHostname{"app", h}
		compare(h, l.latest(func(w *Workload) bool { return w.Hostname != "" && w.hostKey() == key }), v.WorkloadByHostname(key))
	}
	for _, name := range []string{"a", "b", "c"} {
		for _, cluster := range []string{"", "east", "west", "north"} {
			compare(name+" of "+cluster, l.local(name, v.node, cluster), v.Local(name, "app", "sa", cluster))
		}
	}
	return out
}

// TestClaims: who is meant is who one finds that goes through all, as a mesh grows until
// its keys are crowded, changes, and empties.
func TestClaims(t *testing.T) {
	for seed, node := range []string{"", "n1"} {
		r := rand.New(rand.NewPCG(uint64(seed), 1))
		s := NewNodeStore(node)
		var want arrivals
		crowds := 0
		for step, most := range []int{50, 500, 2500, 2500, 2500, 1, 1, 1, 2500, 0, 0, 0, 2500, 1, 2500, 0, 0, 0, 0, 0, 1, 500} {
			var b Batch
			for range r.IntN(most + 1) {
				b.Workloads = append(b.Workloads, claimant(r, r.IntN(5000)))
			}
			if len(want) > 0 && most != 500 {
				w := want[r.IntN(len(want))] // by itself
				b.Workloads = append(b.Workloads, w, w)
			}
			for _, w := range want {
				if most == 0 && r.IntN(2) == 0 || r.IntN(500) == 0 {
					b.RemovedAddresses = append(b.RemovedAddresses, w.UID)
				}
			}
			if most == 1 { // who is meant goes, as nobody comes in its place
				b = Batch{RemovedAddresses: []string{s.View().WorkloadByAddr(at("10.0.0.1")).UID, s.View().Local("a", "app", "sa", "east").UID}}
			}
			s.Apply(b)
			want = want.after(b)
			v := s.View()
			if diff := want.differences(v); diff != nil {
				t.Fatalf("seed %d, step %d, %d workloads: %q", seed, step, len(want), diff)
			}
			if diff := cmp.Diff(contents(viewFrom(node, Batch{Workloads: want})), contents(v)); diff != "" {
				t.Fatalf("seed %d, step %d (-at once +step by step):\n%s", seed, step, diff)
			}
			crowds += v.byAddr.crowds.size + v.byName.crowds.size + v.local.crowds.size
		}
		if crowds == 0 {
			t.Error("no crowd: nothing was shown")
		}
	}
}

// TestClaimsSteps: a decision takes as few steps in a crowd as elsewhere, for what the
// crowd claims and for what has its place beside it.
func TestClaimsSteps(t *testing.T) {
	const n = 20_000
	crowd := crowdAt(n)
	crowd.Services, crowd.Policies = nil, nil
	for name, batches := range map[string][]Batch{
		"at once":  {{Workloads: crowd.Workloads}},
		"in parts": {{Workloads: crowd.Workloads[:crowded]}, {Workloads: crowd.Workloads[crowded : 3*crowded]}, {Workloads: crowd.Workloads[3*crowded:]}},
		"again":    {{Workloads: crowd.Workloads}, {Workloads: crowd.Workloads}},
	} {
		s := NewStore()
		for _, b := range batches {
			s.Apply(b)
		}
		v := s.View()
		for what, most := range map[string]int{"address": longest(&v.byAddr), "hostname": longest(&v.byName), "name": longest(&v.local)} {
			if most >= 3*crowded {
				t.Errorf("%s: by %s a look-up goes through %d, want less than %d", name, what, most, 3*crowded)
			}
		}
		for what, f := range map[string]func() *Workload{
			"address":  func() *Workload { return v.WorkloadByAddr(at("10.0.0.1")) },
			"hostname": func() *Workload { return v.WorkloadByHostname(NamespacedHostname{"app", "same.example"}) },
			"name":     func() *Workload { return v.Local("same", "app", "sa", "c") },
		} {
			if f() == nil {
				t.Errorf("%s: none by %s", name, what)
			}
			if allocs := testing.AllocsPerRun(10, func() { f() }); allocs > 0 {
				t.Errorf("%s: by %s: %v allocations", name, what, allocs)
			}
		}
	}
}

// longest is how many workloads a look-up may have to go through.
func longest[K, C comparable](x *claims[K, C]) (most int) {
	for b := range x.few.trie.all() {
		most = max(most, len(b.items))
	}
	return most
}
