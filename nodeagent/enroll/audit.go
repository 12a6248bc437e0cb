package enroll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/nodeagent/zds"
)

// Watch is the audit's eyes: it tells Changed of pods in which rules or routes change,
// and is asked who listens in them.
type Watch interface {
	Watch(uid string, ns *netns.NS) error
	Forget(uid string)
	// NotListening returns the ports that nobody listens on.
	NotListening(uid string, ports ...uint16) ([]uint16, error)
}

const (
	inspectedAtOnce = 4 // pods whose rules are read side by side
	// findWait is how long the proxy is waited for with a pod that was found again.
	// The pod is busy meanwhile: its DEL must not time out over it.
	findWait = 2 * time.Second
	// A pod that changes its own rules again and again, ours aside, is looked at less
	// and less often, and after a calm at once again.
	gapMin, gapMax, calm = 100 * time.Millisecond, time.Second, 10 * time.Second
	answerWithin         = time.Second // for the proxy to take a connection
)

// Proof is what an audit has found of a pod that is in the mesh.
type Proof string

// The proofs, from the best to the worst.
const (
	ProofWhole     Proof = "proven"    // rules, listeners and an answer: all there
	ProofNone      Proof = "unproven"  // not looked at yet, or it cannot be
	ProofSilent    Proof = "silent"    // the proxy listens and does not answer
	ProofListeners Proof = "listeners" // not all listeners are there
	ProofRules     Proof = "rules"     // the rules are not those that they should be
)

// Proofs returns all of them.
func Proofs() []Proof {
	return []Proof{ProofWhole, ProofNone, ProofSilent, ProofListeners, ProofRules}
}

// audited is what the audit knows of one pod. It is guarded by the enroller's mutex.
type audited struct {
	watched   netns.ID // the namespace that Watch has; zero: none
	dirty     bool     // something has changed in it
	again     time.Time
	gap       time.Duration
	digest    uint64    // of the legacy variant's tables as they were then; 0: not known
	down      time.Time // since when the loopback is; zero: it is up, as far as is known
	looking   bool
	inspected time.Time // when rules and answer were last looked at
	unheard   bool      // the listeners were not there at the last look, if there was one
	proof     Proof     // of the last inspection; the listeners count on their own
	flaw      string    // what was wrong
}

// state is what is known now.
func (a *audited) state() (Proof, string) {
	switch {
	case a.inspected.IsZero():
		return ProofNone, "not looked at yet"
	case a.proof == ProofWhole && a.unheard:
		return ProofListeners, a.flaw
	default:
		return a.proof, a.flaw
	}
}

// Changed tells that rules or routes have changed in a pod's namespace.
func (e *Enroller) Changed(uid string) {
	e.mu.Lock()
	if m := e.members[uid]; m != nil {
		m.audit.dirty = true
	}
	e.mu.Unlock()
	e.nudgeInspection()
}

// nudgeInspection has pods looked at in which something has changed.
func (e *Enroller) nudgeInspection() {
	select {
	case e.nudge <- struct{}{}:
	default:
	}
}

// audit begins to look at the pods whose turn it is, and at all pods' listeners.
func (e *Enroller) audit() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx == nil {
		return
	}
	e.inspectLocked(time.Now())
	if e.cfg.Watch != nil && !e.listening {
		e.listening = true
		ctx := e.ctx
		e.workers.Go(func() { e.listen(ctx) })
	}
	if !e.digesting {
		e.digesting = true
		ctx := e.ctx
		e.workers.Go(func() { e.compareDigests(ctx) })
	}
	if e.cfg.Connections != nil && !e.tending {
		e.tending = true
		ctx := e.ctx
		e.workers.Go(func() { e.tend(ctx) })
	}
}

// inspectDue begins to look at pods in which something has changed.
func (e *Enroller) inspectDue() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx != nil {
		e.inspectLocked(time.Now())
	}
}

