package server

import (
	"sync"
	"time"
)

// publisher holds the newest snapshot and lets a burst of new ones pass as one.
type publisher struct {
	quiet, longest time.Duration

	mu      sync.Mutex
	current *Snapshot     // nil until the first
	changed chan struct{} // closed, and replaced, when current changes
	pending *Snapshot     // waits for quiet; nil for none
	since   time.Time     // when the burst that pending ends began
	timer   *time.Timer   // runs while pending is set
}

func newPublisher(quiet, longest time.Duration) *publisher {
	return &publisher{quiet: quiet, longest: longest, changed: make(chan struct{})}
}

// set makes a snapshot the newest: the first at once, later ones when none has
// followed for the quiet time, or the burst has gone on for the longest.
func (p *publisher) set(s *Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	switch {
	case p.current == nil:
		p.publishLocked(s)
	case s.version == p.current.version:
		p.pending = nil // nothing has changed, or everything has changed back
	case p.pending == nil:
		p.pending, p.since = s, now
		p.timer = time.AfterFunc(min(p.quiet, p.longest), p.flush)
	default:
		p.pending = s
		p.timer.Reset(max(0, min(p.quiet, p.since.Add(p.longest).Sub(now))))
	}
}

func (p *publisher) flush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pending != nil { // a reset that came as the timer fired makes it fire twice
		p.publishLocked(p.pending)
	}
}

func (p *publisher) publishLocked(s *Snapshot) {
	p.current, p.pending = s, nil
	close(p.changed)
	p.changed = make(chan struct{})
}

// newest returns the newest snapshot, nil before the first, and a channel that is
// closed when it no longer is.
func (p *publisher) newest() (*Snapshot, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current, p.changed
}
