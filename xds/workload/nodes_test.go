package workload

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// TestLocalTo: whatever comes, moves and goes, each node has its own.
func TestLocalTo(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	store, nodes := NewStore(), []string{"", "a", "b", "c"}
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
		had := slices.Collect(before.LocalTo("a"))
		store.Apply(b)
		if !slices.Equal(had, slices.Collect(before.LocalTo("a"))) {
			t.Fatal("an older view has changed")
		}
		for _, node := range nodes {
			var is, should []string
			for w := range store.View().LocalTo(node) {
				is = append(is, w.UID)
			}
			for uid, w := range want {
				if w.Node == node {
					should = append(should, uid)
				}
			}
			slices.Sort(should)
			if node == "" {
				slices.Sort(is)
			}
			if !slices.Equal(is, should) {
				t.Fatalf("node %q has %s, want %s", node, strings.Join(is, " "), strings.Join(should, " "))
			}
		}
	}
}
