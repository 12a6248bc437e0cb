package server

import (
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

func TestBudget(t *testing.T) {
	b := newBudget(100)
	large := &discovery.DeltaDiscoveryResponse{
		Resources:        []*discovery.Resource{{Name: "ab", Version: "c", Resource: &anypb.Any{Value: make([]byte, 200)}}},
		RemovedResources: []string{"defg"},
	}
	if b.full() != nil {
		t.Fatal("full at first")
	}
	n := b.take(large) // what is larger than all of it has to go, too
	if n != 207 {
		t.Errorf("%d bytes, want 207", n)
	}
	m := b.take(&discovery.DeltaDiscoveryResponse{RemovedResources: []string{"xxx"}})
	freed := b.full()
	if freed == nil {
		t.Fatal("not full")
	}
	b.give(m)
	select {
	case <-freed:
		t.Error("said to have room, and has none")
	default:
	}
	b.give(n)
	select {
	case <-freed:
	default:
		t.Error("nobody was told of the room")
	}
	if b.full() != nil || b.taken != 0 {
		t.Errorf("%d bytes are still taken", b.taken)
	}
}

// TestFullBudget: who comes when others are being sent a lot is served after them, and
// the time till then is not held against it.
func TestFullBudget(t *testing.T) {
	s, open := start(t, Config{Debounce: time.Millisecond, MaxSending: 1, AckTimeout: 5 * time.Second})
	s.SetSnapshot(build(t, nil, town()))
	other := s.sending.take(&discovery.DeltaDiscoveryResponse{RemovedResources: []string{"x"}})
	st := open("a")
	if err := st.Send(demanding(nil)); err != nil {
		t.Fatal(err)
	}
	got := make(chan *discovery.DeltaDiscoveryResponse, 1)
	go func() {
		r, _ := st.Recv()
		got <- r
	}()
	select {
	case r := <-got:
		t.Errorf("sent %v though there is no room", r)
	case <-time.After(3 * companion): // long after it would have come
	}
	s.sending.give(other)
	if r := <-got; len(r.GetResources()) != 1 {
		t.Errorf("then sent %v", r)
	}
	for deadline := time.Now().Add(10 * time.Second); s.sending.full() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("what was sent is still counted")
		}
	}
}
