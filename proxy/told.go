package proxy

import (
	"slices"
	"sync/atomic"
	"time"
)

// Bounds on the series that peers have a say in: whoever has a certificate of the mesh,
// and is let in by a pod's policies, may call itself anything. In a scrape each is up to
// 15 KB of text. Further ones are counted without what was told.
const (
	// maxTold of them there are on a node, unless METRICS_PEER_SERIES says otherwise: 30 MB
	// in a scrape, if each peer does its worst; a kilobyte each, if nobody does.
	maxTold = 2000
	// maxToldMost is half of all series: those that are known have room, whoever talks.
	maxToldMost = maxSeries / 2
	// toldTime is how long one is kept without a connection: what a hostile peer has
	// used up is free again some time.
	toldTime = time.Hour
	// sweepTime is how often those are looked for at most.
	sweepTime = time.Minute
)

// toldSeries are the series that peers have a say in. Its owner guards it.
type toldSeries struct {
	most  int                  // on this node; 0: none
	of    map[string][]*series // by the pod that was told, its UID
	all   int
	swept time.Time
}

func (t *toldSeries) full(pod string) bool {
	return t.all >= t.most || len(t.of[pod]) >= t.share()
}

// share is what the peers of one pod may have, so that others have theirs.
func (t *toldSeries) share() int { return (t.most + 9) / 10 }

func (t *toldSeries) add(pod string, s *series) {
	if t.of == nil {
		t.of = make(map[string][]*series)
	}
	s.told = new(atomic.Int64)
	t.of[pod] = append(t.of[pod], s)
	t.all++
}

// sweep drops those that have had no connection for long.
func (t *toldSeries) sweep(drop func(*series)) {
	now := time.Now()
	if now.Sub(t.swept) < sweepTime {
		return
	}
	t.swept = now
	for pod, list := range t.of {
		list = slices.DeleteFunc(list, func(s *series) bool {
			if s.live() || now.Sub(time.Unix(0, s.told.Load())) < toldTime {
				return false
			}
			drop(s)
			t.all--
			return true
		})
		if t.of[pod] = list; len(list) == 0 {
			delete(t.of, pod)
		}
	}
}

// live says whether a connection is counted that has not ended.
func (s *series) live() bool {
	n := s.opened.Load()
	for i := range s.closed {
		n -= s.closed[i].Load()
	}
	return n > 0
}

// used notes that a connection begins or ends.
func (s *series) used() {
	if s.told != nil {
		s.told.Store(time.Now().UnixNano())
	}
}

// end counts the end of a connection.
func (s *series) end(f flag) {
	s.used()
	s.closed[f].Add(1)
}
