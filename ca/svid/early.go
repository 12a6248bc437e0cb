package svid

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
)

// earlyMost is how long before its time a certificate may come and be kept for then: clocks that are further apart are
// wrong in ways that waiting does not mend.
const earlyMost = 5 * time.Minute

// errEarly is of a certificate that is good, but not yet.
var errEarly = errors.New("the certificate is not valid yet")

// early is a certificate that waits for its time: the source's clock is ahead of ours.
type early struct {
	word
	came time.Time
	s    *stream // a Watcher's
}

// InTime makes an identity of a chain that has just come, by build, which does so as of a time. One that is not valid yet,
// but will be soon, is returned with an error nevertheless, as if it had come when it is: keep it until then.
func InTime(chain []*x509.Certificate, now time.Time, build func(at time.Time) (*mtls.Identity, error)) (*mtls.Identity, error) {
	i, err := build(now)
	if err == nil {
		return i, nil
	}
	from := time.Time{}
	for _, c := range chain {
		if c.NotBefore.After(from) {
			from = c.NotBefore
		}
	}
	ahead := from.Sub(now)
	if ahead <= 0 || ahead > earlyMost {
		return nil, err
	}
	if i, later := build(from); later == nil {
		return i, fmt.Errorf("%w, but in %s: this node's clock is behind, or its source's is ahead", errEarly, ahead.Round(time.Second))
	}
	return nil, err
}

func (m *Manager) inTime(id spiffeid.ID, chain []*x509.Certificate, build func(at time.Time) (*mtls.Identity, error)) (*mtls.Identity, error) {
	i, err := InTime(chain, time.Now(), build)
	if err != nil {
		m.noteValidity(id, chain)
	}
	return i, err
}

// keepEarlyLocked keeps what will be valid. Of several that a Signer gave, the one that is so first: with a clock that is
// ahead for good each answer comes as early as the one before.
func (m *Manager) keepEarlyLocked(e *entry, next *early) {
	if e.early != nil && next.s == nil && !next.i.NotBefore().Before(e.early.i.NotBefore()) {
		return
	}
	next.came = m.wall()
	e.early = next
	m.parked[e] = struct{}{}
}

func (m *Manager) dropEarlyLocked(e *entry) {
	e.early = nil
	delete(m.parked, e)
}

// checkEarlyLocked puts to use what is valid by now, and says when to look again.
func (m *Manager) checkEarlyLocked(wall time.Time, next time.Duration) time.Duration {
	for e := range m.parked {
		if left := e.early.i.NotBefore().Sub(wall); left > 0 {
			next = min(next, left)
			continue
		}
		was := e.early
		m.dropEarlyLocked(e)
		if was.s != nil {
			was.err = nil
			was.s.takeLocked(was.word)
			continue
		}
		e.failures, e.lastErr = 0, nil
		after := m.signedLocked(e, was.i, was.given, 0)
		switch e.phase {
		case resting:
			m.timers.remove(e)
			m.restLocked(e, after, Background)
			m.mergeLocked(e)
		case due:
			m.due.fix(e) // failures count there
		}
		m.logCompleted(was.i)
		e.tellLocked()
	}
	return next
}
