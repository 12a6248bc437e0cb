package proxy

import (
	"sync"
	"time"
)

// maxAskers bounds of how many DNS queries are counted apart: each has some forty lines in a
// scrape. A revision is the tag of an image in most places, and every rollout is another one.
const maxAskers = 500

// asker is whose DNS queries are counted together: pods' canonical service and revision.
type asker struct{ service, revision string }

var someAsker = asker{unknown, unknown}

// askerOf is what a pod is counted by.
func askerOf(p *pod) asker {
	a := someAsker
	if w := p.current(p.s.store.View()); w != nil {
		if w.CanonicalName != "" {
			a.service = w.CanonicalName
		}
		if w.CanonicalRevision != "" {
			a.revision = w.CanonicalRevision
		}
	}
	return a
}

// askers are those that have series, and when they asked last. The series of one that no pod
// of the node is any more go after a while, or when there is need of its place.
type askers struct {
	mu    sync.Mutex
	seen  map[asker]time.Time
	swept time.Time
	stuck bool // all that have series were there then
}

// of says as whom a is counted, which is as nobody in particular where there is no place.
// now are those that there are; drop takes an asker's series away.
func (as *askers) of(a asker, now func() map[asker]bool, drop func(asker)) asker {
	if a == someAsker {
		return a
	}
	t := time.Now()
	as.mu.Lock()
	defer as.mu.Unlock()
	_, known := as.seen[a]
	full, since := !known && len(as.seen) >= maxAskers, t.Sub(as.swept)
	if full && (!as.stuck || since >= time.Second) || since >= sweepTime {
		as.sweep(t, full, now(), drop)
	}
	if !known && len(as.seen) >= maxAskers {
		return someAsker
	}
	if as.seen == nil {
		as.seen = make(map[asker]time.Time)
	}
	as.seen[a] = t
	return a
}

// sweep drops those that are gone and have not asked for long; where there is need, also the
// one among the gone that asked longest ago.
func (as *askers) sweep(t time.Time, need bool, now map[asker]bool, drop func(asker)) {
	as.swept = t
	var oldest asker
	for a, last := range as.seen {
		switch {
		case now[a]:
		case t.Sub(last) >= toldTime:
			delete(as.seen, a)
			drop(a)
			need = false
		case oldest == (asker{}) || last.Before(as.seen[oldest]):
			oldest = a
		}
	}
	if need && oldest != (asker{}) {
		delete(as.seen, oldest)
		drop(oldest)
		need = false
	}
	as.stuck = need
}
