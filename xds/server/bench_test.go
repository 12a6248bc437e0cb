package server

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/warren-mesh/warren/xds/workload"
)

// bigModel has n workloads on four services; the first is at version v.
func bigModel(n, v int) Model {
	var m Model
	for i := range n {
		m.Workloads = append(m.Workloads, &workload.Workload{
			UID: fmt.Sprintf("Kubernetes//Pod/ns%d/pod-%d", i%100, i), Name: fmt.Sprint("pod-", i), Namespace: fmt.Sprint("ns", i%100),
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}, Protocol: workload.HBONE,
			ServiceAccount: "default", TrustDomain: "cluster.local", Node: fmt.Sprint("node", i%50), CanonicalRevision: "latest",
			Services: workload.Memberships{{
				Service: workload.NamespacedHostname{Namespace: "app", Hostname: fmt.Sprintf("svc%d.app.svc.cluster.local", i%4)},
				Ports:   workload.PortMap{{Service: 80, Target: 8080}},
			}},
		})
	}
	m.Workloads[0].CanonicalRevision = fmt.Sprint(v)
	return m
}

// BenchmarkChange is one changed workload among 10,000: a new snapshot, and the
// difference, which clients
// that are at the same place share.
func BenchmarkChange(b *testing.B) {
	for _, part := range []string{"snapshot", "diff"} {
		b.Run(part, func(b *testing.B) {
			one, err := NewSnapshot(nil, bigModel(10_000, 1))
			if err != nil {
				b.Fatal(err)
			}
			changed := bigModel(10_000, 2)
			two, err := NewSnapshot(one, changed)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if part == "snapshot" {
					if _, err := NewSnapshot(one, changed); err != nil {
						b.Fatal(err)
					}
				} else if s := diff(one.types[addresses], two.types[addresses]); len(s.send) != 1 || len(s.gone) != 0 {
					b.Fatalf("%d to send, %d gone", len(s.send), len(s.gone))
				}
			}
		})
	}
}
