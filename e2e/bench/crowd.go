package bench

import (
	"encoding/binary"
	"fmt"
	"strconv"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"istio.io/istio/pkg/workloadapi"
)

const (
	addressType   = "type.googleapis.com/istio.workload.Address"
	perService    = 10 // workloads
	changing      = 4096
	crowdNS       = "crowd"
	crowdNodes    = 1000
	crowdNetwork4 = 11 // 11.0.0.0/8: nobody's in a bed
)

// crowd is what a control plane says of very many workloads: what they are in one
// response, as a real one does, and then what changes. All of it is ready to be sent:
// nothing is made while something is measured.
type crowd struct {
	size  int
	first message
	// changes are sent in a circle. Each is one of changing workloads, and makes
	// it other than the one before of the same has made it.
	changes []message
}

// message is one on the wire, which the codec passes on as it is.
type message []byte

func newCrowd(size int) (*crowd, error) {
	var all []*discovery.Resource
	add := func(a *workloadapi.Address, name string, version int) error {
		r, err := resource(a, name, version)
		all = append(all, r)
		return err
	}
	for i := range size / perService {
		s := &workloadapi.Service{
			Name: serviceName(i), Namespace: crowdNS, Hostname: serviceHost(i), Canonical: true,
			Addresses: []*workloadapi.NetworkAddress{{Address: address4(12, i)}},
			Ports:     []*workloadapi.Port{{ServicePort: 80, TargetPort: 8080}, {ServicePort: 443, TargetPort: 8443}},
		}
		if err := add(&workloadapi.Address{Type: &workloadapi.Address_Service{Service: s}}, crowdNS+"/"+s.Hostname, 0); err != nil {
			return nil, err
		}
	}
	for i := range size {
		a, name := crowdWorkload(i, 0)
		if err := add(a, name, 0); err != nil {
			return nil, err
		}
	}
	c := &crowd{size: size}
	var err error
	if c.first, err = response(addressType, "first", all...); err != nil {
		return nil, err
	}
	return c, c.prepare()
}

// prepare makes the changes: the same workloads, apart from each other, in one version
// and then in another.
func (c *crowd) prepare() error {
	for _, version := range []int{1, 2} {
		for n := range min(c.size, changing) {
			a, name := crowdWorkload(n*7919%c.size, version)
			r, err := resource(a, name, version)
			if err != nil {
				return err
			}
			m, err := response(addressType, strconv.Itoa(len(c.changes)), r)
			if err != nil {
				return err
			}
			c.changes = append(c.changes, m)
		}
	}
	return nil
}

func response(kind, nonce string, all ...*discovery.Resource) (message, error) {
	return proto.Marshal(&discovery.DeltaDiscoveryResponse{TypeUrl: kind, Nonce: nonce, Resources: all, SystemVersionInfo: "bench"})
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
