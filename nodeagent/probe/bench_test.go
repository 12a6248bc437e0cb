package probe_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/nodeagent/probe"
)

// What Run costs at each interval, and a pod that comes and goes, on a node with
// 250 pods.
func BenchmarkProbe(b *testing.B) {
	for _, backend := range backends() {
		node := nstest.New(b).Node("a")
		p, err := probe.New(probe.Config{Backend: backend, Limit: probe.WholeHost, NS: node.NS})
		if err != nil {
			b.Fatal(err)
		}
		defer p.Close()
		pods := map[string][]netip.Addr{}
		for i := range 250 {
			pods[fmt.Sprintf("0a1b2c3d-0000-4000-8000-%012d", i)] = []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), netip.AddrFrom16([16]byte{0xfd, 15: byte(i)})}
		}
		if err := p.Sync(b.Context(), pods); err != nil {
			b.Fatal(err)
		}
		b.Run("Check/"+backend, func(b *testing.B) {
			for b.Loop() {
				if err := p.Check(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("AddDel/"+backend, func(b *testing.B) {
			for b.Loop() {
				if err := p.Add(b.Context(), "new", []netip.Addr{netip.AddrFrom4([4]byte{10, 2, 0, 1})}); err != nil {
					b.Fatal(err)
				}
				if err := p.Del(b.Context(), "new"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
