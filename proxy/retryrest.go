package proxy

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warren-mesh/warren/proxy/route"
)

const (
	// restTime is how long an endpoint is spared after it failed: longer than a
	// control plane takes as a rule to learn that it is gone, short enough that
	// one which only started anew is missed by nobody.
	restTime = 5 * time.Second
	// maxResting bounds the memory of those that rest; more than that at a time is
	// an outage, in which there is nothing to choose.
	maxResting = 1024
)

// resting remembers which endpoints failed a moment ago, for all pods of the
// node. Every decision about a service asks it, so what is asked is never locked.
type resting struct {
	mu   sync.Mutex // for those that change it
	list atomic.Pointer[restingList]
}

// restingList is not changed.
type restingList struct {
	until map[route.Endpoint]time.Time
	last  time.Time // the latest of them
}

// reports is what route.Options.Resting wants: nil while nothing rests.
func (r *resting) reports() func(route.Endpoint) bool {
	l := r.list.Load()
	if l == nil {
		return nil
	}
	now := time.Now()
	if !now.Before(l.last) {
		return nil
	}
	return func(e route.Endpoint) bool { return now.Before(l.until[e]) }
}

// add has an endpoint rest from now on.
func (r *resting) add(e route.Endpoint) {
	if e == (route.Endpoint{}) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	old := r.list.Load()
	if old == nil {
		old = &restingList{}
	}
	if old.until[e].Sub(now) > restTime/2 {
		return // it was just now: many connections find out at the same time
	}
	next := &restingList{until: make(map[route.Endpoint]time.Time, len(old.until)+1), last: now.Add(restTime)}
	soonest := e
	for k, until := range old.until {
		if !now.Before(until) || k == e {
			continue
		}
		next.until[k] = until
		if s, ok := next.until[soonest]; !ok || until.Before(s) {
			soonest = k
		}
	}
	if len(next.until) >= maxResting {
		delete(next.until, soonest)
	}
	next.until[e] = next.last
	r.list.Store(next)
}

// wake takes an endpoint out again: it took a connection.
func (r *resting) wake(e route.Endpoint) {
	if l := r.list.Load(); l == nil || l.until[e].IsZero() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	next := *r.list.Load()
	next.until = maps.Clone(next.until)
	delete(next.until, e)
	r.list.Store(&next)
}

// gauge is how many rest now.
func (r *resting) gauge() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "warren_resting_endpoints", Help: "Endpoints of services that are spared because they failed a moment ago (unstable).",
	}, func() float64 { return float64(r.len()) })
}

func (r *resting) len() (n int) {
	l := r.list.Load()
	if l == nil {
		return 0
	}
	now := time.Now()
	for _, until := range l.until {
		if now.Before(until) {
			n++
		}
	}
	return n
}
