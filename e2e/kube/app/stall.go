package app

import (
	"sync"
	"time"
)

// A machine that is suspended, or whose processes are stopped for others' sake, stands
// still as a whole: what was under way then is late for no fault of the mesh's.
const (
	stallTick = 200 * time.Millisecond
	stallOver = 3 * time.Second // so long without a tick is no busy machine any more
)

// stalls are the times in which this process stood still.
type stalls struct {
	once sync.Once
	mu   sync.Mutex
	all  []stall // guarded by mu
}

type stall struct {
	end  time.Time
	took time.Duration
}

var stood stalls

// StoodStill is for how long this process stood still since a time, as far as it has
// watched: it begins to with the first call.
func StoodStill(since time.Time) (sum time.Duration) {
	stood.once.Do(func() { go stood.watch(time.Now()) })
	stood.mu.Lock()
	defer stood.mu.Unlock()
	for _, s := range stood.all {
		if s.end.After(since) {
			sum += s.took
		}
	}
	return sum
}

// Late is StoodStill for whom a timer has told that he is late: after a stall timers
// fire in any order, and the watcher's may come last.
func Late(since time.Time) time.Duration {
	if time.Since(since) > stallOver {
		time.Sleep(2 * stallTick)
	}
	return StoodStill(since)
}

func (s *stalls) watch(last time.Time) {
	for {
		time.Sleep(stallTick)
		now := time.Now()
		if took := now.Sub(last); took > stallOver {
			s.mu.Lock()
			s.all = append(s.all, stall{now, took})
			s.mu.Unlock()
		}
		last = now
	}
}
