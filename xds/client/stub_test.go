package client

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"

	"github.com/warren-mesh/warren/xds/workload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 10 * time.Second

// stub is a control plane that does what a test says. Each stream is handed to
// the test, which reads requests and sends responses.
type stub struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	t       testing.TB
	Address string
	streams chan *stubStream
	server  *grpc.Server
}

type stubStream struct {
	discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	t       testing.TB
	headers metadata.MD
	in      chan *discovery.DeltaDiscoveryRequest
	end     chan error // ends the stream
}

func newStub(t testing.TB, opts ...grpc.ServerOption) *stub {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveStub(t, l, "http://"+l.Addr().String(), opts...)
}

func serveStub(t testing.TB, l net.Listener, address string, opts ...grpc.ServerOption) *stub {
	s := &stub{t: t, Address: address, streams: make(chan *stubStream), server: grpc.NewServer(opts...)}
	discovery.RegisterAggregatedDiscoveryServiceServer(s.server, s)
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.server.Serve(l) })
	t.Cleanup(func() {
		s.server.Stop()
		serving.Wait()
	})
	return s
}

func (s *stub) DeltaAggregatedResources(st discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	md, _ := metadata.FromIncomingContext(st.Context())
	x := &stubStream{AggregatedDiscoveryService_DeltaAggregatedResourcesServer: st, t: s.t, headers: md,
		in: make(chan *discovery.DeltaDiscoveryRequest), end: make(chan error, 1)}
	select {
	case s.streams <- x:
	case <-st.Context().Done():
		return st.Context().Err()
	}
	go func() { // ends with the stream
		for {
			r, err := st.Recv()
			if err != nil {
				return
			}
			select {
			case x.in <- r:
			case <-st.Context().Done():
				return
			}
		}
	}()
	select {
	case err := <-x.end:
		return err
	case <-st.Context().Done():
		return st.Context().Err()
	}
}

// accept waits for the client's next stream.
func (s *stub) accept() *stubStream {
	s.t.Helper()
	select {
	case x := <-s.streams:
		return x
	case <-time.After(patience):
		s.t.Fatal("the client did not connect")
		return nil
	}
}

// subscribed waits for the next stream and its two first requests.
func (s *stub) subscribed() (x *stubStream, address, policy *discovery.DeltaDiscoveryRequest) {
	s.t.Helper()
	x = s.accept()
	return x, x.request(), x.request()
}

func (x *stubStream) request() *discovery.DeltaDiscoveryRequest {
	x.t.Helper()
	return x.requestWithin(patience)
}

// requestWithin is request for what takes a client long.
func (x *stubStream) requestWithin(d time.Duration) *discovery.DeltaDiscoveryRequest {
	x.t.Helper()
	select {
	case r := <-x.in:
		return r
	case <-time.After(d):
		x.t.Fatal("the client sent nothing")
		return nil
	}
}

// push sends a response and returns the answer.
func (x *stubStream) push(r *discovery.DeltaDiscoveryResponse) *discovery.DeltaDiscoveryRequest {
	x.t.Helper()
	if err := x.Send(r); err != nil {
		x.t.Fatal(err)
	}
	a := x.request()
	if a.GetResponseNonce() != r.GetNonce() || a.GetTypeUrl() != r.GetTypeUrl() || a.GetNode() != nil {
		x.t.Fatalf("the answer to %q of %s is %v", r.GetNonce(), r.GetTypeUrl(), a)
	}
	return a
}

// observer records what is counted.
type observer struct {
	ended chan Reason // the first ones
	mu    sync.Mutex
	bytes map[string]int
}

func newObserver() *observer {
	return &observer{ended: make(chan Reason, 100), bytes: map[string]int{}}
}

func (o *observer) Received(typeURL string, n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.bytes[typeURL] += n
}

func (o *observer) Applied(string, int, int) {}

func (o *observer) Ended(r Reason) {
	select {
	case o.ended <- r:
	default:
	}
}

// reasons waits for the next n.
func (o *observer) reasons(t testing.TB, n int) []Reason {
	t.Helper()
	var list []Reason
	for range n {
		select {
		case r := <-o.ended:
			list = append(list, r)
		case <-time.After(patience):
			t.Fatalf("only %v ended", list)
		}
	}
	return list
}

func newClient(t testing.TB, cfg Config) (*Client, *workload.Store) {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	store := workload.NewStore()
	c, err := New(cfg, store)
	if err != nil {
		t.Fatal(err)
	}
	return c, store
}

// run runs the client until the test ends, or the result is called.
func run(t testing.TB, c *Client) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	return stop
}

func isSynced(c *Client) bool {
	select {
	case <-c.Synced():
		return true
	default:
		return false
	}
}

func pack(typeURL string, m proto.Message) *anypb.Any {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return &anypb.Any{TypeUrl: typeURL, Value: b}
}

func pod(uid, version string, policies ...string) *discovery.Resource {
	return podAt([]byte{10, 0, 0, 1}, uid, version, policies...)
}

func podAt(addr []byte, uid, version string, policies ...string) *discovery.Resource {
	return &discovery.Resource{Name: uid, Version: version, Resource: pack(AddressType, &workloadapi.Address{
		Type: &workloadapi.Address_Workload{Workload: &workloadapi.Workload{
			Uid: uid, Name: uid, Namespace: "ns", Addresses: [][]byte{addr}, CanonicalRevision: version,
			AuthorizationPolicies: policies,
		}},
	})}
}

// badPod has an address of three bytes.
func badPod(uid, version string) *discovery.Resource {
	return &discovery.Resource{Name: uid, Version: version, Resource: pack(AddressType, &workloadapi.Address{
		Type: &workloadapi.Address_Workload{Workload: &workloadapi.Workload{Uid: uid, Addresses: [][]byte{{1, 2, 3}}}},
	})}
}

func service(name, version string) *discovery.Resource {
	h, err := workload.ParseNamespacedHostname(name)
	if err != nil {
		panic(err)
	}
	return &discovery.Resource{Name: name, Version: version, Resource: pack(AddressType, &workloadapi.Address{
		Type: &workloadapi.Address_Service{Service: &workloadapi.Service{
			Name: "s", Namespace: h.Namespace, Hostname: name[len(h.Namespace)+1:],
		}},
	})}
}

func policy(name, version string) *discovery.Resource {
	return &discovery.Resource{Name: "ns/" + name, Version: version, Resource: pack(AuthorizationType, &security.Authorization{
		Name: name, Namespace: "ns", Scope: security.Scope_WORKLOAD_SELECTOR,
	})}
}

func badPolicy(name string) *discovery.Resource {
	return &discovery.Resource{Name: "ns/" + name, Version: "1", Resource: pack(AuthorizationType, &security.Authorization{
		Name: name, Namespace: "ns", Action: 77,
	})}
}

func response(typeURL, nonce string, resources ...*discovery.Resource) *discovery.DeltaDiscoveryResponse {
	return &discovery.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: nonce, Resources: resources}
}

func removal(typeURL, nonce string, names ...string) *discovery.DeltaDiscoveryResponse {
	return &discovery.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: nonce, RemovedResources: names}
}
