package server

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/stats"
	grpcstatus "google.golang.org/grpc/status"
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

// crowd is a mesh of which a response counts, and is more than a client takes that does
// not read.
func crowd(t *testing.T, v int) *Snapshot { return build(t, nil, bigModel(small/referenceSize+1, v)) }

type xdsStream = discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient

func subscribe(t *testing.T, st xdsStream) xdsStream {
	t.Helper()
	if err := st.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType}); err != nil {
		t.Fatal(err)
	}
	return st
}

// coming is what comes on a stream, or how it ends.
func coming(st xdsStream) <-chan any {
	got := make(chan any, 1)
	go func() {
		if r, err := st.Recv(); err != nil {
			got <- err
		} else {
			got <- r
		}
	}()
	return got
}

// mesh is a response that was awaited.
func mesh(t *testing.T, got <-chan any) *discovery.DeltaDiscoveryResponse {
	t.Helper()
	first := <-got
	r, ok := first.(*discovery.DeltaDiscoveryResponse)
	if !ok || len(r.GetResources()) < small/referenceSize {
		t.Fatalf("got %.200v, want the mesh", first)
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

// eventually waits for what comes about by itself.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not in time: ", what)
		}
	}
}

func (b *budget) now() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.taken
}

// TestUnreadIsCounted: a response counts until the client has taken it, though gRPC has
// taken it long since. What is small waits for nobody.
func TestUnreadIsCounted(t *testing.T) {
	s, open := start(t, Config{Debounce: time.Millisecond, MaxSending: 1})
	s.SetSnapshot(crowd(t, 1))
	reads := open("a")
	r := mesh(t, coming(subscribe(t, reads)))
	if err := reads.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResponseNonce: r.GetNonce()}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what was read is not counted", func() bool { return s.sending.now() == 0 })
	lazy := subscribe(t, open("a"))
	eventually(t, "the second one is being sent", func() bool { return s.sending.now() > 0 })
	next := coming(subscribe(t, open("a")))
	still(t, next, 5*companion)
	s.SetSnapshot(crowd(t, 2))
	if r := receive(t, reads); len(r.GetResources()) != 1 {
		t.Fatalf("got %.200v, want what has changed", r)
	}
	mesh(t, coming(lazy))
	mesh(t, next)
}

// TestWaitForRoom: the time till there is room is not held against who waits.
func TestWaitForRoom(t *testing.T) {
	const timeout = 200 * time.Millisecond
	s, open := start(t, Config{Debounce: time.Millisecond, MaxSending: 1, AckTimeout: timeout})
	s.SetSnapshot(crowd(t, 1))
	s.sending.take(1)
	got := coming(subscribe(t, open("a")))
	still(t, got, 4*timeout)
	s.sending.give(1)
	mesh(t, got)
}

// payloads counts what gRPC has taken.
type payloads struct{ atomic.Int64 }

func (p *payloads) HandleRPC(_ context.Context, s stats.RPCStats) {
	if _, ok := s.(*stats.OutPayload); ok {
		p.Add(1)
	}
}

func (*payloads) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (*payloads) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (*payloads) HandleConn(context.Context, stats.ConnStats)                       {}

// TestWhoDoesNotReadIsHungUpOn: however a stream ends on which the client has not taken
// what it was sent, its place is kept till its connection is closed.
func TestWhoDoesNotReadIsHungUpOn(t *testing.T) {
	for name, c := range map[string]struct {
		timeout time.Duration
		end     func(xdsStream) error
	}{
		"cut off":      {200 * time.Millisecond, func(xdsStream) error { return nil }},
		"its own end":  {time.Second, xdsStream.CloseSend},
		"its own fail": {time.Second, func(st xdsStream) error { return st.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: "no/type"}) }},
	} {
		t.Run(name, func(t *testing.T) {
			var queued payloads
			s, addr := serve(t, Config{Debounce: time.Millisecond, AckTimeout: c.timeout, MaxStreamsPerCaller: 1}, grpc.StatsHandler(&queued))
			s.SetSnapshot(crowd(t, 1))
			cc, open := dial(t, addr)
			st := subscribe(t, open("a"))
			eventually(t, "gRPC has it", func() bool { return queued.Load() > 0 })
			if err := c.end(st); err != nil {
				t.Fatal(err)
			}
			_, other := dial(t, addr)
			if r, ok := (<-coming(other("a"))).(error); !ok || grpcstatus.Code(r) != codes.ResourceExhausted {
				t.Errorf("a second stream of the caller: %.200v", r)
			}
			eventually(t, "the connection is closed", func() bool { return cc.GetState() != connectivity.Ready })
			eventually(t, "nothing is counted any more", func() bool { return s.sending.now() == 0 && s.Stats().Streams == 0 })
		})
	}
}

// TestCallersHaveTheirAddress: who authenticates tells callers apart by their addresses.
func TestCallersHaveTheirAddress(t *testing.T) {
	seen := make(chan *peer.Peer, 1)
	s, open := start(t, Config{Authenticate: func(ctx context.Context) (string, error) {
		p, _ := peer.FromContext(ctx)
		seen <- p
		return "a", nil
	}})
	s.SetSnapshot(crowd(t, 1))
	mesh(t, coming(subscribe(t, open("a"))))
	p := <-seen
	if from, ok := p.Addr.(*net.TCPAddr); !ok || !from.IP.IsLoopback() || from.Port == 0 {
		t.Errorf("the caller is at %T %v", p.Addr, p.Addr)
	}
}

// TestLeases: what gRPC lets go of after the end of a stream keeps its connection.
func TestLeases(t *testing.T) {
	for name, c := range map[string]struct {
		before, after, hungUp bool
	}{
		"before the end": {before: true},
		"after the end":  {after: true},
		"never":          {hungUp: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := leases{budget: newBudget(100)}
				var hungUp, done atomic.Int32
				l.budget.take(7)
				l.add(0)()
				end := l.add(7)
				if c.before {
					end()
				}
				l.finish(time.Second, func() { hungUp.Add(1) }, func() { done.Add(1) })
				if early := done.Load() == 1; early != c.before {
					t.Errorf("done %d times at the end", done.Load())
				}
				if c.after {
					end()
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				end() // which comes late, or again
				if hung := hungUp.Load() == 1; hung != c.hungUp || done.Load() != 1 || l.budget.taken != 0 {
					t.Errorf("hung up %d times, done %d times, %d bytes are taken", hungUp.Load(), done.Load(), l.budget.taken)
				}
			})
		})
	}
}
