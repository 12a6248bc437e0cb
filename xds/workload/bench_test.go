package workload

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
)

// mesh is n pods, fifty to a service and a hundred to a node.
func mesh(n int) Batch {
	var b Batch
	for i := range (n + 49) / 50 {
		b.Services = append(b.Services, svc(fmt.Sprintf("ns%d/svc%d", i%50, i), netip.AddrFrom4([4]byte{11, 96, byte(i >> 8), byte(i)}).String()))
	}
	for i := range n {
		b.Workloads = append(b.Workloads, meshPod(i, b.Services[i/50]))
	}
	return b
}

func meshPod(i int, s *Service) *Workload {
	w := wl(fmt.Sprintf("Kubernetes//Pod/%s/pod%d", s.Namespace, i))
	w.Name, w.Namespace, w.Protocol, w.Node = fmt.Sprintf("pod%d", i), s.Namespace, HBONE, fmt.Sprintf("node%d", i/100)
	w.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}
	w.Services = Memberships{{Service: s.Key()}}
	return w.sealed()
}

// BenchmarkApply: the whole mesh into an empty store, in one batch.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			batch := mesh(n)
			b.ReportAllocs()
			for b.Loop() {
				NewStore().Apply(batch)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/workload")
		})
	}
}

// BenchmarkEndpointChange: one pod of the mesh changes.
func BenchmarkEndpointChange(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			batch := mesh(n)
			s := NewStore()
			s.Apply(batch)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				w := meshPod(i%n, batch.Services[i%n/50])
				w.Status = Status(i & 1)
				s.Apply(Batch{Workloads: []*Workload{w}})
				i += 7
			}
		})
	}
}

// BenchmarkOneService: one of many endpoints of a single service changes.
func BenchmarkOneService(b *testing.B) {
	for _, n := range []int{1_000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			web := svc("app/web", "10.96.0.1")
			batch := Batch{Services: []*Service{web}}
			for i := range n {
				batch.Workloads = append(batch.Workloads, meshPod(i, web))
			}
			s := NewStore()
			s.Apply(batch)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				s.Apply(Batch{Workloads: []*Workload{meshPod(i%n, web)}})
				i++
			}
		})
	}
}

// BenchmarkLookup: what a connection asks a view.
func BenchmarkLookup(b *testing.B) {
	s := NewStore()
	s.Apply(mesh(100_000))
	cidrs := Batch{}
	for i := range 10_000 {
		cidrs.Services = append(cidrs.Services, svc(fmt.Sprintf("cidr/c%d", i), fmt.Sprintf("12.%d.%d.0/%d", i>>8, i&255, 24+i%4)))
	}
	s.Apply(cidrs)
	v := s.View()
	for name, f := range map[string]func() bool{
		"workload": func() bool { return v.WorkloadByAddr(at4(10, 0, 5, 5)) != nil },
		"vip":      func() bool { return v.ServiceByVIP(at4(11, 96, 0, 7), "x") != nil },
		"cidr":     func() bool { return v.ServiceByVIP(at4(12, 3, 3, 1), "x") != nil },
		"miss":     func() bool { return v.ServiceByVIP(at4(13, 3, 3, 1), "x") == nil },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !f() {
					b.Fatal("wrong answer")
				}
			}
		})
	}
}

func at4(a, b, c, d byte) NetworkAddr {
	return NetworkAddr{Addr: netip.AddrFrom4([4]byte{a, b, c, d})}
}

// BenchmarkMemory reports what a workload costs, its own fields included.
func BenchmarkMemory(b *testing.B) {
	const n = 100_000
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		s := NewStore()
		s.Apply(mesh(n))
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/workload")
		runtime.KeepAlive(s)
	}
}
