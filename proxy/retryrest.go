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

// resting remembers which endpoints failed a moment ago: for all pods of the node, or for
// those of the account that alone has found so. The network may have it that an account's
// pods reach nobody where others do; these are not to be sent further away for that.
//
// Every decision about a service asks it, so what is asked is never locked.
type resting struct {
	mu   sync.Mutex // for those that change it
	list atomic.Pointer[restingList]
}

// restingList is not changed.
type restingList struct {
	until map[rest]time.Time
	last  time.Time // the latest of them
}

// rest is of one endpoint, for an account or for everybody.
type rest struct {
	route.Endpoint
	account
}

// account is that of pods, whom the network may treat alike.
type account struct{ namespace, name string }

var everybody account

func (p *pod) account() account { return account{p.info.Namespace, p.info.ServiceAccount} }

// reports is what route.Options.Resting wants for an account: nil while nothing rests.
func (r *resting) reports(of account) func(route.Endpoint) bool {
	l := r.list.Load()
	if l == nil {
		return nil
	}
	now := time.Now()
	if !now.Before(l.last) {
		return nil
	}
	return func(e route.Endpoint) bool {
		return now.Before(l.until[rest{e, everybody}]) || now.Before(l.until[rest{e, of}])
	}
}

// add has an endpoint rest from now on, for an account, or for everybody. What two accounts
// find, everybody would.
func (r *resting) add(e route.Endpoint, of account) {
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
	if old.until[rest{e, of}].Sub(now) > restTime/2 {
		return // it was just now: many connections find out at the same time
	}
	next := &restingList{until: make(map[rest]time.Time, len(old.until)+1), last: now.Add(restTime)}
	added := []rest{{e, of}}
	for k, until := range old.until {
		if !now.Before(until) {
			continue
		}
		next.until[k] = until
		if k.Endpoint == e && of != everybody && k.account != everybody && k.account != of && len(added) == 1 {
			added = append(added, rest{e, everybody})
		}
	}
	for _, k := range added {
		delete(next.until, k)
		next.makeRoom()
		next.until[k] = next.last
	}
	r.list.Store(next)
}

// makeRoom forgets what ends first if there is too much; the list is not in use yet.
func (l *restingList) makeRoom() {
	if len(l.until) < maxResting {
		return
	}
	var soonest rest
	for k, until := range l.until {
		if s, ok := l.until[soonest]; !ok || until.Before(s) {
			soonest = k
		}
	}
	delete(l.until, soonest)
}

// wake takes an endpoint out again: it took a connection of an account.
func (r *resting) wake(e route.Endpoint, of account) {
	if l := r.list.Load(); l == nil || l.until[rest{e, everybody}].IsZero() && l.until[rest{e, of}].IsZero() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	next := *r.list.Load()
	next.until = maps.Clone(next.until)
	delete(next.until, rest{e, everybody})
	delete(next.until, rest{e, of})
	r.list.Store(&next)
}

// gauge is how many rest now.
func (r *resting) gauge() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "warren_resting_endpoints", Help: "Endpoints of services that are spared because they failed a moment ago, by everybody or by one account's pods (unstable).",
	}, func() float64 { return float64(r.len()) })
}

func (r *resting) len() int {
	l := r.list.Load()
	if l == nil {
		return 0
	}
	now, seen := time.Now(), make(map[route.Endpoint]struct{})
	for k, until := range l.until {
		if now.Before(until) {
			seen[k.Endpoint] = struct{}{}
		}
	}
	return len(seen)
}
