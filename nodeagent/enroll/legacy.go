package enroll

import (
	"context"

	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/netns"
)

// legacyLocked says whether a pod has rules of the legacy variant of iptables, of whose
// changes the kernel tells nobody.
func (m *member) legacyLocked() bool {
	return m.box != nil && m.box.redirect != nil && m.box.redirect.Backend == redirect.NameLegacy
}

// digest is what the tables of such a pod are known by; 0 for others.
func (e *Enroller) digest(m *member) uint64 {
	e.mu.Lock()
	legacy := m.legacyLocked()
	e.mu.Unlock()
	if !legacy {
		return 0
	}
	digest, err := redirect.LegacyDigest(m.box.ns)
	if err != nil {
		e.log.Debug("cannot look at a pod's tables", "pod", m.name.String(), "uid", m.uid, "err", err)
	}
	return digest
}

// compareDigests has those pods looked at whose tables have changed. It costs a quarter of
// a millisecond a pod, and no program.
func (e *Enroller) compareDigests(ctx context.Context) {
	type one struct {
		m    *member
		ns   *netns.NS
		last uint64
	}
	var all []one
	e.mu.Lock()
	for _, m := range e.members {
		if m.phase != PhaseEnrolled || !m.legacyLocked() || m.box.ns == nil || m.audit.dirty || m.audit.looking {
			continue
		}
		if ns, err := m.box.ns.Dup(); err == nil { // the pod may go meanwhile
			all = append(all, one{m, ns, m.audit.digest})
		}
	}
	e.mu.Unlock()
	changed := false
	for _, o := range all {
		if ctx.Err() == nil {
			if digest, err := redirect.LegacyDigest(o.ns); err == nil && digest != o.last {
				e.mu.Lock()
				o.m.audit.dirty = o.m.audit.dirty || o.m.audit.digest == o.last
				e.mu.Unlock()
				changed = true
			}
		}
		o.ns.Close()
	}
	if changed {
		e.nudgeInspection()
	}
	e.mu.Lock()
	e.digesting = false
	e.mu.Unlock()
}
