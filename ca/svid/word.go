package svid

import (
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
)

// distrustedWithin is how long a certificate stays in use whose root its source does not vouch for any more: the one that
// replaces it may come after the bundle.
const distrustedWithin = 30 * time.Second

// errDistrusted is why such a certificate is taken back.
var errDistrusted = errors.New("the source does not trust the certificate's root any more, and has given no other in time")

// word is what a message says to one entry: a certificate, and whom to trust.
//
// The second does not hang on the first. A root that the source takes away is not to be trusted from then on, and what
// federation ends has ended, also where the certificate that came with the news is no good; and that is how a root goes
// from under certificates that still hang from it. So trust belongs to the newest message that says something of it, and a
// certificate to the newest message in which it was good, as long as it can be shown to hang from what is trusted: without
// one that does, nobody keeps it for longer than distrustedWithin.
type word struct {
	i         *mtls.Identity      // nil: none that is good
	err       error               // why; with errEarly, i is for later
	given     []*x509.Certificate // roots of the trust domain as the source has them, not nil
	federated mtls.Federation
	told      bool // given and federated are the source's word, whatever becomes of i
	proof     Proof
}

// choose takes the identity that is wanted out of a message, and checks it. What is expired, not yet valid, or not
// its key's is an error and leaves the one in use alone; with errEarly it is returned.
func (m *Manager) choose(id spiffeid.ID, u Update) word {
	var others []string
	var best *word
	for _, s := range u.SVIDs {
		if s.ID != id {
			others = append(others, s.ID.String())
			continue
		}
		if w := m.chosen(id, s, u); best == nil || w.before(*best) {
			best = &w
		}
	}
	if best != nil {
		return *best
	}
	if len(others) > 0 {
		return word{err: fmt.Errorf("svid: %s: %w: %s", id, ErrNotEntitled, strings.Join(others[:min(len(others), 4)], ", "))}
	}
	return word{err: fmt.Errorf("svid: %s: %w", id, ErrNotEntitled)}
}

// before reports whether w is to be used rather than other: two entries of a source may give a pod one identity, in any order.
func (w word) before(other word) bool {
	rank := func(w word) int {
		switch {
		case w.err == nil:
			return 2
		case w.i != nil:
			return 1
		}
		return 0
	}
	if a, b := rank(w), rank(other); a != b || a == 0 {
		return a > b
	}
	return w.i.NotAfter().After(other.i.NotAfter())
}

func (m *Manager) chosen(id spiffeid.ID, s SVID, u Update) word {
	w := word{given: s.Roots, proof: u.Proof}
	if w.given == nil {
		w.given = []*x509.Certificate{}
	}
	// A bundle that cannot be read or used says nothing. An empty one does: all of it has been revoked.
	unread := u.Refused[id.TrustDomain().Name()]
	_, unusable := rootsOf(w.given, nil)
	w.told = unread == nil && unusable == nil
	w.i, w.err = m.inTime(id, s.Chain, func(at time.Time) (*mtls.Identity, error) {
		return mtls.NewIdentity(id, s.Key, s.Chain, s.Roots, at)
	})
	if w.i == nil {
		w.err = fmt.Errorf("svid: %w", errors.Join(w.err, unread))
	}
	if w.i == nil && !w.told {
		return w
	}
	var refused map[spiffeid.TrustDomain]error
	w.federated, refused = mtls.NewFederation(u.Federated)
	m.noteBundles(id, w.federated, refused, u.Refused)
	if w.i != nil {
		w.i = w.i.WithFederation(w.federated).WithRevocations(m.cfg.Revoked)
	}
	return w
}

// rootsOf are the roots that a source gave, and what is trusted beside: nil, which trusts nobody, where there are none. Of
// more than anyone may have those of the source count.
func rootsOf(given, added []*x509.Certificate) (*mtls.Roots, error) {
	all := union(given, added)
	if len(all) == 0 {
		return nil, nil
	}
	roots, err := mtls.NewRoots(all)
	if err != nil && len(given) > 0 && len(added) > 0 {
		return mtls.NewRoots(given)
	}
	return roots, err
}

// toldLocked has what is in use trust what the source says now. If its own root has gone with that, it is on notice; not
// so one of a source of before, which is used until the new one has given a good one.
func (m *Manager) toldLocked(e *entry, w word) {
	i := e.current.Load()
	if i == nil {
		return
	}
	roots, err := rootsOf(w.given, m.addedLocked(e.id.TrustDomain()))
	if err != nil {
		m.cfg.Log.Error("roots are kept as they were", "id", e.id.String(), "err", err)
		return
	}
	n := i.WithRoots(roots).WithFederation(w.federated)
	e.given = w.given
	if sameTrust(i, n) {
		return
	}
	e.current.Store(m.same.intern(n))
	m.trustChangedLocked(e, i, n)
	if e.from == m.epoch && orphaned(n, roots) {
		m.giveNoticeLocked(e, time.Now().Add(distrustedWithin), errDistrusted)
	}
}

// trustChangedLocked tells that peers may not be accepted any more that were.
func (m *Manager) trustChangedLocked(e *entry, old, i *mtls.Identity) {
	m.cfg.Log.Info("trust of "+e.id.String()+" changed", e.attrs("roots", len(i.Roots()), "were", len(old.Roots()), "federated", len(i.Federated()))...)
	if m.cfg.RootsChanged != nil {
		m.cfg.RootsChanged()
	}
}

// orphaned reports whether i hangs from none of roots: no peer who is told the same accepts it.
func orphaned(i *mtls.Identity, roots *mtls.Roots) bool {
	if roots == nil {
		return true
	}
	_, err := mtls.Verify(i.Chain(), roots, x509.ExtKeyUsageServerAuth, i.ReceivedAt())
	return err != nil
}

// sameTrust reports whether two identities accept the same peers.
func sameTrust(a, b *mtls.Identity) bool {
	same := func(a, b []*x509.Certificate) bool {
		return slices.EqualFunc(a, b, (*x509.Certificate).Equal)
	}
	return same(a.Roots(), b.Roots()) && maps.EqualFunc(a.Federated(), b.Federated(), same)
}
