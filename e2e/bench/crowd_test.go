package bench

import (
	"context"
	"net"
	"net/rpc"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"istio.io/istio/pkg/workloadapi"

	"github.com/warren-mesh/warren/ca/mtls"
)

// TestChangesChange asks that each change makes its workload other than it was, also
// when they come round again: a proxy may take no notice of one that does not.
func TestChangesChange(t *testing.T) {
	const size = 30
	c, err := newCrowd(size)
	if err != nil {
		t.Fatal(err)
	}
	now := make(map[string]*workloadapi.Workload)
	for i, r := range resources(t, c.first) {
		if w := r.GetWorkload(); w != nil {
			now[w.Uid] = w
		} else if i >= size/perService {
			t.Errorf("resource %d is no workload", i)
		}
	}
	if len(now) != size || len(c.changes) != 2*size {
		t.Fatalf("%d workloads and %d changes, want %d and %d", len(now), len(c.changes), size, 2*size)
	}
	for n := range 3 * len(c.changes) {
		all := resources(t, c.changes[n%len(c.changes)])
		if len(all) != 1 {
			t.Fatalf("change %d has %d resources", n, len(all))
		}
		w := all[0].GetWorkload()
		if before := now[w.GetUid()]; before == nil || proto.Equal(before, w) {
			t.Fatalf("change %d of %q: before it was %v", n, w.GetUid(), before)
		}
		now[w.Uid] = w
	}
}

func resources(t *testing.T, m message) (all []*workloadapi.Address) {
	t.Helper()
	var r discovery.DeltaDiscoveryResponse
	if err := proto.Unmarshal(m, &r); err != nil {
		t.Fatal(err)
	}
	if r.TypeUrl != addressType || r.Nonce == "" {
		t.Fatalf("type %q, nonce %q", r.TypeUrl, r.Nonce)
	}
	for _, x := range r.Resources {
		a := new(workloadapi.Address)
		if err := x.Resource.UnmarshalTo(a); err != nil {
			t.Fatal(err)
		}
		all = append(all, a)
	}
	return all
}

// TestRequestType reads the type behind a node, from a message in pieces.
func TestRequestType(t *testing.T) {
	b, err := proto.Marshal(&discovery.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "a node"}, TypeUrl: addressType, ResponseNonce: "7"})
	if err != nil {
		t.Fatal(err)
	}
	var r request
	for range 2 { // it is used again
		if err := newRawCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(b[:5]), mem.SliceBuffer(b[5:])}, &r); err != nil || string(r.kind) != addressType {
			t.Errorf("type %q, error %v", r.kind, err)
		}
	}
	if err := r.read(b[:len(b)-1]); err != nil || string(r.kind) != addressType {
		t.Errorf("the rest was read: %v", err)
	}
	if r.read(b[:5]) == nil {
		t.Error("half a request was taken")
	}
}

// TestChurn has a proxy and a control follow a control plane, and looks at who is told of
// changes.
func TestChurn(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr, root, socket := l.Addr().String(), filepath.Join(t.TempDir(), "root.pem"), filepath.Join(t.TempDir(), "orders")
	l.Close()
	ended := make(chan error, 2)
	go func() { ended <- Play(ctx, addr, root, socket, 10) }()
	orders, err := rpc.Dial("unix", socket)
	for ; err != nil; orders, err = rpc.Dial("unix", socket) {
		select {
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	defer orders.Close()
	go func() { ended <- Follow(ctx, addr, root) }()
	if told := churned(t, orders, controlType); told.Changes == 0 {
		t.Error("the control was told nothing")
	}
	var answers atomic.Int64
	came := follow(ctx, t, addr, root, &answers)
	if r := <-came; len(r.GetResources()) != 11 {
		t.Errorf("%d resources at first, want 10 workloads and their service", len(r.GetResources()))
	}
	if told := churned(t, orders, addressType); told.Changes == 0 || answers.Load() < int64(1+told.Changes) {
		t.Errorf("told of %d changes after the first, and %d answers in all", told.Changes, answers.Load())
	}
	if r := <-came; len(r.GetResources()) != 1 || r.GetTypeUrl() != addressType {
		t.Errorf("%d resources of %q in a change", len(r.GetResources()), r.GetTypeUrl())
	}
	cancel()
	for range 2 {
		<-ended
	}
}

// churned has one of a kind be told of changes until it has been told of some.
func churned(t *testing.T, orders *rpc.Client, kind string) (told Told) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); told.Changes == 0 && time.Now().Before(end); {
		if err := orders.Call("Orders.Begin", Churn{kind, 1}, new(int)); err != nil {
			t.Fatal(err)
		}
		if err := orders.Call("Orders.End", 0, &told); err != nil {
			t.Fatal(err)
		}
	}
	return told
}

// follow takes what a proxy is sent, and answers it at its leisure, until ctx ends.
func follow(ctx context.Context, t *testing.T, addr, root string, answers *atomic.Int64) <-chan *discovery.DeltaDiscoveryResponse {
	t.Helper()
	config := mtls.ToServer(func() ([]byte, error) { return os.ReadFile(root) }, "127.0.0.1", "")
	cc, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	st, err := discovery.NewAggregatedDiscoveryServiceClient(cc).DeltaAggregatedResources(ctx)
	if err == nil {
		err = st.Send(&discovery.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "a node"}, TypeUrl: addressType})
	}
	if err != nil {
		t.Fatal(err)
	}
	came := make(chan *discovery.DeltaDiscoveryResponse, 1<<16)
	go func() {
		defer close(came)
		for {
			r, err := st.Recv()
			if err != nil {
				return
			}
			came <- r
			time.Sleep(10 * time.Millisecond)
			answers.Add(1)
			if st.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}) != nil {
				return
			}
		}
	}()
	return came
}
