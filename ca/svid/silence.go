package svid

import (
	"errors"
	"time"
)

const (
	// silentCalls without an answer, in a row and for as many identities as that if there are so many, say that the source
	// answers nobody.
	silentCalls = 3
	// probeEvery is how often what has failed is tried again then.
	probeEvery = 10 * time.Second
)

// ErrSilent is of a call that got no answer in its time. Sources that end calls themselves say so by it.
var ErrSilent = errors.New("the source did not answer in time")

// ErrNotAsked is of a failure before the source was asked: it says nothing of the source.
var ErrNotAsked = errors.New("the source was not asked")

// silence is what is known of a source that takes calls and does not answer. An agent of SPIRE's that has stopped so does
// not recover by itself, and every call more is one more that hangs in it.
type silence struct {
	calls int // in a row
	who   map[*entry]struct{}
	since time.Time // zero: it answers
	probe time.Time // the last one
}

// heardLocked notes how a call has ended: an error is an answer, too. What comes on streams that were opened before is none:
// an agent that attests nobody any more goes on with those.
func (m *Manager) heardLocked(e *entry, err error) {
	q := &m.silence
	if errors.Is(err, ErrNotAsked) || errors.Is(err, ErrProcessEnded) {
		return
	}
	if !errors.Is(err, ErrSilent) {
		m.answeredLocked()
		e.mute = false
		return
	}
	if e.mute {
		return // for it alone, as is known
	}
	if q.who == nil {
		q.who = map[*entry]struct{}{}
	}
	q.calls++
	q.who[e] = struct{}{}
	if q.since.IsZero() && q.calls >= silentCalls && len(q.who) >= min(silentCalls, len(m.entries)) {
		q.since = time.Now()
		m.cfg.Log.Error("the source of certificates takes calls and answers none; it is asked now and then", "err", err)
	}
}

// answeredLocked notes that the source has said something, to whomever: those that it has not answered meanwhile are
// particular to it. SPIRE answers nothing about a pod while one of the entries for it cannot be signed.
func (m *Manager) answeredLocked() {
	q := &m.silence
	if !q.since.IsZero() {
		m.cfg.Log.Warn("the source of certificates answers again", "after", time.Since(q.since).Round(time.Second).String())
	}
	for e := range q.who {
		e.mute = true
	}
	*q = silence{}
}

// heldLocked says for how long e must not ask because the source answers nobody. What got no answer is asked for one call at
// a time then; everything else is asked for once: that may be somebody whom it does answer.
func (m *Manager) heldLocked(e *entry, now time.Time) time.Duration {
	q := &m.silence
	switch {
	case q.since.IsZero() || !errors.Is(e.lastErr, ErrSilent):
		return 0
	case m.failing > 0:
		return clockCheck // its end wakes us
	}
	if wait := q.probe.Add(probeEvery).Sub(now); wait > 0 {
		return wait
	}
	q.probe = now
	return 0
}

// overdueAfter is for how long renewals must have failed, of long certificates, to be told of before three quarters of the
// lifetime are over.
const overdueAfter = 10 * time.Minute

// Health is what will break if nobody looks after it.
type Health struct {
	Silent  time.Time     // since when the source has answered nobody; zero: it does
	Overdue int           // certificates in use that are not renewed as they should be
	Ends    time.Time     // when the first of those does
	Err     error         // why, nil where the source says nothing
	Ahead   time.Duration // by how much the source's clock seems to be ahead of ours; as far as that was noticed
}

// Health looks at all identities.
func (m *Manager) Health() Health {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := Health{Silent: m.silence.since.Round(0)}
	now, wall := time.Now(), m.wall()
	for e := range m.parked {
		h.Ahead = max(h.Ahead, e.early.i.NotBefore().Sub(e.early.came))
	}
	for _, e := range m.entries {
		i := e.valid(wall)
		if i == nil || !e.overdue(now, life(i)) {
			continue
		}
		h.Overdue++
		if end := i.NotAfter(); h.Ends.IsZero() || end.Before(h.Ends) {
			h.Ends, h.Err = end, e.lastErr
		}
	}
	return h
}

func (e *entry) overdue(now time.Time, life time.Duration) bool {
	return !e.late.IsZero() && !e.late.After(now) || e.failures > 0 && now.Sub(e.failing) > min(overdueAfter, life/8)
}

// fails counts a failure.
func (e *entry) fails() {
	if e.failures++; e.failures == 1 {
		e.failing = time.Now()
	}
}
