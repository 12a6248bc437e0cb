package controlplane

import (
	"sync"
	"time"
)

// A thing that somebody else writes as often as we do is left alone for longer each
// time, so that two control planes in a cluster do not keep its API server busy. What we
// write because something changed is no such case: nobody counts it.
const (
	freeWrites  = 3
	firstPause  = 5 * time.Second
	longestStop = 10 * time.Minute
	forgotten   = 30 * time.Minute
)

// restraint counts what was written. The zero value is ready.
type restraint struct {
	mu   sync.Mutex
	seen map[string]*writes
}

type writes struct {
	times int
	last  time.Time
	next  time.Time // not before
}

// wait says how long a thing must be left alone; zero is that it may be written.
func (r *restraint) wait(what string, now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.seen[what]; w != nil {
		return max(w.next.Sub(now), 0)
	}
	return 0
}

// wrote counts that it was written again, and says for how long it is left alone now.
func (r *restraint) wrote(what string, now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.seen[what]
	if w == nil || now.Sub(w.last) > forgotten {
		w = &writes{}
		if r.seen == nil {
			r.seen = make(map[string]*writes)
		}
		r.seen[what] = w
	}
	w.times++
	w.last = now
	if over := w.times - freeWrites; over >= 0 {
		w.next = now.Add(min(firstPause<<min(over, 10), longestStop))
	}
	return max(w.next.Sub(now), 0)
}

// forget ends what is known of a thing that is no more.
func (r *restraint) forget(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.seen, what)
}
