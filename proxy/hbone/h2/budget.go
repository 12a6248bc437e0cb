package h2

import "sync/atomic"

// Budget caps the sum of what receive windows have grown by, over all
// connections that share it. It is safe for concurrent use; a nil Budget has
// no cap.
type Budget struct {
	limit int64
	used  atomic.Int64
}

// NewBudget returns a budget of n bytes.
func NewBudget(n int64) *Budget { return &Budget{limit: n} }

// Used returns the bytes taken at the moment.
func (b *Budget) Used() int64 {
	if b == nil {
		return 0
	}
	return b.used.Load()
}

// take reserves n bytes, or nothing when they would go over the cap.
func (b *Budget) take(n int64) bool {
	if b == nil {
		return true
	}
	if b.used.Add(n) > b.limit {
		b.used.Add(-n)
		return false
	}
	return true
}

// put returns n bytes taken earlier.
func (b *Budget) put(n int64) {
	if b != nil {
		b.used.Add(-n)
	}
}