func (e *Enroller) inspectLocked(now time.Time) {
	ctx := e.ctx
	for _, m := range e.dueLocked(now) {
		m.audit.looking = true
		m.users++
		e.workers.Go(func() {
			defer e.drop(m)
			select {
			case e.inspecting <- struct{}{}:
				e.inspect(ctx, m)
				<-e.inspecting
			case <-ctx.Done():
			}
			e.mu.Lock()
			m.audit.looking = false
			e.mu.Unlock()
		})
	}
}

// dueLocked are the pods to look at now: those under suspicion, those in which
// something has changed, and of the others the ones that were not looked at for the
// longest time, as many as it takes for each to have its turn.
func (e *Enroller) dueLocked(now time.Time) (due []*member) {
	var old []*member
	in := 0
	for _, m := range e.members {
		if m.box == nil || m.phase != PhaseEnrolled && !now.Before(m.suspect) {
			continue
		}
		in++
		switch {
		case m.audit.looking:
		case now.Before(m.suspect), m.box.ns == nil, m.audit.dirty && !now.Before(m.audit.again), m.audit.inspected.IsZero():
			due = append(due, m)
		case now.Sub(m.audit.inspected) >= e.every(m):
			old = append(old, m)
		}
	}
	slices.SortFunc(old, func(a, b *member) int { return a.audit.inspected.Compare(b.audit.inspected) })
	turns := 1 + int(int64(in)*int64(e.times.Sweep)/int64(e.times.Inspect))
	return append(due, old[:min(len(old), turns)]...)
}

// every is how often a pod's turn comes when nothing is heard of it.
func (e *Enroller) every(m *member) time.Duration {
	if m.audit.watched.IsZero() || m.audit.proof != ProofWhole {
		return e.times.Sweep // as often as there are turns: nobody tells of changes, or that it is right again
	}
	return e.times.Inspect
}

