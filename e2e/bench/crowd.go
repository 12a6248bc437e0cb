package bench

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"istio.io/istio/pkg/workloadapi"
)

const (
	addressType   = "type.googleapis.com/istio.workload.Address"
	perService    = 10 // workloads
	crowdNS       = "crowd"
	crowdNodes    = 1000
	pushesInLine  = 1024 // that a proxy may lag behind
	crowdNetwork4 = 11   // 11.0.0.0/8: nobody's in a bed
)

// crowd is a control plane with very many workloads, which says what they are in one
// response, as a real one does, and then only what changes. It is made once and makes
// nothing itself while something is measured.
type crowd struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	size  int
	first []*discovery.Resource

	mu      sync.Mutex
	streams map[chan *discovery.Resource]struct{}
	ended   chan struct{} // closed when the bed ends
}

func newCrowd(size int) (*crowd, error) {
	c := &crowd{size: size, streams: make(map[chan *discovery.Resource]struct{}), ended: make(chan struct{})}
	for i := range size / perService {
		s := &workloadapi.Service{
			Name: serviceName(i), Namespace: crowdNS, Hostname: serviceHost(i), Canonical: true,
			Addresses: []*workloadapi.NetworkAddress{{Address: address4(12, i)}},
			Ports:     []*workloadapi.Port{{ServicePort: 80, TargetPort: 8080}, {ServicePort: 443, TargetPort: 8443}},
		}
		if err := c.add(&workloadapi.Address{Type: &workloadapi.Address_Service{Service: s}}, crowdNS+"/"+s.Hostname); err != nil {
			return nil, err
		}
	}
	for i := range size {
		if err := c.add(crowdWorkload(i, 0)); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *crowd) add(a *workloadapi.Address, name string) error {
	r, err := resource(a, name, 0)
	c.first = append(c.first, r)
	return err
}

func resource(a *workloadapi.Address, name string, version int) (*discovery.Resource, error) {
	value, err := proto.Marshal(a)
	if err != nil {
		return nil, err
	}
	return &discovery.Resource{Name: name, Version: strconv.Itoa(version), Resource: &anypb.Any{TypeUrl: addressType, Value: value}}, nil
}

func serviceName(i int) string { return fmt.Sprintf("service-%d", i) }
func serviceHost(i int) string { return serviceName(i) + ".crowd.svc.cluster.local" }

func address4(first byte, i int) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(i))
	b[0] = first
	return b
}

// crowdWorkload is the i-th workload in one of its versions, with its name.
func crowdWorkload(i, version int) (*workloadapi.Address, string) {
	uid := fmt.Sprintf("Kubernetes//Pod/%s/deployment-%d-6d5f8c7b9-%05d", crowdNS, i/perService, i)
	w := &workloadapi.Workload{
		Uid: uid, Name: uid[len("Kubernetes//Pod/crowd/"):], Namespace: crowdNS, Addresses: [][]byte{address4(crowdNetwork4, i)},
		TunnelProtocol: workloadapi.TunnelProtocol_HBONE, ServiceAccount: fmt.Sprintf("account-%d", i/perService), Node: fmt.Sprintf("crowd-%d", i%crowdNodes),
		CanonicalName: serviceName(i / perService), CanonicalRevision: fmt.Sprintf("v%d", version), WorkloadType: workloadapi.WorkloadType_POD,
		WorkloadName: fmt.Sprintf("deployment-%d", i/perService), ClusterId: "Kubernetes", Status: workloadapi.WorkloadStatus(version % 2),
		Locality: &workloadapi.Locality{Region: "region", Zone: fmt.Sprintf("zone-%d", i%3)},
		Services: map[string]*workloadapi.PortList{crowdNS + "/" + serviceHost(i/perService): {Ports: []*workloadapi.Port{
			{ServicePort: 80, TargetPort: 8080}, {ServicePort: 443, TargetPort: 8443},
		}}},
	}
	return &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w}}, uid
}

func (c *crowd) register(g *grpc.Server) { discovery.RegisterAggregatedDiscoveryServiceServer(g, c) }

// DeltaAggregatedResources serves one proxy.
func (c *crowd) DeltaAggregatedResources(st discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	changes := make(chan *discovery.Resource, pushesInLine)
	types := make(chan string)
	failed := make(chan error, 1)
	go func() { // ends with the stream
		seen := map[string]bool{}
		for {
			r, err := st.Recv()
			if err != nil {
				failed <- err
				return
			}
			if seen[r.GetTypeUrl()] {
				continue // an answer
			}
			seen[r.GetTypeUrl()] = true
			select {
			case types <- r.GetTypeUrl():
			case <-st.Context().Done():
				return
			}
		}
	}()
	defer c.leave(changes)
	for n := 0; ; n++ {
		r := &discovery.DeltaDiscoveryResponse{Nonce: strconv.Itoa(n), SystemVersionInfo: "bench"}
		select {
		case r.TypeUrl = <-types:
			if r.TypeUrl == addressType {
				r.Resources = c.first
				c.enter(changes)
			}
		case change := <-changes:
			r.TypeUrl, r.Resources = addressType, []*discovery.Resource{change}
		case err := <-failed:
			return err
		case <-c.ended:
			return nil
		}
		if err := st.Send(r); err != nil {
			return err
		}
	}
}

func (c *crowd) enter(ch chan *discovery.Resource) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.streams[ch] = struct{}{}
}

func (c *crowd) leave(ch chan *discovery.Resource) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.streams, ch)
}

// change tells every proxy of a workload in its next version.
func (c *crowd) change(n int) error {
	a, name := crowdWorkload(n*7919%c.size, n+1)
	r, err := resource(a, name, n+1)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for ch := range c.streams {
		select {
		case ch <- r:
		default:
			return fmt.Errorf("a proxy is %d changes behind", pushesInLine)
		}
	}
	return nil
}
