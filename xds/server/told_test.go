package server

import (
	"fmt"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
)

// has subscribes as one who comes again with n resources.
func has(t *testing.T, st xdsStream, n int) xdsStream {
	t.Helper()
	versions := make(map[string]string, n)
	for i := range n {
		versions[fmt.Sprintf("was-there/%06d", i)] = "1"
	}
	if err := st.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, InitialResourceVersions: versions}); err != nil {
		t.Fatal(err)
	}
	return st
}

func (b *toldBudget) now() (total int64, callers int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.total, len(b.callers)
}

// TestToldIsBounded: what clients say they have before there is a snapshot is bounded, no
// caller keeps others out with it, and everything is given back with the first answer.
func TestToldIsBounded(t *testing.T) {
	const n = 1000
	size := int64(n * (len("was-there/000000") + 1 + toldEntry))
	s, open := start(t, Config{Debounce: time.Millisecond, MaxTold: toldShares * size})
	refused := func(what string, st xdsStream) {
		t.Helper()
		if r, ok := (<-coming(st)).(error); !ok || grpcstatus.Code(r) != codes.ResourceExhausted {
			t.Fatalf("%s: got %.200v, want it refused", what, r)
		}
	}
	var waiting []xdsStream
	for i := range toldShares {
		caller := fmt.Sprint("node-", i)
		waiting = append(waiting, has(t, open(caller), n))
		eventually(t, "its versions are counted", func() bool { total, _ := s.told.now(); return total == int64(i+1)*size })
		if i == 0 {
			refused("the second of one caller", has(t, open(caller), n))
		}
	}
	refused("one more than there is room for", has(t, open("late"), n))
	if got := s.Stats().Refused; got != 2 {
		t.Errorf("%d refused are counted, want 2", got)
	}
	if err := waiting[0].CloseSend(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of a stream gives back", func() bool { total, callers := s.told.now(); return total == 7*size && callers == 7 })
	waiting = append(waiting[1:], has(t, open("late"), n), open("has-nothing"))
	subscribe(t, waiting[len(waiting)-1])
	s.SetSnapshot(crowd(t, 1))
	for _, st := range waiting {
		mesh(t, coming(st))
	}
	if total, callers := s.told.now(); total != 0 || callers != 0 {
		t.Errorf("after the first answer %d bytes of %d callers are counted", total, callers)
	}
}
