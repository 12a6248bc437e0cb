package client

import (
	"encoding/binary"
	"fmt"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"istio.io/istio/pkg/workloadapi"

	"github.com/warren-mesh/warren/xds/workload"
)

// crowd is a mesh of n pods in deployments of ten, each with its service, as a control
// plane says it.
func crowd(n int) *discovery.DeltaDiscoveryResponse {
	r := response(AddressType, "1")
	for i := range n / 10 {
		host := fmt.Sprintf("service-%d.crowd.svc.cluster.local", i)
		r.Resources = append(r.Resources, &discovery.Resource{Name: "crowd/" + host, Version: fmt.Sprintf("%016x", i), Resource: pack(AddressType, &workloadapi.Address{
			Type: &workloadapi.Address_Service{Service: &workloadapi.Service{
				Name: fmt.Sprintf("service-%d", i), Namespace: "crowd", Hostname: host, Canonical: true,
				Addresses: []*workloadapi.NetworkAddress{{Address: binary.BigEndian.AppendUint32(nil, 12<<24|uint32(i))}},
				Ports:     []*workloadapi.Port{{ServicePort: 80, TargetPort: 8080}, {ServicePort: 443, TargetPort: 8443}},
			}},
		})})
	}
	for i := range n {
		r.Resources = append(r.Resources, crowdPod(i, 0))
	}
	return r
}

func crowdPod(i, version int) *discovery.Resource {
	app := fmt.Sprintf("deployment-%d", i/10)
	name := fmt.Sprintf("%s-6d5f8c7b9-%05d", app, i)
	uid := "Kubernetes//Pod/crowd/" + name
	return &discovery.Resource{Name: uid, Version: fmt.Sprintf("%016x", i+version), Resource: pack(AddressType, &workloadapi.Address{
		Type: &workloadapi.Address_Workload{Workload: &workloadapi.Workload{
			Uid: uid, Name: name, Namespace: "crowd", Addresses: [][]byte{binary.BigEndian.AppendUint32(nil, 11<<24|uint32(i))},
			TunnelProtocol: workloadapi.TunnelProtocol_HBONE, ServiceAccount: fmt.Sprintf("account-%d", i/10), Node: fmt.Sprintf("node-%d", i%1000),
			CanonicalName: app, CanonicalRevision: "v1", WorkloadType: workloadapi.WorkloadType_POD, WorkloadName: app, ClusterId: "Kubernetes",
			Status: workloadapi.WorkloadStatus(version % 2), Locality: &workloadapi.Locality{Region: "region", Zone: fmt.Sprintf("zone-%d", i%3)},
			Services: map[string]*workloadapi.PortList{fmt.Sprintf("crowd/service-%d.crowd.svc.cluster.local", i/10): {Ports: []*workloadapi.Port{
				{ServicePort: 80, TargetPort: 8080}, {ServicePort: 443, TargetPort: 8443},
			}}},
		}},
	})}
}

// arriving is a message as gRPC hands it to a codec.
func arriving(tb testing.TB, m proto.Message) mem.BufferSlice {
	b, err := proto.Marshal(m)
	if err != nil {
		tb.Fatal(err)
	}
	const frame = 16 << 10
	var all mem.BufferSlice
	for len(b) > frame {
		all, b = append(all, mem.SliceBuffer(b[:frame])), b[frame:]
	}
	return append(all, mem.SliceBuffer(b))
}

// BenchmarkSync is a whole mesh, from the bytes of the message to the store.
func BenchmarkSync(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			data := arriving(b, crowd(n))
			b.ReportAllocs()
			for b.Loop() {
				w := newWorld(addresses)
				w.store = workload.NewNodeStore("node-7")
				take(b, w, &workload.Sharer{}, data)
				if got, _, _ := w.store.View().Len(); got != n {
					b.Fatal(got)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/workload")
		})
	}
}

// BenchmarkChange is one pod of many that changes, from bytes to the store.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{100, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := newWorld(addresses)
			w.store = workload.NewNodeStore("node-7")
			share := &workload.Sharer{}
			take(b, w, share, arriving(b, crowd(n)))
			var next [16]mem.BufferSlice
			for v := range next {
				next[v] = arriving(b, response(AddressType, "2", crowdPod(v*7919%n, v+1)))
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				take(b, w, share, next[i%len(next)])
			}
		})
	}
}

func take(b *testing.B, w *world, share *workload.Sharer, data mem.BufferSlice) {
	r := &delivery{}
	if err := newCodec(share, func() *breath { return nil }).Unmarshal(data, r); err != nil {
		b.Fatal(err)
	}
	if text := w.take(r); text != "" {
		b.Fatal(text)
	}
}
