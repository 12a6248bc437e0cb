package svid

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// notice is that a certificate in use will be taken back unless its source confirms it before.
type notice struct {
	by  time.Time // monotonic
	why error
}

// giveNoticeLocked puts e on notice; an earlier end stays.
func (m *Manager) giveNoticeLocked(e *entry, by time.Time, why error) {
	if e.notice != nil && e.notice.by.Before(by) || e.current.Load() == nil {
		return
	}
	m.cfg.Log.Info("the certificate for "+e.id.String()+" will be taken back unless it is confirmed", e.attrs("within", time.Until(by).Round(time.Second).String(), "err", why)...)
	e.notice = &notice{by: by, why: why}
	m.noticed[e] = struct{}{}
	m.wakeUp()
}

func (m *Manager) clearNoticeLocked(e *entry) {
	e.notice = nil
	delete(m.noticed, e)
}

// checkNoticesLocked takes back what was not confirmed, and says when to look again.
func (m *Manager) checkNoticesLocked(now time.Time, next time.Duration) time.Duration {
	for e := range m.noticed {
		left := e.notice.by.Sub(now)
		if left > 0 {
			next = min(next, left)
			continue
		}
		why := e.notice.why
		if why == errUnconfirmed {
			m.noteLocked(e.id, Unconfirmed)
		}
		m.dropCertLocked(e, why)
		if e.stream != nil && e.stream.follows {
			e.stream.cancel()
			e.stream = nil
		}
		m.soonLocked(e)
		e.tellLocked()
	}
	return next
}

// soonLocked brings e's next flight forward to now.
func (m *Manager) soonLocked(e *entry) {
	if e.phase != resting {
		return
	}
	e.at, e.prio = time.Now(), max(e.prio, WarmUp)
	m.timers.fix(e)
	m.wakeUp()
}

func (m *Manager) noteLocked(id spiffeid.ID, what Note) {
	if m.cfg.Observer != nil {
		m.cfg.Observer.Noted(id, what)
	}
}