// inspect verifies a pod's rules and puts them right, and sees whether the proxy
// answers in it. A pod that somebody is busy with is left for later.
func (e *Enroller) inspect(ctx context.Context, m *member) {
	select {
	case m.busy <- struct{}{}:
		defer func() { <-m.busy }()
	default:
		return
	}
	e.mu.Lock()
	in := m.box != nil && m.phase == PhaseEnrolled
	dirty := m.audit.dirty
	m.audit.dirty = false
	e.mu.Unlock()
	if !in || ctx.Err() != nil || !e.reopened(ctx, m) {
		return
	}
	going := false
	if view, _ := e.cfg.World.View(); view != nil {
		p, ok := view.Pod(m.name, m.uid)
		if going = !ok || p.Going || p.Finished; ok {
			e.letProbes(ctx, m, e.probeIPs(m, p))
		}
	}
	e.watch(m)
	if e.beingTakenDown(m) {
		return
	}
	digest := e.digest(m)
	proof, flaw, repaired := e.examine(ctx, m, going)
	if repaired || proof == ProofRules {
		digest = 0 // it has changed since, or is to
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	a := &m.audit
	a.digest = digest
	if dirty {
		if repaired || now.Sub(a.inspected) > calm {
			a.gap = 0
		}
		a.gap = min(max(2*a.gap, gapMin), gapMax)
		a.again = now.Add(a.gap)
	}
	a.inspected, a.proof, a.flaw = now, proof, flaw
}

// takenDown is how long a sandbox may have its loopback down before that is mended as
// somebody's mistake.
const takenDown = time.Second

// beingTakenDown says whether a pod has just lost its loopback, and our routes with it:
// so a runtime begins to take a sandbox away, and says DEL a moment later. Nothing goes
// around the mesh meanwhile: what is redirected has nowhere to go.
func (e *Enroller) beingTakenDown(m *member) bool {
	down := loopbackDown(m.box.ns)
	e.mu.Lock()
	defer e.mu.Unlock()
	a := &m.audit
	now := time.Now()
	switch {
	case !down:
		a.down = time.Time{}
		return false
	case a.down.IsZero():
		a.down = now
	case now.Sub(a.down) >= takenDown:
		return false
	}
	a.dirty, a.again = true, a.down.Add(takenDown)
	a.inspected, a.proof, a.flaw = now, ProofRules, "the loopback is down"
	return true
}

func loopbackDown(ns *netns.NS) (down bool) {
	_ = ns.Do(func() error { // who cannot tell does not say so
		lo, err := net.InterfaceByName("lo")
		down = err == nil && lo.Flags&net.FlagUp == 0
		return err
	})
	return down
}

// examine looks at a pod's rules, and whether a connection is answered. Of a pod that is
// going the log is told in a low voice.
func (e *Enroller) examine(ctx context.Context, m *member, going bool) (proof Proof, flaw string, repaired bool) {
	b, err := e.backend(m.box.redirect)
	if err != nil {
		e.note(m, err)
		return ProofRules, err.Error(), false
	}
	diff := verify(b, m.box.ns, *m.box.redirect)
	if diff != nil {
		began := time.Now()
		err = b.Apply(m.box.ns, rulesConfig(*m.box.redirect))
		if err == nil {
			err = verify(b, m.box.ns, *m.box.redirect)
		}
		e.cfg.Observe("repair", time.Since(began), err)
		level := slog.LevelWarn
		if going {
			level = slog.LevelDebug
		}
		e.log.Log(ctx, level, "a pod's rules were not right", "pod", m.name.String(), "uid", m.uid, "was", diff.Error(), "repaired", err == nil, "err", err)
		if err != nil {
			e.note(m, err)
			return ProofRules, err.Error(), false
		}
		repaired = true
	}
	if !e.cfg.SelfProbe {
		return ProofWhole, "", repaired
	}
	if err := answers(m.box.ns); err != nil {
		return ProofSilent, err.Error(), repaired
	}
	return ProofWhole, "", repaired
}

// reopened makes sure of a pod's namespace; the proxy is told when it was named
// without so far.
func (e *Enroller) reopened(ctx context.Context, m *member) bool {
	lost := m.box.ns == nil
	if err := e.open(ctx, m); err != nil {
		e.note(m, err)
		return false
	}
	if !lost {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, findWait)
	defer cancel()
	// Without a proxy there is nobody to tell: the next snapshot tells it.
	if err := e.announce(ctx, m); err != nil && !errors.Is(err, zds.ErrNoProxy) {
		e.closeNS(m)
		e.note(m, err)
		return false
	}
	return true
}

// watch has the pod's namespace watched.
func (e *Enroller) watch(m *member) {
	if e.cfg.Watch == nil || m.audit.watched == m.box.ns.ID() {
		return
	}
	err := e.cfg.Watch.Watch(m.uid, m.box.ns)
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil {
		m.audit.watched = netns.ID{}
		e.log.Warn("a pod's rules cannot be watched; they are looked at in turn", "pod", m.name.String(), "uid", m.uid, "err", err)
		return
	}
	m.audit.watched = m.box.ns.ID()
}

// unwatch is the opposite, for a pod that leaves or goes.
func (e *Enroller) unwatch(m *member) {
	if e.cfg.Watch != nil {
		e.cfg.Watch.Forget(m.uid)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	m.audit = audited{looking: m.audit.looking}
}

// listeners are the ports that the proxy has open in every pod, and that for DNS where
// the rules lead to it. Whether there is one is for the proxy's own setting to say.
func listeners(r *event.Redirect) []uint16 {
	ports := []uint16{redirect.PortOutbound, redirect.PortInbound, redirect.PortHBONE}
	if r != nil && r.DNS {
		ports = append(ports, redirect.PortDNS)
	}
	return ports
}

// answers makes a connection from inside a pod to the proxy's port for outbound
// ones. The proxy takes it, sees that nobody redirected it, and ends it.
func answers(ns *netns.NS) error {
	var c net.Conn
	err := ns.Do(func() (err error) {
		c, err = net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", redirect.PortOutbound), answerWithin)
		return err
	})
	if netns.IsReset(err) {
		return nil // before we had even seen that it was taken
	}
	if err != nil {
		return fmt.Errorf("a connection inside the pod to the proxy: %w", err)
	}
	defer c.Close()
	err = c.SetReadDeadline(time.Now().Add(answerWithin))
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
		return fmt.Errorf("the proxy took a connection inside the pod and did nothing with it for %s", answerWithin)
	}
	return nil // it ended it, one way or another
}
