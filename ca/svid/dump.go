package svid

import (
	"cmp"
	"maps"
	"slices"
)

// Dump lists all identities held, sorted. It is a snapshot.
func (m *Manager) Dump() []State {
	m.mu.Lock()
	defer m.mu.Unlock()
	wall := m.wall()
	out := make([]State, 0, len(m.entries))
	for _, e := range m.entries {
		s := State{
			ID:          e.id,
			Holder:      e.key.holder,
			Pod:         e.pod,
			By:          e.by,
			Proof:       e.proof,
			Condition:   Initializing,
			Identity:    e.valid(wall),
			Holders:     slices.Sorted(maps.Keys(e.holds)),
			Priority:    e.prio,
			InFlight:    e.phase == flying,
			NextRefresh: e.at.Round(0),
			Failures:    e.failures,
			LastErr:     e.lastErr,
		}
		if e.notice != nil {
			s.Until = e.notice.by.Round(0)
		}
		switch {
		case s.Identity != nil:
			s.Condition = Available
		case e.lastErr != nil || e.current.Load() != nil:
			s.Condition = Unavailable
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b State) int {
		return cmp.Or(cmp.Compare(a.ID.String(), b.ID.String()), cmp.Compare(a.Holder, b.Holder))
	})
	return out
}
