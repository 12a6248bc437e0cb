package svid

import (
	"context"
	"math/rand/v2"
	"time"

	"golang.org/x/time/rate"
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
	slowest       = 0.5 // calls a second, of a source that wants to be left alone
	refreshFloor  = 5 * time.Second
	refreshFrom   = 0.45
	refreshSpread = 0.10
	firstFrom     = 0.10 // of the first certificate: those of a node that starts are all of one moment
	firstSpread   = 0.45

	podRate  = 1 // streams a second of one pod
	podBurst = 3
)

// step starts what can start and says how long nothing else will be due.
func (m *Manager) step(ctx context.Context, now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.checkClocksLocked(now)
	m.dropFormerLocked(now)
	m.dropEndedLocked(now)
	next := m.checkNoticesLocked(now, clockCheck)
	next = m.checkEarlyLocked(m.wall(), next)
	for e := m.timers.first(); e != nil && !e.at.After(now); e = m.timers.first() {
		m.timers.take()
		e.phase = due
		m.due.add(e)
	}
	m.hurryLocked(now)
	next = m.startDueLocked(ctx, now, next)
	if e := m.timers.first(); e != nil {
		next = min(next, e.at.Sub(now))
	}
	return max(next, 0)
}

// startDueLocked begins the calls that there are places and tokens for, and says when there will be more of the latter.
func (m *Manager) startDueLocked(ctx context.Context, now time.Time, next time.Duration) time.Duration {
	if m.paused.After(now) && m.due.Len() > 0 {
		return min(next, m.paused.Sub(now))
	}
	for m.due.Len() > 0 && len(m.flying) < m.cfg.MaxInFlight {
		e := m.due.first()
		if e.failures > 0 && m.failing >= max(m.cfg.MaxInFlight/2, 1) {
			// Those that have failed come last within a priority, not overall: look for one that has not.
			if e = m.due.freshest(); e == nil {
				break
			}
		}
		if wait := m.heldLocked(e, now); wait > 0 {
			// Those that have not failed come first within a priority, and may be let through; so may others.
			if e = m.due.unheld(m, now); e == nil {
				return min(next, wait)
			}
		}
		does := m.roleLocked(e)
		if does == waits || m.flying[e.key] != nil { // of a forgotten predecessor: never two calls for one identity
			m.due.remove(e)
			e.phase = parked
			continue
		}
		if wait := m.ownPaceLocked(e, does, now); wait > 0 {
			m.due.remove(e)
			m.restLocked(e, wait, e.prio)
			continue
		}
		if does == asks {
			if wait := m.tokenLocked(e.prio, now); wait > 0 {
				return min(next, wait)
			}
		}
		m.due.remove(e)
		m.startLocked(ctx, e, does)
	}
	return next
}

// ownPaceLocked says how long a pod must wait that has had a Watcher asked about it often: it can make that necessary by
// ending its processes, and an attestation is dear.
func (m *Manager) ownPaceLocked(e *entry, does role, now time.Time) time.Duration {
	if m.src.Watcher == nil || does != asks {
		return 0
	}
	if e.asked == nil {
		e.asked = rate.NewLimiter(podRate, podBurst)
	}
	if have := e.asked.TokensAt(now); have < 1 {
		return max(time.Duration((1-have)/podRate*float64(time.Second)), time.Millisecond)
	}
	e.asked.AllowN(now, 1)
	return 0
}

// tokenLocked takes a token of the bucket, or says when there will be one for that priority.
func (m *Manager) tokenLocked(p Priority, now time.Time) time.Duration {
	need := 1.0
	if p == Background {
		need = max(need, float64(m.cfg.Burst)/4)
	}
	if have := m.bucket.TokensAt(now); have < need {
		return max(time.Duration((need-have)/float64(m.bucket.Limit())*float64(time.Second)), time.Millisecond)
	}
	m.bucket.AllowN(now, 1)
	return 0
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

func (m *Manager) startLocked(run context.Context, e *entry, does role) {
	timeout := m.cfg.CallTimeout
	if m.src.Watcher != nil {
		timeout = timeout * 4 / 3 // SPIRE looks for a pod's container for thirty seconds, and says then what it lacks
	}
	ctx, cancel := context.WithTimeout(run, timeout)
	e.cancel = cancel
	e.phase = flying
	e.epoch = m.epoch
	m.flying[e.key] = e
	if e.failed = e.failures > 0; e.failed {
		m.failing++
	}
	p, src := e.prio, m.src
	if src.Watcher != nil {
		s := &stream{m: m, e: e, follows: does == follows, first: make(chan verdict, 1), epoch: m.epoch}
		m.flights.Go(func() { s.open(ctx, run, src, p) })
		return
	}
	m.flights.Go(func() { m.fly(ctx, src.Signer, e, p) })
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

// firstRefreshAfter is refreshAfter of an identity's first certificate.
func firstRefreshAfter(life time.Duration) time.Duration {
	d := time.Duration(float64(life) * (firstFrom + firstSpread*rand.Float64()))
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
