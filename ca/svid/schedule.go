package svid

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	clockCheck = 30 * time.Second // how often the clocks are compared at least
	clockDrift = 5 * time.Second  // more is a jump: suspend, or a correction by hand or NTP
	afterJump  = 10 * time.Second // unusable certificates are renewed within

	retryBase     = 500 * time.Millisecond
	retryFloor    = 100 * time.Millisecond
	retryMax      = 150 * time.Second // while a certificate is valid
	retryMaxNone  = 15 * time.Second  // while there is none
	demandGapMax  = 2 * time.Second
	pauseMax      = time.Minute
	refreshFloor  = 5 * time.Second
	refreshFrom   = 0.45
	refreshSpread = 0.10
)

// step starts what can start and says how long nothing else will be due.
func (m *Manager) step(ctx context.Context, now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.checkClocksLocked(now)
	for e := m.timers.first(); e != nil && !e.at.After(now); e = m.timers.first() {
		m.timers.take()
		e.phase = due
		m.due.add(e)
	}
	m.hurryLocked(now)
	for m.due.Len() > 0 && len(m.flying) < m.cfg.MaxInFlight && !m.paused.After(now) {
		e := m.due.take()
		if m.flying[e.key] != nil { // of a forgotten predecessor: never two calls for one identity
			e.phase = parked
			continue
		}
		m.startLocked(ctx, e)
	}
	next := clockCheck
	if e := m.timers.first(); e != nil {
		next = min(next, e.at.Sub(now))
	}
	if m.due.Len() > 0 && m.paused.After(now) {
		next = min(next, m.paused.Sub(now))
	}
	return max(next, 0)
}

// hurryLocked moves renewals whose certificates are in use and about to end before those that nobody waits for yet: a
// node's worth of new pods must not make the certificates of the old ones run out.
func (m *Manager) hurryLocked(now time.Time) {
	var late []*entry
	for _, e := range m.due.items {
		if e.prio < OnDemand && e.leased() && e.current.Load() != nil && !e.late.After(now) {
			late = append(late, e)
		}
	}
	for _, e := range late {
		e.prio = OnDemand
		m.due.fix(e)
	}
}

func (m *Manager) startLocked(run context.Context, e *entry) {
	ctx, cancel := context.WithTimeout(run, m.cfg.CallTimeout)
	e.cancel = cancel
	e.phase = flying
	m.flying[e.key] = e
	p := e.prio
	if m.cfg.Watcher != nil {
		m.flights.Go(func() { m.open(ctx, run, e, p) })
		return
	}
	m.flights.Go(func() { m.fly(ctx, e, p) })
}

// restLocked puts e to rest until d from now.
func (m *Manager) restLocked(e *entry, d time.Duration, p Priority) {
	e.phase, e.prio, e.at = resting, p, time.Now().Add(d)
	m.timers.add(e)
}

// checkClocksLocked compares the wall clock with the monotonic one. Deadlines are monotonic and certificates end by
// the wall clock, so after a jump the deadlines of certificates that end sooner than thought are brought forward. So are
// those of certificates that the clock is now too early for: peers on this node refuse them until then.
func (m *Manager) checkClocksLocked(now time.Time) {
	wall := m.wall()
	drift := wall.Sub(m.lastWall) - now.Sub(m.lastCheck)
	first := m.lastCheck.IsZero()
	m.lastCheck, m.lastWall = now, wall
	if first || drift.Abs() <= clockDrift {
		return
	}
	m.cfg.Log.Warn("wall clock jumped; certificates are looked at again", "by", drift.Round(time.Second).String())
	for _, e := range m.entries {
		i := e.current.Load()
		if i == nil || e.phase != resting {
			continue
		}
		at := now.Add(refreshAfter(i.NotAfter().Sub(wall)))
		if i.Expired(wall) || wall.Before(i.NotBefore()) {
			at = now.Add(rand.N(afterJump))
		}
		if at.Before(e.at) {
			e.at = at
			m.timers.fix(e)
		}
	}
}

// refreshAfter is when to renew a certificate that has life left: at half of it, spread so that certificates of one
// moment do not stay together.
func refreshAfter(life time.Duration) time.Duration {
	d := time.Duration(float64(life) * (refreshFrom + refreshSpread*rand.Float64()))
	return max(d, min(refreshFloor, life/10), retryFloor)
}

// retryAfter is the pause after failures in a row (full jitter: many identities fail at once when a CA goes away).
// left is how long the certificate in use lasts, zero without one; near its end retries become frequent.
func retryAfter(failures int, left time.Duration) time.Duration {
	limit := retryMaxNone
	if left > 0 {
		limit = min(retryMax, left/4)
	}
	limit = min(limit, exponential(failures))
	return max(rand.N(max(limit, 1)), retryFloor)
}

// demandGap is how soon after failures in a row a waiting connection may bring the next try forward.
func demandGap(failures int) time.Duration {
	if failures == 0 {
		return 0
	}
	return min(demandGapMax, exponential(failures))
}

func exponential(failures int) time.Duration { return retryBase << min(max(failures-1, 0), 10) }
