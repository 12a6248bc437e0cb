package enroll

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/internal/netns"
)

// Conn is a TCP connection of a pod with somebody outside of it.
type Conn struct {
	Cookie  uint64         `json:"cookie"` // of the socket, never another's
	Local   netip.AddrPort `json:"local"`
	Remote  netip.AddrPort `json:"remote"`
	Inbound bool           `json:"inbound,omitempty"` // the pod listens on the local port
	V6      bool           `json:"v6,omitempty"`      // the socket's family
}

// Connections are those of a namespace.
type Connections interface {
	// List returns those that are alive, but for the proxy's and those that it carries,
	// and how many more there are beyond a bound.
	List(ns *netns.NS) (all []Conn, more int, err error)
	// Carried counts those that some proxy carries, be it one that was told to end.
	Carried(ns *netns.NS) (int, error)
	// Alive returns those that have not ended.
	Alive(ns *netns.NS, conns []Conn) ([]Conn, error)
	// End ends connections; those that it could not end are returned with the reason.
	End(ns *netns.NS, conns []Conn) (left []Conn, err error)
}

// Policies say which connections to a pod must not be there: plaintext, as all are
// that are older than the pod's time in the mesh.
type Policies interface {
	Denied(ctx context.Context, uid string, conns []Conn) (denied []Conn, err error)
}

const (
	// beforeAgain is how often the connections of before are looked at, of one pod.
	beforeAgain = 2 * time.Second
	askWithin   = 3 * time.Second
	// maxBeforeKept bounds what a record holds.
	maxBeforeKept = 256
)

// before are the connections that a pod had when it was taken into the mesh. They go
// on to their end outside of it, unless a policy forbids that. It is guarded by the
// enroller's mutex.
type before struct {
	conns []Conn
	more  int  // not in conns: the kernel has to be asked for them
	anew  bool // and is, as conns are not all that could be had
	found bool // by a later look, of which no record knows yet
	next  time.Time
	note  string // why it is not known whether policies allow them
}

// count is how many there are.
func (b *before) count() int { return len(b.conns) + b.more }

// any says whether there are any, or may be, or a record says so.
func (b *before) any() bool { return b.count() > 0 || b.anew || b.found }

// kept is what a record holds.
func (b *before) kept() []Conn { return b.conns[:min(len(b.conns), maxBeforeKept)] }

// noteBefore remembers the connections of a pod that is about to be captured. Those
// that the proxy has carried since an earlier time in the mesh are not among them, as
// they are not among those that are listed.
func (e *Enroller) noteBefore(m *member) {
	if e.cfg.Connections == nil {
		return
	}
	all, more, err := e.cfg.Connections.List(m.box.ns)
	e.mu.Lock()
	m.before = before{conns: all, more: more, anew: err != nil} // then they are looked for again
	e.mu.Unlock()
	if err != nil {
		e.unseen(m, err)
	}
}

// unseen says that a pod's connections cannot be looked at, once for each reason.
func (e *Enroller) unseen(m *member, err error) {
	e.mu.Lock()
	said := m.before.note == err.Error()
	m.before.note = err.Error()
	e.mu.Unlock()
	if !said {
		e.log.Warn("cannot look at a pod's connections", "pod", m.name.String(), "uid", m.uid, "err", err)
	}
}

// tend looks after the connections of before: which are left, and which a policy
// forbids.
func (e *Enroller) tend(ctx context.Context) {
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.tending = false
	}()
	e.mu.Lock()
	now := time.Now()
	var look []*member
	for _, m := range e.sortedLocked() {
		if m.box != nil && m.box.ns != nil && m.phase == PhaseEnrolled && m.before.any() && !now.Before(m.before.next) {
			m.before.next = now.Add(beforeAgain)
			m.users++
			look = append(look, m)
		}
	}
	e.mu.Unlock()
	for _, m := range look {
		if ctx.Err() == nil {
			e.tendTo(ctx, m)
			e.keepFound(m)
		}
		e.drop(m)
	}
}

