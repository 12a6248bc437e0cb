package h2

import (
	"math"
	"sync/atomic"
)

// Budget caps the sum of what receive windows have grown by and of what the owners of
// connections hold for peers, over all that share it. It is safe for concurrent use; a
// nil Budget has no cap.
type Budget struct {
	limit atomic.Int64
	used  atomic.Int64
}

// NewBudget returns a budget of n bytes.
func NewBudget(n int64) *Budget {
	b := &Budget{}
	b.Resize(n)
	return b
}

// Resize makes n bytes the cap. While more is taken, windows give back what they
// have grown by whenever credit is due: a peer keeps what it was promised, so
// that takes until it has sent it. With nothing left, n being 0, they shrink
// further, to what HTTP/2 begins with.
func (b *Budget) Resize(n int64) { b.limit.Store(max(0, n)) }

// Limit returns the cap in bytes.
func (b *Budget) Limit() int64 {
	if b == nil {
		return math.MaxInt64
	}
	return b.limit.Load()
}

// tight says that memory has run short.
func (b *Budget) tight() bool { return b != nil && b.limit.Load() == 0 }

// over says that more is taken than there is.
func (b *Budget) over() bool { return b != nil && b.used.Load() > b.limit.Load() }

// Used returns the bytes taken at the moment.
func (b *Budget) Used() int64 {
	if b == nil {
		return 0
	}
	return b.used.Load()
}

// Take reserves n bytes, or nothing when they would go over the cap.
func (b *Budget) Take(n int64) bool { return b.takeUpTo(b.Limit(), n) }

// grow is Take for windows. They leave an eighth, for buffers: each of those saves more
// than the last of many windows does.
func (b *Budget) grow(n int64) bool {
	limit := b.Limit()
	return b.takeUpTo(limit-limit/8, n)
}

func (b *Budget) takeUpTo(limit, n int64) bool {
	if b == nil {
		return true
	}
	if b.used.Add(n) > limit {
		b.used.Add(-n)
		return false
	}
	return true
}

// Put returns n bytes taken earlier.
func (b *Budget) Put(n int64) {
	if b != nil {
		b.used.Add(-n)
	}
}
