package workload

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// Batch is one change. Removals come first, so that an object may be removed and
// set in one batch. All of it becomes visible at once.
//
// The store keeps the objects; they must not be changed any more.
type Batch struct {
	Workloads []*Workload
	Services  []*Service
	Policies  []*Policy

	// RemovedAddresses are xDS names: a workload's UID or a service's
	// "namespace/hostname". Unknown names are ignored.
	RemovedAddresses []string
	RemovedPolicies  []string // "namespace/name"
}

// Empty reports whether there is nothing to do.
func (b *Batch) Empty() bool {
	return len(b.Workloads)+len(b.Services)+len(b.Policies)+len(b.RemovedAddresses)+len(b.RemovedPolicies) == 0
}

// Merge appends a later batch. What the later one removes or sets again takes
// its place.
func (b *Batch) Merge(later Batch) {
	if b.Empty() {
		*b = later
		return
	}
	if len(later.RemovedAddresses) > 0 {
		gone := set(later.RemovedAddresses)
		b.Workloads = slices.DeleteFunc(b.Workloads, func(w *Workload) bool { return gone[w.ResourceName()] })
		b.Services = slices.DeleteFunc(b.Services, func(s *Service) bool { return gone[s.ResourceName()] })
	}
	if len(later.RemovedPolicies) > 0 {
		gone := set(later.RemovedPolicies)
		b.Policies = slices.DeleteFunc(b.Policies, func(p *Policy) bool { return gone[p.ResourceName()] })
	}
	b.Workloads = append(b.Workloads, later.Workloads...)
	b.Services = append(b.Services, later.Services...)
	b.Policies = append(b.Policies, later.Policies...)
	b.RemovedAddresses = append(b.RemovedAddresses, later.RemovedAddresses...)
	b.RemovedPolicies = append(b.RemovedPolicies, later.RemovedPolicies...)
}

func set(names []string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

// Store holds the current View. All methods may be called from any goroutine.
type Store struct {
	view atomic.Pointer[View]

	mu     sync.Mutex // one writer at a time; held while hooks run
	hooks  map[int]func(old, new *View)
	nextID int
}

// NewStore returns a store with an empty view, in which View.Local finds workloads of all
// nodes.
func NewStore() *Store { return NewNodeStore("") }

// NewNodeStore is NewStore for a proxy of one node: View.Local and View.Here find only
// that node's workloads. Nobody asks it for those of others, which are most of a mesh.
func NewNodeStore(node string) *Store {
	s := &Store{hooks: map[int]func(old, new *View){}}
	s.view.Store(newView(node))
	return s
}

// View is the current state. It never changes; ask again for a newer one.
func (s *Store) View() *View { return s.view.Load() }

// Changed returns a channel that is closed when the view that is current now has
// been replaced. To wait for something without missing it, take the channel from
// the view that was looked at: View.Superseded.
func (s *Store) Changed() <-chan struct{} { return s.View().Superseded() }

// Apply makes the batch visible as one new view, then wakes waiters, then calls
// the hooks. An empty batch does nothing.
func (s *Store) Apply(b Batch) { s.ApplyGently(b, func() {}) }

// ApplyGently is Apply for one who lets others run now and then: rest is called
// between the objects of the batch. It must not use the store.
func (s *Store) ApplyGently(b Batch, rest func()) {
	if b.Empty() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.view.Load()
	e := edit(old)
	e.apply(&b, rest)
	next := e.view()
	s.view.Store(next)
	close(old.superseded)
	for _, id := range sortedKeys(s.hooks) {
		s.hooks[id](old, next)
	}
}

// OnSwap has fn called after each swap, in order and one at a time, in the
// goroutine of the Apply that caused it. It must not block and must not call
// Apply or OnSwap. The result takes fn out again; it waits for a running call.
func (s *Store) OnSwap(fn func(old, new *View)) (remove func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.nextID
	s.nextID++
	s.hooks[id] = fn
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.hooks, id)
	}
}

// Wait returns once ok holds of the current view, or with the context's error.
// ok is called with each view in turn, though views may be skipped when several
// swaps happen at once.
func (s *Store) Wait(ctx context.Context, ok func(*View) bool) error {
	for {
		v := s.View()
		if ok(v) {
			return nil
		}
		select {
		case <-v.superseded:
		case <-ctx.Done():
			return fmt.Errorf("workload: wait: %w", context.Cause(ctx))
		}
	}
}

func sortedKeys(m map[int]func(old, new *View)) []int {
	keys := make([]int, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
