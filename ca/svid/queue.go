package svid

import (
	"container/heap"
	"time"
)

// queue is a heap of entries; each is in at most one queue and knows its place there.
type queue struct {
	items []*entry
	less  func(a, b *entry) bool
}

// byDeadline is the order of entries at rest.
func byDeadline(a, b *entry) bool { return a.at.Before(b.at) }

// byPriority is the order of entries that are due.
func byPriority(a, b *entry) bool {
	if a.prio != b.prio {
		return a.prio > b.prio
	}
	if fa, fb := a.failures > 0, b.failures > 0; fa != fb {
		return fb
	}
	return a.at.Before(b.at)
}

func (q *queue) Len() int           { return len(q.items) }
func (q *queue) Less(i, j int) bool { return q.less(q.items[i], q.items[j]) }
func (q *queue) Swap(i, j int) {
	q.items[i], q.items[j] = q.items[j], q.items[i]
	q.items[i].index, q.items[j].index = i, j
}

// Push implements heap.Interface; use add.
func (q *queue) Push(x any) {
	e := x.(*entry)
	e.index = len(q.items)
	q.items = append(q.items, e)
}

// Pop implements heap.Interface; use take.
func (q *queue) Pop() any {
	n := len(q.items) - 1
	e := q.items[n]
	q.items[n] = nil
	q.items = q.items[:n]
	return e
}

func (q *queue) add(e *entry)    { heap.Push(q, e) }
func (q *queue) take() *entry    { return heap.Pop(q).(*entry) }
func (q *queue) fix(e *entry)    { heap.Fix(q, e.index) }
func (q *queue) remove(e *entry) { heap.Remove(q, e.index) }

// freshest is the first of those that have not failed.
func (q *queue) freshest() (first *entry) {
	for _, e := range q.items {
		if e.failures == 0 && (first == nil || q.less(e, first)) {
			first = e
		}
	}
	return first
}

// unheld is the first of those that may ask although the source is silent.
func (q *queue) unheld(m *Manager, now time.Time) (first *entry) {
	room := m.failing < max(m.cfg.MaxInFlight/2, 1)
	for _, e := range q.items {
		if (e.failures == 0 || room && m.heldLocked(e, now) == 0) && (first == nil || q.less(e, first)) {
			first = e
		}
	}
	return first
}

func (q *queue) first() *entry {
	if len(q.items) == 0 {
		return nil
	}
	return q.items[0]
}
