package workload

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestHere: whatever comes, moves and goes, a node has its own.
func TestHere(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	store, nodes := NewNodeStore("a"), []string{"", "a", "b"}
	want := map[string]*Workload{}
	for range 300 {
		var b Batch
		for range random.IntN(4) {
			uid := fmt.Sprint("w", random.IntN(12))
			if _, there := want[uid]; there && random.IntN(2) == 0 {
				b.RemovedAddresses = append(b.RemovedAddresses, uid)
				delete(want, uid)
			}
		}
		for i := range random.IntN(4) {
			w := &Workload{UID: fmt.Sprint("w", random.IntN(4)*3+i%3), Node: nodes[random.IntN(len(nodes))]}
			if slices.ContainsFunc(b.Workloads, func(x *Workload) bool { return x.UID == w.UID }) {
				continue
			}
			b.Workloads = append(b.Workloads, w)
			want[w.UID] = w
		}
		before := store.View()
		had := slices.Clone(before.Here())
		store.Apply(b)
		if !slices.Equal(had, before.Here()) {
			t.Fatal("an older view has changed")
		}
		var should []*Workload
		for _, w := range want {
			if w.Node == "a" {
				should = append(should, w)
			}
		}
		slices.SortFunc(should, compareWorkloads)
		if is := uids(store.View().Here()); !slices.Equal(is, uids(should)) {
			t.Fatalf("here are %q, want %q", is, uids(should))
		}
	}
}

func uids(list []*Workload) (out []string) {
	for _, w := range list {
		out = append(out, w.UID)
	}
	return out
}
