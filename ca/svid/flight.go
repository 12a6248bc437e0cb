package svid

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/time/rate"

	"github.com/warren-mesh/warren/ca/mtls"
)

// fly is one request from key to answer.
func (m *Manager) fly(ctx context.Context, from Signer, e *entry, p Priority) {
	start := m.started(e, p)
	i, roots, err := m.request(ctx, from, e.id)
	took := time.Since(start)
	if ctx.Err() != nil && err != nil {
		err = fmt.Errorf("%w: %w", ErrSilent, err)
	}
	m.finished(e, p, took, i, m.land(e, i, roots, took, err))
}

func (m *Manager) started(e *entry, p Priority) time.Time {
	m.cfg.Log.Info("Certificate rotation started for "+e.id.String(), m.attrs(e, "priority", p.String())...)
	if m.cfg.Observer != nil {
		m.cfg.Observer.Started(e.id, p)
	}
	return time.Now()
}

func (m *Manager) finished(e *entry, p Priority, took time.Duration, i *mtls.Identity, err error) {
	if m.cfg.Observer != nil {
		m.cfg.Observer.Finished(e.id, p, took, err)
	}
	switch {
	case errors.Is(err, ErrNotNeeded):
		m.cfg.Log.Info("Certificate rotation dropped for "+e.id.String(), m.attrs(e, "err", err)...)
	case err != nil:
		m.cfg.Log.Warn("Certificate rotation failed for "+e.id.String(), m.attrs(e, "took", took, "err", err)...)
	default:
		m.logCompleted(i, m.attrs(e, "took", took)...)
	}
}

// attrs is the entry's, for those that do not hold the lock: an entry may become that of all pods meanwhile.
func (m *Manager) attrs(e *entry, args ...any) []any {
	m.mu.Lock()
	defer m.mu.Unlock()
	return e.attrs(args...)
}

func (m *Manager) logCompleted(i *mtls.Identity, more ...any) {
	m.cfg.Log.Info("Certificate rotation completed for "+i.ID().String(), append(more,
		"serial", i.Chain()[0].SerialNumber.Text(16), "expires", i.NotAfter().UTC().Format(time.RFC3339))...)
}

// request makes the key, has it certified and checks the answer against its own roots. With errEarly it returns the
// identity nevertheless.
func (m *Manager) request(ctx context.Context, from Signer, id spiffeid.ID) (*mtls.Identity, []*x509.Certificate, error) {
	if from == nil {
		return nil, nil, &PermanentError{Err: errors.New("svid: no certificate source is configured")}
	}
	key, csr, err := newRequest(id)
	if err != nil {
		return nil, nil, fmt.Errorf("svid: %w", err)
	}
	requested := m.wall()
	answer, err := from.Sign(ctx, id, csr, m.cfg.TTL)
	if err != nil {
		return nil, nil, err
	}
	chain, roots, err := parseChain(id, answer)
	if err != nil {
		return nil, nil, fmt.Errorf("svid: %w", err)
	}
	i, err := m.inTime(id, chain, func(at time.Time) (*mtls.Identity, error) {
		return mtls.NewIssued(id, key, chain, roots, requested, at)
	})
	if i == nil {
		return nil, nil, fmt.Errorf("svid: %w", err)
	}
	return i.WithRevocations(m.cfg.Revoked), roots, err
}

// land puts a request's result, which took so long, to use and plans the next one. It returns err, or ErrNotNeeded if
// nobody wants the result any more.
func (m *Manager) land(e *entry, i *mtls.Identity, roots []*x509.Certificate, took time.Duration, err error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.wakeUp()
	if !m.landedLocked(e, err) {
		return ErrNotNeeded
	}
	m.heardLocked(e, err)
	if err == nil {
		e.failures = 0
		m.speedUpLocked()
		m.restLocked(e, m.signedLocked(e, i, roots, took), Background)
		m.mergeLocked(e)
	} else {
		if i != nil {
			m.keepEarlyLocked(e, &early{word: word{i: i, given: roots}})
		}
		e.fails()
		m.failedLocked(e, err)
	}
	e.tellLocked()
	return err
}

// signedLocked puts a Signer's answer to use and says when to ask for the next.
func (m *Manager) signedLocked(e *entry, i *mtls.Identity, roots []*x509.Certificate, took time.Duration) time.Duration {
	after := refreshAfter
	if e.by == "" {
		after = firstRefreshAfter
	}
	e.by, e.given, e.from = BySigning, nil, m.epoch
	m.clearNoticeLocked(e)
	m.dropEarlyLocked(e)
	m.trustLocked(e, i, roots)
	left := life(i)
	e.late = time.Now().Add(left * 3 / 4)
	// The next answer takes as long, and must arrive while this certificate is good: certificates of ten seconds from a CA
	// that needs three would otherwise be replaced as they end.
	return after(max(left-took, left/4))
}

