package admin

import (
	"context"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	maxScrapes = 4 // at a time; each takes memory and a thread
	maxQueued  = 4 // that wait, of one address
	// scrapeTimeout is how long a client may take to read the metrics, scrapeShare how long
	// if others wait for that.
	scrapeTimeout = 30 * time.Second
	scrapeShare   = 5 * time.Second
	// scrapeWait is how long one waits for its turn.
	scrapeWait = 10 * time.Second
)

// scrapes has so many requests for the metrics answered at a time, one of an address, in
// turns by address. The port is open to all: whoever asks often, or does not read what he
// asked for, keeps his own address waiting, and others for a moment.
type scrapes struct {
	share time.Duration

	mu      sync.Mutex
	running []*scrape // the oldest first
	lanes   []lane    // of those who wait, in order
}

// lane is who waits of one address. It is not empty.
type lane struct {
	who   netip.Addr
	queue []*scrape
}

type scrape struct {
	who   netip.Addr
	until func(time.Time) // sets when its client must have read all
	since time.Time
	begun chan struct{} // closed when its turn has come
}

// enter returns when s has its turn, or false if it gets none.
func (l *scrapes) enter(ctx context.Context, s *scrape) bool {
	s.begun = make(chan struct{})
	if !l.queue(s) {
		return false
	}
	patience := time.NewTimer(scrapeWait)
	defer patience.Stop()
	select {
	case <-s.begun:
		return true
	case <-ctx.Done():
	case <-patience.C:
	}
	return !l.giveUp(s)
}

// queue is false where enough of the address wait.
func (l *scrapes) queue(s *scrape) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.lanes, func(n lane) bool { return n.who == s.who })
	switch {
	case i < 0:
		l.lanes = append(l.lanes, lane{who: s.who, queue: []*scrape{s}})
	case len(l.lanes[i].queue) >= maxQueued:
		return false
	default:
		l.lanes[i].queue = append(l.lanes[i].queue, s)
	}
	l.next()
	return true
}

// giveUp is false for one whose turn has come.
func (l *scrapes) giveUp(s *scrape) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.lanes {
		n := &l.lanes[i]
		if at := slices.Index(n.queue, s); at >= 0 {
			if n.queue = slices.Delete(n.queue, at, at+1); len(n.queue) == 0 {
				l.lanes = slices.Delete(l.lanes, i, i+1)
			}
			return true
		}
	}
	return false
}

// leave ends the turn of s.
func (l *scrapes) leave(s *scrape) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.running, s); i >= 0 {
		l.running = slices.Delete(l.running, i, i+1)
	}
	l.next()
}

// next has all begin whose turn it is, and those end soon whom others wait for.
func (l *scrapes) next() {
	for i := 0; i < len(l.lanes) && len(l.running) < maxScrapes; {
		n := l.lanes[i]
		if l.of(n.who) != nil {
			i++
			continue
		}
		l.lanes = slices.Delete(l.lanes, i, i+1)
		s := n.queue[0]
		if len(n.queue) > 1 {
			l.lanes = append(l.lanes, lane{who: n.who, queue: n.queue[1:]})
		}
		s.since = time.Now()
		s.until(s.since.Add(scrapeTimeout))
		l.running = append(l.running, s)
		close(s.begun)
	}
	strangers := 0
	for _, n := range l.lanes {
		if own := l.of(n.who); own != nil {
			own.until(own.since.Add(l.share))
		} else {
			strangers++
		}
	}
	for _, s := range l.running[:min(strangers, len(l.running))] {
		s.until(s.since.Add(l.share))
	}
}

// of is the one of an address that has its turn.
func (l *scrapes) of(who netip.Addr) *scrape {
	for _, s := range l.running {
		if s.who == who {
			return s
		}
	}
	return nil
}

// MetricsHandler serves the metrics port.
func MetricsHandler(h http.Handler) http.Handler {
	return (&scrapes{share: scrapeShare}).handler(h)
}

func (l *scrapes) handler(h http.Handler) http.Handler {
	metrics := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, _ := netip.ParseAddrPort(r.RemoteAddr)
		conn := http.NewResponseController(w)
		s := &scrape{who: from.Addr().Unmap(), until: func(t time.Time) { _ = conn.SetWriteDeadline(t) }} // a recorder has none
		if !l.enter(r.Context(), s) {
			http.Error(w, "the metrics are being read by others, try again later", http.StatusServiceUnavailable)
			return
		}
		defer l.leave(s)
		h.ServeHTTP(w, r)
	})
	return routes(map[string]http.Handler{"/metrics": metrics, "/stats/prometheus": metrics})
}
