package server

import (
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

func TestBudget(t *testing.T) {
	b := newBudget(100)
	if b.take(207) != nil {
		t.Fatal("what is larger than all of it has to go, too")
	}
	freed := b.take(3)
	if freed == nil || b.taken != 207 {
		t.Fatalf("taken though there is no room: %d", b.taken)
	}
	b.give(107)
	select {
	case <-freed:
		t.Error("said to have room, and has none")
	default:
	}
	b.give(1)
	select {
	case <-freed:
	default:
		t.Error("nobody was told of the room")
	}
	if b.take(1) != nil || b.taken != 100 {
		t.Errorf("%d bytes are taken, want 100", b.taken)
	}
}

// crowded is a server with room for one response, of a mesh that counts, and a way to ask
// for it: what comes, or how the stream ended.
func crowded(t *testing.T, cfg Config) (s *Server, ask func() (xdsStream, <-chan any)) {
	cfg.Debounce, cfg.MaxSending = time.Millisecond, 1
	s, open := start(t, cfg)
	s.SetSnapshot(build(t, nil, bigModel(small/referenceSize+1, 1)))
	return s, func() (xdsStream, <-chan any) {
		st := open("a")
		if err := st.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType}); err != nil {
			t.Fatal(err)
		}
		got := make(chan any, 1)
		go func() {
			if r, err := st.Recv(); err != nil {
				got <- err
			} else {
				got <- r
			}
		}()
		return st, got
	}
}

type xdsStream = discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient

// mesh is a response that was awaited.
func mesh(t *testing.T, got <-chan any) *discovery.DeltaDiscoveryResponse {
	t.Helper()
	r, ok := (<-got).(*discovery.DeltaDiscoveryResponse)
	if !ok || len(r.GetResources()) < small/referenceSize {
		t.Fatalf("got %.200v, want the mesh", r)
	}
	return r
}

// still fails if something came for who is to wait, long after it would have come.
func still(t *testing.T, got <-chan any, d time.Duration) {
	t.Helper()
	select {
	case r := <-got:
		t.Fatalf("got %.200v though there is no room", r)
	case <-time.After(d):
	}
}

// TestUnansweredIsCounted: a response counts until the client has answered it or is gone,
// though gRPC has taken it long since.
func TestUnansweredIsCounted(t *testing.T) {
	s, ask := crowded(t, Config{})
	one, got := ask()
	first := mesh(t, got)
	two, next := ask()
	still(t, next, 5*companion)
	if err := one.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResponseNonce: first.GetNonce()}); err != nil {
		t.Fatal(err)
	}
	mesh(t, next)
	_, last := ask()
	if err := two.CloseSend(); err != nil { // without an answer
		t.Fatal(err)
	}
	mesh(t, last)
	s.SetSnapshot(build(t, nil, bigModel(small/referenceSize+1, 2))) // what is small waits for nobody
	if r := receive(t, one); len(r.GetResources()) != 1 {
		t.Fatalf("got %.200v, want what has changed", r)
	}
}

// TestWaitForRoom: the time till there is room is not held against who waits.
func TestWaitForRoom(t *testing.T) {
	const timeout = 200 * time.Millisecond
	s, ask := crowded(t, Config{AckTimeout: timeout})
	s.sending.take(1)
	_, got := ask()
	still(t, got, 4*timeout)
	s.sending.give(1)
	mesh(t, got)
}
