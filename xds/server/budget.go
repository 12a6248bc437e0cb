package server

import "sync"

// small is what is not counted: a change of the ordinary size never waits.
const small = 64 << 10

// budget bounds the memory of responses that gRPC has not written yet, of all clients
// together.
//
// Who comes when it is full waits; one response may be larger than what is left, or no
// mesh could be larger than the budget.
type budget struct {
	limit int64

	mu    sync.Mutex
	taken int64
	freed chan struct{} // closed, and replaced, when there is room again
}

func newBudget(limit int64) *budget { return &budget{limit: limit, freed: make(chan struct{})} }

// take counts what is to be given back, and returns nil. If there is no room it counts
// nothing, and returns a channel that is closed when it is worth another try.
func (b *budget) take(n int64) <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.taken >= b.limit {
		return b.freed
	}
	b.taken += n
	return nil
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