func (e *Enroller) tendTo(ctx context.Context, m *member) {
	e.mu.Lock()
	var ns *netns.NS
	var r event.Redirect
	err := errGone
	if m.box != nil && m.box.ns != nil {
		ns, err = m.box.ns.Dup() // the pod may go meanwhile
		if m.box.redirect != nil {
			r = *m.box.redirect
		}
	}
	conns, anew := m.before.conns, m.before.anew
	e.mu.Unlock()
	if err != nil {
		return
	}
	defer ns.Close()
	if anew {
		if conns, err = e.listAnew(m, ns, r); err != nil {
			e.unseen(m, err)
			return
		}
	}
	alive, err := e.cfg.Connections.Alive(ns, conns)
	if err != nil {
		e.beforeIs(m, conns, alive, err.Error())
		return
	}
	denied, err := e.denied(ctx, m, alive)
	if err != nil {
		e.beforeIs(m, conns, alive, "whether policies allow them is not known: "+err.Error())
		return
	}
	if len(denied) == 0 {
		e.beforeIs(m, conns, alive, "")
		return
	}
	left, err := e.cfg.Connections.End(ns, denied)
	note := ""
	if err != nil {
		note = fmt.Sprintf("policies forbid %d of them: %v", len(left), err)
	}
	ended := func(c Conn) bool { return slices.Contains(denied, c) && !slices.Contains(left, c) }
	text := fmt.Sprintf("%d connections without mTLS that are older than the pod's time in the mesh were ended, because policies forbid them", len(denied)-len(left))
	e.log.Info("connections of before were ended", "pod", m.name.String(), "uid", m.uid, "ended", len(denied)-len(left), "left", len(left), "err", err)
	e.tell(m.name, "", NoticeStrict, text+suffix(note))
	e.beforeIs(m, conns, slices.DeleteFunc(alive, ended), note)
}

func suffix(note string) string {
	if note == "" {
		return ""
	}
	return "; " + note
}

// listAnew asks the kernel for a pod's connections of before, of which a record holds some
// only. By now there are others that are no business of the mesh's: what its rules let
// through.
func (e *Enroller) listAnew(m *member, ns *netns.NS, r event.Redirect) ([]Conn, error) {
	all, more, err := e.cfg.Connections.List(ns)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(c Conn) bool {
		peer := c.Remote.Addr()
		return peer == r.ProbeIP4 || peer == r.ProbeIP6 || c.Inbound && r.BypassInbound
	})
	e.mu.Lock()
	defer e.mu.Unlock()
	if m.before.anew { // it has not been captured anew meanwhile
		m.before.conns, m.before.more, m.before.anew, m.before.note = all, more, false, ""
		m.before.found = true
	}
	return m.before.conns, nil
}

// keepFound writes down what a later look has found, unless somebody is at work on the pod,
// whose turn it is: then it is tried again.
func (e *Enroller) keepFound(m *member) {
	e.mu.Lock()
	found := m.before.found
	e.mu.Unlock()
	if !found {
		return
	}
	select {
	case m.busy <- struct{}{}:
		defer func() { <-m.busy }()
	default:
		return
	}
	e.mu.Lock()
	var records []record
	if m.before.found && m.box != nil && m.phase == PhaseEnrolled {
		records = e.recordsLocked(m)
	}
	m.before.found = false
	e.mu.Unlock()
	if err := e.put(records); err != nil {
		e.log.Warn("cannot write down a pod's connections", "pod", m.name.String(), "uid", m.uid, "err", err)
		e.mu.Lock()
		m.before.found = m.box != nil && m.phase == PhaseEnrolled // another time
		e.mu.Unlock()
	}
}

// denied asks about the connections that somebody has made to the pod. What the pod
// has made to others is for those to forbid.
func (e *Enroller) denied(ctx context.Context, m *member, alive []Conn) ([]Conn, error) {
	inbound := slices.DeleteFunc(slices.Clone(alive), func(c Conn) bool { return !c.Inbound })
	if len(inbound) == 0 || e.cfg.Policies == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	return e.cfg.Policies.Denied(ctx, m.uid, inbound)
}

// beforeIs keeps what was found, unless the pod has been captured anew meanwhile.
func (e *Enroller) beforeIs(m *member, was, now []Conn, note string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(was) != len(m.before.conns) || len(was) > 0 && was[0] != m.before.conns[0] {
		return
	}
	m.before.conns, m.before.note = now, note
	m.before.anew = len(now) == 0 && m.before.more > 0 // those beyond the bound
}
