package svid

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Reuse says what a pod may do with a certificate that a Watcher gave another pod of the same identity and node.
//
// The source may decide by facts that nobody here looks at: a container's image or its signature, a pod's labels. A pod of
// the same service account that it would refuse then rides on the word for another: at Confirm for ConfirmWithin, at Local
// until its end. The proof keeps everybody else out at every level: who uses an identity was shown to be a process of the
// pod that has it, in that pod's network namespace.
type Reuse string

// The levels.
const (
	// Strict: nothing. A stream a pod; what is equal is held once.
	Strict Reuse = "strict"
	// Confirm: a pod that is proven uses it at once, and its own stream has to say the same within ConfirmWithin.
	Confirm Reuse = "confirm"
	// Local: a pod that is proven uses it as long as the proof holds. One stream an identity, its anchor's; a sample of
	// the pods is asked for all the same, so that a source that sees them as different is noticed.
	Local Reuse = "local"
)

// ConfirmWithin is how long a pod uses another one's certificate, at Confirm, without being given its own.
const ConfirmWithin = 30 * time.Second

const (
	// endGrace is how long a pod keeps its certificate when the process by which it was attested has ended: containers
	// are started again.
	endGrace = 15 * time.Second
	// anchorGrace is how long certificates are used whose anchor is gone, until another one is confirmed.
	anchorGrace   = 2 * time.Minute
	defaultSample = 5
)

// Reasons why a certificate that was in use is taken back by us.
var (
	errUnconfirmed = errors.New("the source did not confirm in time that the pod may use the identity")
	errNoAnchor    = errors.New("no pod of the identity is attested any more")
)

// Prover proves here, without asking the source, that a pod is who the node agent says.
type Prover interface {
	// Prove returns what was proven, and a channel that is closed when that does not hold any more, or ctx has ended.
	Prove(ctx context.Context, pod Pod) (p Proof, ended <-chan struct{}, err error)
}

// Validate says what is missing for the level that is wanted.
func (s Source) Validate() error {
	switch s.Reuse {
	case "", Strict:
		return nil
	case Confirm, Local:
		if s.Watcher == nil || s.Prover == nil {
			return fmt.Errorf("svid: reuse level %s needs a source that can prove pods on this node", s.Reuse)
		}
		return nil
	}
	return fmt.Errorf("svid: reuse level %q: want %s, %s or %s", s.Reuse, Strict, Confirm, Local)
}

func (s Source) complete() Source {
	if s.Reuse == "" || s.Validate() != nil { // fail to the level that is always right
		s.Reuse = Strict
	}
	if s.Sample == 0 {
		s.Sample = defaultSample
	}
	return s
}

// group is the entries of one identity, where they may use each other's certificate, and where they become one as soon
// as a Signer has answered. Guarded by Manager.mu.
type group struct {
	members map[*entry]struct{}
	anchor  *entry    // at Local: whose stream speaks for all
	frozen  time.Time // at Local: until then what is in use stays, though the anchor is not confirmed; zero: it is
}

// role is what an entry's next flight does.
type role uint8

const (
	asks    role = iota // the source
	follows             // what another one was given
	waits               // for the anchor's first word, or a Signer's
)

func (m *Manager) joinLocked(e *entry) {
	if m.src.Watcher == nil {
		m.joinApartLocked(e)
		return
	}
	if m.src.Reuse == Strict {
		return
	}
	e.sampled = m.src.Reuse == Local && rand.N(100) < m.src.Sample
	m.groupLocked(e.id).members[e] = struct{}{}
}

// joinApartLocked groups what a Watcher gave pods of an identity with what a Signer will give all of them.
func (m *Manager) joinApartLocked(e *entry) {
	if e.key.holder == "" && m.groups[e.id] == nil {
		return // as nearly always
	}
	g := m.groupLocked(e.id)
	g.members[e] = struct{}{}
	if shared := m.entries[key{id: e.id}]; shared != nil {
		g.members[shared] = struct{}{}
	}
}

func (m *Manager) groupLocked(id spiffeid.ID) *group {
	g := m.groups[id]
	if g == nil {
		g = &group{members: map[*entry]struct{}{}}
		m.groups[id] = g
	}
	return g
}

func (m *Manager) leaveLocked(e *entry) {
	g := m.groups[e.id]
	if g == nil {
		return
	}
	delete(g.members, e)
	if len(g.members) == 0 {
		delete(m.groups, e.id)
	} else if g.anchor == e {
		m.succeedLocked(g)
	}
}

func (m *Manager) roleLocked(e *entry) role {
	g, wall := m.groups[e.id], m.wall()
	switch {
	case g == nil:
		return asks
	case m.src.Watcher == nil:
		for _, f := range m.flying {
			if f.id == e.id && f.epoch == m.epoch {
				return waits
			}
		}
		return asks
	case m.src.Reuse == Confirm:
		if !e.borrowed && e.valid(wall) == nil && m.lenderLocked(g, wall) != nil {
			return follows
		}
		return asks
	case g.anchor == nil || g.anchor == e:
		g.anchor = e
		return asks
	case e.sampled:
		return asks
	case !m.lendsLocked(g.anchor, wall):
		return waits
	}
	return follows
}

// lendsLocked reports whether others may use what e has: what the source of before gave it is its own alone.
func (m *Manager) lendsLocked(e *entry, wall time.Time) bool {
	return e.from == m.epoch && e.valid(wall) != nil
}

