package svid

import (
	"crypto/sha256"
	"crypto/x509"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
)

// bundles are roots by the trust domain that they vouch for.
type bundles = map[spiffeid.TrustDomain][]*x509.Certificate

// former is what a source of before vouched with.
type former struct {
	roots bundles
	since time.Time // monotonic, as the next
	until time.Time
}

const (
	// Certificates are replaced within, after a change of the source; few of them sooner.
	switchWithin = 30 * time.Second
	switchEach   = 10 * time.Millisecond
	maxFormer    = 4 // changes of which roots are remembered
)

// Switch has certificates come from another source from now on. What is in use stays so until the new source has given
// its own, so that no connection has to end. The roots of the old source are trusted for overlap in addition, because
// peers on other nodes may still use it; those of sources of before for no longer either. Calls under way are given up; whoever made the old source closes it.
func (m *Manager) Switch(to Source, overlap time.Duration) error {
	if err := to.Validate(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped {
		return ErrStopped
	}
	now := time.Now()
	if roots := m.rootsInUseLocked(); overlap > 0 && len(roots) > 0 {
		m.former = append(m.former, former{roots, now, now.Add(overlap)})
		m.former = m.former[max(len(m.former)-maxFormer, 0):]
	}
	m.shortenLocked(overlap)
	m.former = slices.DeleteFunc(m.former, func(f former) bool { return !f.until.After(now) })
	m.src, m.paused, m.silence = to.complete(), time.Time{}, silence{}
	m.epoch++
	clear(m.groups)
	for e := range m.parked {
		m.dropEarlyLocked(e)
	}
	clear(m.trust) // of the source of before; what it vouched with is each entry's own from now on
	within := min(switchWithin, time.Duration(len(m.entries))*switchEach)
	for _, e := range slices.Collect(maps.Values(m.entries)) {
		m.rehomeLocked(e)
	}
	for _, e := range m.entries {
		m.joinLocked(e)
		if at := now.Add(rand.N(within + 1)); e.phase == resting && at.Before(e.at) {
			e.at = at
			m.timers.fix(e)
		}
	}
	m.retrustLocked()
	m.wakeUp()
	return nil
}

// Overlap has the roots of sources of before trusted for no longer than d after their time, where they were to be trusted
// for longer.
func (m *Manager) Overlap(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shortenLocked(d)
	m.dropFormerLocked(time.Now())
}

func (m *Manager) shortenLocked(overlap time.Duration) {
	for n, f := range m.former {
		if until := f.since.Add(overlap); until.Before(f.until) {
			m.former[n].until = until
		}
	}
}

// rehomeLocked makes the entries that the new source has out of one of the old. A pod's own entry stays apart until a
// Signer has answered: what a Watcher gave one pod, or refused, is no other's, though a Signer's is for all.
func (m *Manager) rehomeLocked(e *entry) {
	if e.stream != nil {
		e.stream.cancel()
		e.stream = nil
	}
	e.unguardLocked()
	e.failures, e.borrowed, e.sampled = 0, false, false
	if e.given == nil && e.current.Load() != nil { // a Signer's
		e.given, e.roots = append([]*x509.Certificate{}, e.roots...), nil
	}
	if e.phase == flying {
		e.cancel()
	}
	if e.key.holder != "" || m.src.Watcher == nil {
		switch {
		case e.phase == due:
			m.due.fix(e) // failures count there
		case e.phase == parked && m.flying[e.key] == nil: // for an anchor
			e.phase = due
			m.due.add(e)
		}
		return
	}
	for holder, h := range e.holds {
		for l := range h.leases {
			n := m.heirLocked(e, l.pod)
			m.holdLocked(n, holder).leases[l] = struct{}{}
			l.e.Store(n)
		}
		h.leases = nil // they live on
	}
	m.dropLocked(e, ErrNotNeeded)
}

// mergeLocked makes e, for which a Signer has answered, the entry of all holders of its identity.
func (m *Manager) mergeLocked(e *entry) {
	g := m.groups[e.id]
	if g == nil {
		return
	}
	delete(m.groups, e.id)
	for f := range g.members {
		if f == e {
			continue
		}
		for holder, h := range f.holds {
			to := m.holdLocked(e, holder)
			to.prefetched = to.prefetched || h.prefetched
			for l := range h.leases {
				to.leases[l] = struct{}{}
				l.e.Store(e)
			}
			h.leases = nil
		}
		m.dropLocked(f, ErrNotNeeded)
	}
	delete(m.entries, e.key)
	e.key, e.pod = key{id: e.id}, Pod{}
	m.entries[e.key] = e
}

// heirLocked is the entry that takes e's place for pod, with what e has in use.
func (m *Manager) heirLocked(e *entry, pod Pod) *entry {
	k := key{id: e.id, holder: pod.UID}
	n := m.entries[k]
	if n == nil {
		now := time.Now()
		n = &entry{
			id: e.id, key: k, pod: pod, holds: map[string]*hold{}, prio: max(e.prio, WarmUp), at: now, born: e.born, late: e.late,
			attempts: e.attempts, lastErr: e.lastErr, changed: make(chan struct{}),
		}
		m.entries[k] = n
		m.timers.add(n)
	}
	if i := e.current.Load(); i != nil && n.current.Load() == nil {
		n.current.Store(i)
		n.given, n.from, n.by, n.proof, n.late = e.given, e.from, e.by, e.proof, e.late
		if e.notice != nil {
			m.giveNoticeLocked(n, e.notice.by, e.notice.why)
		}
	}
	return n
}

// Trust adds roots that are believed for their trust domains whatever a source says, in place of those of the last call:
// to let in peers whose source is, or will be, another one.
func (m *Manager) Trust(extra map[spiffeid.TrustDomain][]*x509.Certificate) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.extra = maps.Clone(extra)
	m.retrustLocked()
}

