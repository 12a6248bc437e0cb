package svid

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/time/rate"
)

const (
	defaultTTL         = 24 * time.Hour
	defaultInFlight    = 8
	defaultPerSecond   = 50
	defaultBurst       = 500
	defaultIdentities  = 4096
	defaultCallTimeout = 30 * time.Second
	defaultWait        = 10 * time.Second
)

// Manager holds the certificates of a node. Make it with New, run it with Run; its other methods may be called before,
// while and after Run runs, from any goroutine.
type Manager struct {
	cfg  Config
	wall func() time.Time // the wall clock alone; tests make it jump
	wake chan struct{}    // capacity 1: there may be something to start

	flights sync.WaitGroup

	mu        sync.Mutex
	entries   map[key]*entry
	holders   map[string]map[*entry]struct{}
	timers    queue
	due       queue
	flying    map[key]*entry
	failing   int // of flying, those that have failed before
	bucket    *rate.Limiter
	src       Source
	epoch     int // of src
	groups    map[spiffeid.ID]*group
	noticed   map[*entry]struct{}
	parked    map[*entry]struct{} // those with something early
	silence   silence             // of src
	trust     map[spiffeid.TrustDomain]*trust
	extra     bundles   // what is trusted whatever the source says
	former    []former  // roots of sources of before
	paused    time.Time // no call starts before, at the source's wish
	lastCheck time.Time // of the clocks, monotonic
	lastWall  time.Time
	lastEnded time.Time // monotonic: certificates that have ended were looked for
	same      interned
	refused   map[string]string // bundles that cannot be used: why, by trust domain
	stopped   bool
}

// New makes a manager with cfg's blanks filled in. It holds nothing that must be closed until Run.
func New(cfg Config) *Manager {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.TTL = orDefault(cfg.TTL, defaultTTL)
	cfg.CallTimeout = orDefault(cfg.CallTimeout, defaultCallTimeout)
	cfg.Wait = orDefault(cfg.Wait, defaultWait)
	cfg.MaxInFlight = orDefault(cfg.MaxInFlight, defaultInFlight)
	cfg.MaxIdentities = orDefault(cfg.MaxIdentities, defaultIdentities)
	cfg.Burst = orDefault(cfg.Burst, defaultBurst)
	cfg.PerSecond = orDefault(cfg.PerSecond, defaultPerSecond)
	return &Manager{
		cfg:     cfg,
		src:     Source{Signer: cfg.Signer, Watcher: cfg.Watcher, Prover: cfg.Prover, Reuse: cfg.Reuse, Sample: cfg.Sample}.complete(),
		bucket:  rate.NewLimiter(rate.Limit(cfg.PerSecond), cfg.Burst),
		groups:  map[spiffeid.ID]*group{},
		noticed: map[*entry]struct{}{},
		parked:  map[*entry]struct{}{},
		wall:    func() time.Time { return time.Now().Round(0) },
		wake:    make(chan struct{}, 1),
		entries: map[key]*entry{},
		holders: map[string]map[*entry]struct{}{},
		timers:  queue{less: byDeadline},
		due:     queue{less: byPriority},
		flying:  map[key]*entry{},
		trust:   map[spiffeid.TrustDomain]*trust{},
		refused: map[string]string{},
	}
}

func orDefault[T int | time.Duration | float64](v, d T) T {
	if v <= 0 {
		return d
	}
	return v
}

// Acquire gives pod the right to use id and asks for its certificate at warm-up priority. It does not wait; a lease that
// cannot be had comes back ended, and its Err says why.
func (m *Manager) Acquire(pod Pod, id spiffeid.ID) *Lease {
	l := &Lease{m: m, pod: pod, id: id, done: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	e, err := m.ensureLocked(id, pod)
	if err != nil {
		l.endLocked(err)
		return l
	}
	l.e.Store(e)
	m.holdLocked(e, pod.UID).leases[l] = struct{}{}
	return l
}

// Streams reports whether certificates come from a Watcher: then they are a pod's own, and cannot be fetched ahead by
// their name alone.
func (m *Manager) Streams() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.src.Watcher != nil
}

// Prefetch has id's certificate ready before holder needs it, and keeps it until Forget. It gives no right to use it.
// It never blocks and is not lost, except beyond MaxIdentities. With a Watcher it does nothing: what is asked for there
// is a pod's, and holder need not be one.
func (m *Manager) Prefetch(id spiffeid.ID, holder string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.src.Watcher != nil {
		return
	}
	e, err := m.ensureLocked(id, Pod{})
	if err != nil {
		m.cfg.Log.Warn("certificate is not fetched ahead", "id", id.String(), "uid", holder, "err", err)
		return
	}
	m.holdLocked(e, holder).prefetched = true
}

// Forget ends everything that holder holds: its leases end with ErrNotNeeded, its waiting callers get the same, and
// identities that nobody else holds are dropped with their keys, requests under way included.
func (m *Manager) Forget(holder string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for e := range m.holders[holder] {
		for l := range e.holds[holder].leases {
			l.endLocked(ErrNotNeeded)
		}
		m.unholdLocked(e, holder)
	}
}