// lenderLocked is a member that was given the identity itself, and holds it.
func (m *Manager) lenderLocked(g *group, wall time.Time) *entry {
	for e := range g.members {
		if e.by == ByStream && e.notice == nil && m.lendsLocked(e, wall) {
			return e
		}
	}
	return nil
}

// lentLocked is what e may use of another one's, nil if nothing.
func (m *Manager) lentLocked(e *entry) *entry {
	g, wall := m.groups[e.id], m.wall()
	switch {
	case g == nil:
		return nil
	case m.src.Reuse == Confirm:
		return m.lenderLocked(g, wall)
	case g.anchor != nil && g.anchor != e && m.lendsLocked(g.anchor, wall):
		return g.anchor
	}
	return nil
}

// follow stands in for a Watcher's Watch: it gives the pod what another one was given, and lasts while the proof holds.
// What comes later is passed on by shareLocked.
func (m *Manager) follow(ctx context.Context, prover Prover, s *stream) error {
	proof, ended, err := prover.Prove(ctx, s.e.pod)
	if err != nil {
		return err
	}
	m.mu.Lock()
	from := m.lentLocked(s.e)
	if from != nil {
		s.takeLocked(word{i: from.current.Load(), given: from.given, proof: proof})
		if n := from.notice; n != nil && s.e.stream == s {
			m.giveNoticeLocked(s.e, n.by, n.why) // lent for as long as the lender has it
		}
	}
	m.mu.Unlock()
	if from == nil {
		return errNoAnchor
	}
	select {
	case <-ended:
	case <-ctx.Done():
	}
	return cmp.Or(ctx.Err(), ErrProcessEnded)
}

// shareLocked has others follow what the source has said to e itself.
func (m *Manager) shareLocked(e *entry, w word) {
	g := m.groups[e.id]
	if g == nil {
		return
	}
	taken := errors.Is(w.err, ErrNotEntitled)
	if g.anchor != e {
		if taken && e.sampled && g.anchor != nil && m.lendsLocked(g.anchor, m.wall()) {
			m.noteLocked(e.id, Disagreed)
			m.cfg.Log.Error("the source refuses a pod what another pod of its identity has: reuse level local is wrong here, set strict",
				"id", e.id.String(), "uid", e.pod.UID, "pod", e.pod.Namespace+"/"+e.pod.Name)
		}
		if taken && m.src.Reuse == Confirm && m.lenderLocked(g, m.wall()) == nil {
			m.takeBackLocked(g, w.err)
		}
		return
	}
	switch {
	case w.err == nil:
		g.frozen = time.Time{}
		for f := range g.members {
			if f != e && f.stream != nil && f.stream.follows {
				f.stream.takeLocked(word{i: w.i, given: w.given, proof: f.proof})
			}
		}
	case taken:
		// What is taken back from the one who speaks for all is taken back from all; each may ask anew.
		g.anchor, g.frozen = nil, time.Time{}
		m.takeBackLocked(g, w.err)
	case w.told:
		for f := range g.members {
			if f != e && f.stream != nil && f.stream.follows {
				m.toldLocked(f, w)
			}
		}
	}
	m.unparkLocked(g)
}

// takeBackLocked ends what followers use.
func (m *Manager) takeBackLocked(g *group, why error) {
	for f := range g.members {
		if f.stream != nil && f.stream.follows {
			f.stream.cancel()
			f.stream = nil
			m.dropCertLocked(f, why)
			m.soonLocked(f)
		}
	}
}

// resignLocked has another member try, where the anchor's flight brought nothing.
func (m *Manager) resignLocked(e *entry) {
	g := m.groups[e.id]
	if g == nil || g.anchor != e {
		return
	}
	if !m.lendsLocked(e, m.wall()) {
		g.anchor = nil
	}
	m.unparkLocked(g)
}

func (m *Manager) unparkLocked(g *group) {
	for f := range g.members {
		if f.phase == parked && m.flying[f.key] == nil {
			f.phase = due
			m.due.add(f)
		}
	}
}

// succeedLocked makes another member the anchor: the oldest that holds the identity, whose stream is opened while it
// still uses what it has. Until it has been given the identity itself, all of them are on notice.
func (m *Manager) succeedLocked(g *group) {
	g.anchor = nil
	if m.src.Reuse != Local || m.stopped {
		return
	}
	now, wall := time.Now(), m.wall()
	if other := m.lenderLocked(g, wall); other != nil { // of the sample
		g.anchor, g.frozen = other, time.Time{}
		return
	}
	g.frozen = now.Add(anchorGrace)
	for f := range g.members {
		if f.stream == nil || !f.stream.follows {
			continue
		}
		m.giveNoticeLocked(f, g.frozen, errNoAnchor)
		if f.phase == resting && f.valid(wall) != nil && (g.anchor == nil || f.born.Before(g.anchor.born)) {
			g.anchor = f
		}
	}
	if g.anchor != nil {
		m.soonLocked(g.anchor)
	}
	m.unparkLocked(g)
}

// followedLocked plans what comes after the first word of a flight that followed.
func (m *Manager) followedLocked(s *stream) {
	g := m.groups[s.e.id]
	switch {
	case m.src.Reuse == Confirm:
		m.restLocked(s.e, 0, WarmUp) // now its own
	case g != nil && g.anchor == nil:
		m.restLocked(s.e, 0, OnDemand) // to be the anchor
	default:
		s.restLocked()
	}
}
