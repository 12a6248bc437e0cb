package server

import (
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// budget bounds the bytes of responses that are being sent, to all clients together. A
// response exists once for each client while it is on its way, and when a control plane
// comes back all clients want everything at the same time.
//
// Who comes when it is full waits, with nothing in hand; one response may be larger than
// what is left, or no mesh could be larger than the budget.
type budget struct {
	limit int64

	mu    sync.Mutex
	taken int64
	freed chan struct{} // closed, and replaced, when there is room again
}

func newBudget(limit int64) *budget { return &budget{limit: limit, freed: make(chan struct{})} }

// full returns nil when there is room, else a channel that is closed when it is worth
// another look.
func (b *budget) full() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.taken < b.limit {
		return nil
	}
	return b.freed
}

// take counts a response, whose bytes it returns for give.
func (b *budget) take(r *discovery.DeltaDiscoveryResponse) int64 {
	var n int64
	for _, res := range r.GetResources() {
		n += int64(len(res.GetName()) + len(res.GetVersion()) + len(res.GetResource().GetValue()))
	}
	for _, name := range r.GetRemovedResources() {
		n += int64(len(name))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.taken += n
	return n
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := b.taken
	b.taken -= n
	if before >= b.limit && b.taken < b.limit {
		close(b.freed)
		b.freed = make(chan struct{})
	}
}
