package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"istio.io/istio/pkg/workloadapi"

	"github.com/warren-mesh/warren/xds/workload"
)

func marshal(r *discovery.DeltaDiscoveryRequest) ([]byte, error) { return proto.Marshal(r) }

func unmarshal(b []byte) (*discovery.DeltaDiscoveryRequest, error) {
	r := &discovery.DeltaDiscoveryRequest{}
	return r, proto.Unmarshal(b, r)
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type opener = func(caller string) discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient

// start serves over loopback and returns a way to open streams as a caller.
func start(t *testing.T, cfg Config) (*Server, opener) {
	t.Helper()
	s, addr := serve(t, cfg)
	_, open := dial(t, addr)
	return s, open
}

// serve serves over loopback.
func serve(t *testing.T, cfg Config, options ...grpc.ServerOption) (s *Server, addr string) {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	authenticate := cfg.Authenticate
	cfg.Authenticate = func(ctx context.Context) (string, error) {
		if authenticate != nil {
			return authenticate(ctx)
		}
		md, _ := metadata.FromIncomingContext(ctx)
		if who := md.Get("caller"); len(who) == 1 {
			return who[0], nil
		}
		return "", errors.New("secret reason")
	}
	s = New(cfg)
	g := grpc.NewServer(append(ServerOptions(), options...)...)
	s.Register(g)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- g.Serve(Listener(l)) }()
	t.Cleanup(func() {
		g.Stop()
		s.Wait()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s, l.Addr().String()
}

// dial makes a connection, and a way to open streams on it. How much a client takes that
// does not read does not grow.
func dial(t *testing.T, addr string) (*grpc.ClientConn, opener) {
	t.Helper()
	cc, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithStaticStreamWindowSize(64<<10))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return cc, func(caller string) discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		t.Cleanup(cancel)
		if caller != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "caller", caller)
		}
		st, err := discovery.NewAggregatedDiscoveryServiceClient(cc).DeltaAggregatedResources(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
}

func receive(t *testing.T, st discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient) *discovery.DeltaDiscoveryResponse {
	t.Helper()
	r, err := st.Recv()
	if err != nil {
		t.Fatalf("recv: %v", err)
	}
	return r
}

func TestStream(t *testing.T) {
	s, open := start(t, Config{Debounce: time.Millisecond})
	snap := world{map[string][]string{"w": {"ns/p"}}, map[string]workload.Action{"p": 1}}.snapshot(t, nil)
	s.SetSnapshot(snap)
	st := open("node-a")
	for _, typ := range []string{AddressType, AuthorizationType} {
		if err := st.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: typ}); err != nil {
			t.Fatal(err)
		}
	}
	policy, address := receive(t, st), receive(t, st)
	if policy.GetTypeUrl() != AuthorizationType || address.GetTypeUrl() != AddressType {
		t.Fatalf("answers of types %s and %s, want policies first", policy.GetTypeUrl(), address.GetTypeUrl())
	}
	a := &workloadapi.Address{}
	if err := address.GetResources()[0].GetResource().UnmarshalTo(a); err != nil || a.GetWorkload().GetUid() != "w" {
		t.Fatalf("resource is %v (%v), want the workload", a, err)
	}
	if v := address.GetResources()[0].GetVersion(); v == "" {
		t.Error("the resource has no version")
	}
	if err := st.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: AuthorizationType, ResponseNonce: policy.GetNonce()}); err != nil {
		t.Fatal(err)
	}
	nack := &discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResponseNonce: address.GetNonce(), ErrorDetail: &status.Status{Message: "w: no"}}
	if err := st.Send(nack); err != nil {
		t.Fatal(err)
	}
	s.SetSnapshot(world{map[string][]string{"w": {"ns/p"}}, nil}.snapshot(t, snap))
	if r := receive(t, st); r.GetTypeUrl() != AuthorizationType || len(r.GetRemovedResources()) != 1 {
		t.Fatalf("got %v, want only the policy's removal: what was not taken is not sent again", r)
	}
	// The acknowledgement alone brings the removal: what was not taken may come after it.
	eventually(t, "what was not taken is counted", func() bool { return s.Stats().Rejected[AddressType] == 1 })
	stats := s.Stats()
	if stats.Streams != 1 || stats.Sent[AuthorizationType] != 2 {
		t.Errorf("stats = %+v", stats)
	}
	if err := st.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); err == nil || grpcstatus.Code(err) != codes.Unknown && err.Error() != "EOF" {
		t.Errorf("end = %v, want EOF", err)
	}
}

func TestStreamRefused(t *testing.T) {
	s, open := start(t, Config{MaxStreamsPerCaller: 2, MaxStreams: 3})
	s.SetSnapshot(world{}.snapshot(t, nil))
	end := func(caller string) error {
		st := open(caller)
		if err := st.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: AuthorizationType}); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err) // at io.EOF it was refused already, and Recv says why
		}
		_, err := st.Recv()
		return err
	}
	if err := end(""); grpcstatus.Code(err) != codes.Unauthenticated || strings.Contains(err.Error(), "secret") {
		t.Errorf("without credentials: %v", err)
	}
	for _, c := range []struct {
		caller string
		code   codes.Code
	}{{"a", codes.OK}, {"a", codes.OK}, {"a", codes.ResourceExhausted}, {"b", codes.OK}, {"c", codes.ResourceExhausted}} {
		if err := end(c.caller); grpcstatus.Code(err) != c.code {
			t.Errorf("caller %s: %v, want %v", c.caller, err, c.code)
		}
	}
	if got := s.Stats().Refused; got != 3 {
		t.Errorf("refused = %d, want 3", got)
	}
}