// rootsInUseLocked are those of all answers of the source whose certificates are in use. What one of before has given is not
// among them: it is in m.former, for as long as it is to be trusted.
func (m *Manager) rootsInUseLocked() bundles {
	out, wall := bundles{}, m.wall()
	for _, e := range m.entries {
		if e.from != m.epoch || e.valid(wall) == nil {
			continue
		}
		td := e.id.TrustDomain()
		out[td] = union(out[td], e.roots, e.given)
	}
	for td, t := range m.trust {
		out[td] = union(out[td], t.newest)
	}
	return out
}

// addedLocked is what is trusted in td beside what its source says.
func (m *Manager) addedLocked(td spiffeid.TrustDomain) []*x509.Certificate {
	all := [][]*x509.Certificate{m.extra[td]}
	for _, f := range m.former {
		all = append(all, f.roots[td])
	}
	return union(all...)
}

// trustedLocked is i with what is trusted in addition to given.
func (m *Manager) trustedLocked(i *mtls.Identity, given []*x509.Certificate) *mtls.Identity {
	added := m.addedLocked(i.ID().TrustDomain())
	if len(added) == 0 {
		return i
	}
	roots, err := mtls.NewRoots(union(given, added))
	if err != nil {
		m.cfg.Log.Error("roots are kept as the source gave them", "id", i.ID().String(), "err", err)
		return i
	}
	return i.WithRoots(roots)
}

// retrustLocked has all identities trust what they now should.
func (m *Manager) retrustLocked() {
	for td, t := range m.trust {
		if _, err := t.add(m.addedLocked(td)); err != nil {
			m.cfg.Log.Error("roots are kept as they were", "trust_domain", td.Name(), "err", err)
		}
	}
	for _, e := range m.entries {
		m.retrustOneLocked(e)
	}
	if m.cfg.RootsChanged != nil {
		m.cfg.RootsChanged()
	}
}

// retrustOneLocked has e trust what it now should: a Signer's what all of that Signer's do, one that was given roots of its
// own those and what is trusted in addition. A Signer's are so for what a source of before gave, too, but not the reverse.
func (m *Manager) retrustOneLocked(e *entry) {
	i, t := e.current.Load(), m.trust[e.id.TrustDomain()]
	signed := t != nil && t.roots != nil
	if i == nil || e.given == nil && !signed {
		return
	}
	if e.given == nil {
		e.current.Store(i.WithRoots(t.roots))
		return
	}
	added := m.addedLocked(e.id.TrustDomain())
	if signed {
		added = t.roots.Certificates()
	}
	roots, err := rootsOf(e.given, added)
	if err != nil {
		m.cfg.Log.Error("roots are kept as they were", "id", e.id.String(), "err", err)
		return
	}
	if i = i.WithRoots(roots); e.key.holder != "" { // other holders may have the same
		i = m.same.intern(i)
	}
	e.current.Store(i)
}

// dropFormerLocked ends the time of roots of before.
func (m *Manager) dropFormerLocked(now time.Time) {
	kept := slices.DeleteFunc(m.former, func(f former) bool { return !f.until.After(now) })
	if len(kept) == len(m.former) {
		return
	}
	m.former = kept
	m.retrustLocked()
	m.cfg.Log.Info("the roots of the certificate source of before are not trusted any more")
}

func union(lists ...[]*x509.Certificate) (all []*x509.Certificate) {
	seen := map[fingerprint]bool{}
	for _, list := range lists {
		for _, c := range list {
			f := fingerprint(sha256.Sum256(c.Raw))
			if !seen[f] {
				seen[f] = true
				all = append(all, c)
			}
		}
	}
	return all
}
