package svid

import (
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"time"

	"github.com/warren-mesh/warren/ca/mtls"
)

type fingerprint [sha256.Size]byte

// trust is what one trust domain's identities accept of their peers: the roots of the newest answer, and those of
// every answer whose certificate is in use. During a change of roots, peers that renew early and peers that renew late
// thus go on accepting each other.
//
// It belongs to one Signer, of one epoch: an answer counts until its certificate is replaced, or has ended, or the source is
// another one.
//
// Guarded by Manager.mu.
type trust struct {
	refs   map[fingerprint]*rootRef
	order  []fingerprint // oldest first, so that dumps do not shuffle
	newest []*x509.Certificate
	added  []*x509.Certificate // whatever answers say
	roots  *mtls.Roots
}

type rootRef struct {
	cert *x509.Certificate
	uses int
}

// swap counts the roots of a new answer (nil when a certificate goes away without a successor) instead of those of the
// answer that it replaces, and reports whether the union changed.
func (t *trust) swap(old, next []*x509.Certificate) (bool, error) {
	before := slices.Clone(t.order)
	if next != nil {
		t.retain(next)
		t.retain(next) // once as an answer in use, once as the newest
		t.release(t.newest)
		t.newest = next
	}
	t.release(old)
	if slices.Equal(before, t.order) || len(t.order) == 0 {
		return false, nil
	}
	return t.rebuild()
}

// add has certs trusted whatever answers say, in place of those of the last call.
func (t *trust) add(certs []*x509.Certificate) (bool, error) {
	t.added = certs
	if len(t.order) == 0 {
		return false, nil
	}
	return t.rebuild()
}

func (t *trust) rebuild() (bool, error) {
	all := make([]*x509.Certificate, len(t.order))
	for i, f := range t.order {
		all[i] = t.refs[f].cert
	}
	roots, err := mtls.NewRoots(union(all, t.added))
	if err != nil {
		// More roots than anyone may have: the newest answer alone is the truth.
		if roots, err = mtls.NewRoots(t.newest); err != nil {
			return false, err
		}
	}
	t.roots = roots
	return true, nil
}

func (t *trust) retain(certs []*x509.Certificate) {
	for _, c := range certs {
		f := fingerprint(sha256.Sum256(c.Raw))
		r := t.refs[f]
		if r == nil {
			r = &rootRef{cert: c}
			t.refs[f] = r
			t.order = append(t.order, f)
		}
		r.uses++
	}
}

func (t *trust) release(certs []*x509.Certificate) {
	for _, c := range certs {
		f := fingerprint(sha256.Sum256(c.Raw))
		r := t.refs[f]
		if r == nil {
			continue
		}
		if r.uses--; r.uses == 0 {
			delete(t.refs, f)
			t.order = slices.DeleteFunc(t.order, func(o fingerprint) bool { return o == f })
		}
	}
}

// dropEndedLocked counts the roots of answers no more whose certificates have ended without a successor: an identity that
// its CA refuses must not keep all others trusting a root that has gone.
func (m *Manager) dropEndedLocked(now time.Time) {
	if now.Sub(m.lastEnded) < clockCheck {
		return
	}
	m.lastEnded = now
	wall := m.wall()
	for _, e := range m.entries {
		if e.roots != nil && e.current.Load() != nil && e.valid(wall) == nil {
			m.trustLocked(e, nil, nil)
		}
	}
}