func TestSlowClientIsCutOff(t *testing.T) {
	s, open := start(t, Config{Debounce: time.Millisecond, AckTimeout: 50 * time.Millisecond})
	s.SetSnapshot(world{}.snapshot(t, nil))
	st := open("a")
	if err := st.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: AuthorizationType}); err != nil {
		t.Fatal(err)
	}
	receive(t, st)
	if _, err := st.Recv(); grpcstatus.Code(err) != codes.DeadlineExceeded {
		t.Errorf("end = %v, want it cut off for not answering", err)
	}
	if got := s.Stats().CutOff; got != 1 {
		t.Errorf("cut off = %d, want 1", got)
	}
}

// A client that does not read at all stops gRPC's Send, not the server.
func TestClientThatDoesNotReadIsCutOff(t *testing.T) {
	s, open := start(t, Config{Debounce: time.Millisecond, AckTimeout: 100 * time.Millisecond})
	big := map[string][]string{}
	for _, r := range "abcdefgh" {
		big[string(r)] = []string{strings.Repeat("x", 1<<20)}
	}
	s.SetSnapshot(world{workloads: big}.snapshot(t, nil))
	st := open("a")
	for _, typ := range []string{AuthorizationType, AddressType} {
		if err := st.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: typ}); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for s.Stats().CutOff == 0 {
		if time.Now().After(deadline) {
			t.Fatal("not cut off")
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-t.Context().Done():
		}
	}
}

// Before there is a snapshot nobody is answered; then everybody is.
func TestBeforeFirstSnapshot(t *testing.T) {
	s, open := start(t, Config{})
	st := open("a")
	if err := st.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: AuthorizationType}); err != nil {
		t.Fatal(err)
	}
	s.SetSnapshot(world{}.snapshot(t, nil))
	if r := receive(t, st); len(r.GetResources()) != 0 || r.GetNonce() == "" {
		t.Errorf("answer = %v, want an empty one with a nonce", r)
	}
}

func TestShutdownEndsStreams(t *testing.T) {
	s, open := start(t, Config{})
	s.SetSnapshot(world{}.snapshot(t, nil))
	st := open("a")
	if err := st.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: AuthorizationType}); err != nil {
		t.Fatal(err)
	}
	receive(t, st)
	s.Shutdown()
	s.Shutdown()
	for _, st := range []discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient{st, open("a")} {
		if _, err := st.Recv(); grpcstatus.Code(err) != codes.Unavailable {
			t.Errorf("end = %v, want Unavailable", err)
		}
	}
}

// As many streams as there may be ask the API server for little, and not all at once.
func TestRecheckIsSeldom(t *testing.T) {
	c := Config{}.withDefaults()
	if a := float64(c.MaxStreams) / c.Recheck.Seconds(); a > 10 {
		t.Errorf("%.0f questions a second", a)
	}
	least, most := c.Recheck, c.Recheck
	for range 1000 {
		d := c.recheckEvery()
		least, most = min(least, d), max(most, d)
	}
	if least < c.Recheck*4/5 || most > c.Recheck*6/5 || most-least < c.Recheck/5 {
		t.Errorf("between %s and %s", least, most)
	}
}

// A stream ends when its caller's credentials do, and only then.
func TestRevokedCallerIsCutOff(t *testing.T) {
	var answer atomic.Pointer[func() (string, error)]
	set := func(who string, err error) {
		f := func() (string, error) { return who, err }
		answer.Store(&f)
	}
	var asked atomic.Int64
	s, open := start(t, Config{Debounce: time.Millisecond, Recheck: 5 * time.Millisecond, Authenticate: func(context.Context) (string, error) {
		asked.Add(1)
		return (*answer.Load())()
	}})
	s.SetSnapshot(world{}.snapshot(t, nil))
	again := func() {
		for n := asked.Load() + 2; asked.Load() < n; {
			select {
			case <-time.After(time.Millisecond):
			case <-t.Context().Done():
				return
			}
		}
	}
	for name, c := range map[string]struct {
		who string
		err error
	}{
		"refused":   {"", errors.New("secret reason")},
		"denied":    {"", grpcstatus.Error(codes.PermissionDenied, "no")},
		"exchanged": {"b", nil},
	} {
		set("a", nil)
		st := open("a")
		if err := st.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: AuthorizationType}); err != nil {
			t.Fatal(err)
		}
		receive(t, st)
		set("", grpcstatus.Error(codes.Unavailable, "nobody to ask"))
		again()
		if n := s.Stats().Streams; n != 1 {
			t.Fatalf("%s: %d streams while there is nobody to ask, want 1", name, n)
		}
		set(c.who, c.err)
		if _, err := st.Recv(); grpcstatus.Code(err) != codes.Unauthenticated && grpcstatus.Code(err) != codes.PermissionDenied || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: end = %v, want the stream refused", name, err)
		}
	}
}

// Callers without credentials cannot fill the log.
func TestRefusalsAreLoggedInPart(t *testing.T) {
	lines := &countingWriter{}
	s := New(Config{Log: slog.New(slog.NewTextHandler(lines, nil)), Authenticate: func(context.Context) (string, error) { return "", errors.New("no") }})
	for range 10 * refusalBurst {
		if _, _, err := s.admit(t.Context()); grpcstatus.Code(err) != codes.Unauthenticated {
			t.Fatalf("admit = %v", err)
		}
	}
	if n := lines.n.Load(); n == 0 || n > 2*refusalBurst {
		t.Errorf("%d lines, want at most about %d", n, refusalBurst)
	}
}

type countingWriter struct{ n atomic.Int64 }

func (w *countingWriter) Write(p []byte) (int, error) {
	w.n.Add(1)
	return len(p), nil
}