func (m *Manager) releaseLocked(l *Lease) {
	if l.Err() != nil {
		return
	}
	l.endLocked(ErrNotNeeded)
	e := l.e.Load()
	h := e.holds[l.pod.UID]
	delete(h.leases, l)
	if len(h.leases) == 0 && !h.prefetched {
		m.unholdLocked(e, l.pod.UID)
	}
}

func (m *Manager) ensureLocked(id spiffeid.ID, pod Pod) (*entry, error) {
	if m.stopped {
		return nil, ErrStopped
	}
	k := key{id: id, holder: pod.UID}
	if m.src.Watcher == nil && m.entries[k] == nil { // a pod's own is of a Watcher, or was
		k.holder = ""
	}
	if e := m.entries[k]; e != nil {
		if k.holder == "" || e.pod == pod {
			return e, nil
		}
		// The same UID in another network namespace: what was attested and proven was not this. Whoever held it is stopping.
		m.dropLocked(e, ErrNotNeeded)
		if m.src.Watcher == nil {
			k.holder = ""
			if e := m.entries[k]; e != nil {
				return e, nil
			}
		}
	}
	if len(m.entries) >= m.cfg.MaxIdentities && !m.evictLocked() {
		return nil, ErrTooMany
	}
	if k.holder == "" {
		pod = Pod{} // it is all holders'
	}
	now := time.Now()
	e := &entry{id: id, key: k, pod: pod, holds: map[string]*hold{}, prio: WarmUp, at: now, born: now, changed: make(chan struct{})}
	m.entries[k] = e
	m.joinLocked(e)
	m.timers.add(e)
	m.wakeUp()
	return e, nil
}

// evictLocked makes room by dropping the oldest identity that was only prefetched and never came.
func (m *Manager) evictLocked() bool {
	var victim *entry
	for _, e := range m.entries {
		if e.current.Load() != nil || e.leased() {
			continue
		}
		if victim == nil || e.born.Before(victim.born) {
			victim = e
		}
	}
	if victim == nil {
		return false
	}
	m.dropLocked(victim, ErrTooMany)
	return true
}

func (m *Manager) holdLocked(e *entry, holder string) *hold {
	h := e.holds[holder]
	if h == nil {
		h = &hold{leases: map[*Lease]struct{}{}}
		e.holds[holder] = h
		if m.holders[holder] == nil {
			m.holders[holder] = map[*entry]struct{}{}
		}
		m.holders[holder][e] = struct{}{}
	}
	return h
}

func (m *Manager) unholdLocked(e *entry, holder string) {
	delete(e.holds, holder)
	delete(m.holders[holder], e)
	if len(m.holders[holder]) == 0 {
		delete(m.holders, holder)
	}
	if len(e.holds) == 0 {
		m.dropLocked(e, ErrNotNeeded)
	}
}

// dropLocked takes an entry out of everything. What a call of it still brings is thrown away in land.
func (m *Manager) dropLocked(e *entry, why error) {
	for holder, h := range e.holds {
		for l := range h.leases {
			l.endLocked(why)
		}
		delete(m.holders[holder], e)
		if len(m.holders[holder]) == 0 {
			delete(m.holders, holder)
		}
	}
	clear(e.holds)
	switch e.phase {
	case resting:
		m.timers.remove(e)
	case due:
		m.due.remove(e)
	case flying:
		e.cancel()
	}
	e.phase = gone
	delete(m.noticed, e)
	m.dropEarlyLocked(e)
	if e.stream != nil {
		e.stream.cancel()
		e.stream = nil
	}
	e.unguardLocked()
	delete(m.entries, e.key)
	m.leaveLocked(e)
	e.current.Store(nil)
	m.trustLocked(e, nil, nil)
	close(e.changed)
}

// raiseLocked makes e's next request at least as urgent as p, and as early as p deserves.
func (m *Manager) raiseLocked(e *entry, p Priority, now time.Time) {
	if e.phase == gone || e.phase == flying {
		return
	}
	e.prio = max(e.prio, p)
	switch e.phase {
	case due:
		m.due.fix(e)
	case resting:
		if p < OnDemand || e.listensLocked(now) {
			return
		}
		at := now
		if early := e.lastEnd.Add(demandGap(e.failures)); early.After(at) {
			at = early
		}
		if at.Before(e.at) {
			e.at = at
			m.timers.fix(e)
		}
		m.wakeUp()
	}
}

func (m *Manager) wakeUp() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *Manager) stop() {
	m.mu.Lock()
	m.stopped = true
	for _, e := range m.entries {
		m.dropLocked(e, ErrStopped)
	}
	m.mu.Unlock()
	m.flights.Wait()
}

// Run asks for certificates until ctx ends, then ends all leases, drops all keys, waits for calls under way and
// returns nil. It may be called once.
func (m *Manager) Run(ctx context.Context) error {
	defer m.stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(m.step(ctx, time.Now()))
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
		case <-timer.C:
		}
	}
}