// landedLocked notes the end of a call, and reports whether anybody still wants its result.
func (m *Manager) landedLocked(e *entry, err error) bool {
	e.cancel()
	delete(m.flying, e.key)
	if e.failed {
		m.failing--
	}
	if g := m.groups[e.id]; g != nil && m.src.Watcher == nil {
		m.unparkLocked(g)
	}
	if e.phase == gone {
		if n := m.entries[e.key]; n != nil && n.phase == parked {
			n.phase = due
			m.due.add(n)
		}
		return false
	}
	if e.epoch != m.epoch { // of a source that is not asked any more
		m.restLocked(e, 0, max(e.prio, WarmUp))
		return false
	}
	e.attempts++
	e.lastEnd = time.Now()
	e.lastErr = err
	return true
}

// noteValidity counts what a source sends outside of its time.
func (m *Manager) noteValidity(id spiffeid.ID, chain []*x509.Certificate) {
	if len(chain) == 0 || m.cfg.Observer == nil {
		return
	}
	switch wall := m.wall(); {
	case wall.After(chain[0].NotAfter):
		m.cfg.Observer.Noted(id, ServedExpired)
	case wall.Before(chain[0].NotBefore):
		m.cfg.Observer.Noted(id, ServedEarly)
	}
}

// tellLocked wakes those that wait for the entry to change.
func (e *entry) tellLocked() {
	close(e.changed)
	e.changed = make(chan struct{})
}

func (m *Manager) failedLocked(e *entry, err error) {
	var busy *RetryAfterError
	if errors.As(err, &busy) {
		m.slowDownLocked(busy.After)
	}
	wall := m.wall()
	p, left := WarmUp, time.Duration(0)
	if i := e.valid(wall); i != nil {
		p, left = Background, i.NotAfter().Sub(wall)
		if e.notice != nil {
			p, left = OnDemand, min(left, time.Until(e.notice.by))
		}
	}
	m.restLocked(e, retryAfter(e.failures, left), p)
}

// slowDownLocked honours a source's wish: nothing is asked before after, and then half as fast as until now. Calls that
// were under way at that moment bring the same wish, which counts once.
func (m *Manager) slowDownLocked(after time.Duration) {
	now := time.Now()
	if !m.paused.After(now) {
		m.bucket.SetLimitAt(now, max(m.bucket.Limit()/2, slowest))
		m.bucket.AllowN(now, max(int(m.bucket.TokensAt(now)), 0)) // what was saved up is not for it
	}
	if until := now.Add(min(after, pauseMax)); until.After(m.paused) {
		m.paused = until
	}
}

// speedUpLocked is what an answer does to the rate.
func (m *Manager) speedUpLocked() {
	full := rate.Limit(m.cfg.PerSecond)
	if limit := m.bucket.Limit(); limit < full {
		m.bucket.SetLimitAt(time.Now(), min(limit+full/100, full))
	}
}

// life is counted from receipt: CAs back-date, and half of the lifetime in the certificate may be long past when a
// short-lived one arrives.
func life(i *mtls.Identity) time.Duration {
	from := i.ReceivedAt()
	if i.NotBefore().After(from) {
		from = i.NotBefore()
	}
	return i.NotAfter().Sub(from)
}

// trustLocked has e use i, counts roots as those of its certificate, or none when e goes with nil, and gives every
// identity of the trust domain the new union if it changed. Nobody sees i before it has that: whoever judged peers by the
// roots of one answer would cut off all those of a source of before.
func (m *Manager) trustLocked(e *entry, i *mtls.Identity, roots []*x509.Certificate) {
	td := e.id.TrustDomain()
	t := m.trust[td]
	if t == nil {
		if roots == nil {
			if i != nil {
				e.current.Store(i)
			}
			return
		}
		t = &trust{refs: map[fingerprint]*rootRef{}, added: m.addedLocked(td)}
		m.trust[td] = t
	}
	before := len(t.roots.Certificates())
	changed, err := t.swap(e.roots, roots)
	e.roots = roots
	if changed {
		m.cfg.Log.Info("trusted roots changed", "trust_domain", td.Name(), "roots", len(t.roots.Certificates()), "were", before)
	}
	if err != nil {
		m.cfg.Log.Error("roots are kept as they were", "id", e.id.String(), "err", err)
	}
	if i != nil {
		if t.roots != nil {
			i = i.WithRoots(t.roots)
		}
		e.current.Store(i)
	}
	if !changed && roots != nil { // as nearly always
		return
	}
	if changed && m.cfg.RootsChanged != nil {
		defer m.cfg.RootsChanged()
	}
	others := false
	for _, o := range m.entries {
		if o.id.TrustDomain() != td {
			continue
		}
		others = true
		if changed && (o != e || i == nil) {
			m.retrustOneLocked(o)
		}
	}
	if !others {
		delete(m.trust, td) // the newest answer's roots go with the last identity
	}
}
