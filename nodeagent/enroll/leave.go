package enroll

import (
	"context"
	"errors"
	"time"

	"github.com/warren-mesh/warren/cni/redirect"
)

// errChangedMind ends a leave that is no longer wanted.
var errChangedMind = errors.New("the pod is to stay in the mesh after all")

const (
	flowPoll     = 250 * time.Millisecond // between questions to the proxy
	carriedAgain = time.Second            // between those to the kernel, of one pod
)

// leave takes a running pod out without breaking what the proxy carries for it,
// as far as the deadline allows.
func (e *Enroller) leave(ctx context.Context, m *member, p Pod) error {
	if e.isRetired() != "" && e.takesOver() {
		defer e.isLet(m)
		return e.giveBack(ctx, m, p)
	}
	b, err := e.let(ctx, m, p)
	if err != nil {
		return err
	}
	if err := e.drain(ctx, m); err != nil {
		return err
	}
	if err := e.allLet(ctx); err != nil {
		return err
	}
	if err := e.withdraw(ctx, m); err != nil {
		return err
	}
	if err := e.rulesWork(ctx, func() error { return b.Remove(m.box.ns) }); err != nil {
		return err
	}
	return e.left(ctx, m, p)
}

// let ends the capture of a pod's new connections, which gives it its network back
// whatever becomes of the rest.
func (e *Enroller) let(ctx context.Context, m *member, p Pod) (b redirect.Backend, err error) {
	defer e.isLet(m)
	e.mu.Lock()
	m.unmark = true
	e.mu.Unlock()
	if err := e.setPhase(m, PhaseLeaving, p.Eligible.Reason); err != nil {
		return nil, err
	}
	if err := e.open(ctx, m); err != nil {
		return nil, err
	}
	if b, err = e.backend(m.box.redirect); err != nil {
		return nil, err
	}
	return b, e.rulesWork(ctx, func() error { return e.stopCapture(m, b) })
}

// isLet notes that a pod's capture was ended, or cannot be now: others do not wait for it.
func (e *Enroller) isLet(m *member) {
	e.mu.Lock()
	defer e.mu.Unlock()
	m.let = true
}

// allLet waits, when the mesh leaves this node, until every pod has its network back: the
// agent's time may be over before all of them are done.
func (e *Enroller) allLet(ctx context.Context) error {
	poll := time.NewTicker(retirePoll)
	defer poll.Stop()
	enough := time.After(letWithin) // one may be waiting for another attempt
	for e.isRetired() != "" && e.unlet() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-enough:
			return nil
		case <-poll.C:
		}
	}
	return nil
}

// unlet says whether there is a pod of which nobody has tried to end the capture.
func (e *Enroller) unlet() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range e.members {
		if m.box != nil && m.phase.served() && !m.let {
			return true
		}
	}
	return false
}

// left makes a pod one outside the mesh, with nothing of ours in it.
func (e *Enroller) left(ctx context.Context, m *member, p Pod) error {
	e.stopProbes(ctx, m)
	e.unwatch(m)
	e.setRedirect(m, nil, p)
	e.mu.Lock()
	m.before, m.box.theirs, m.let = before{}, "", false
	e.mu.Unlock()
	e.closeNS(m)
	return e.setPhase(m, PhaseLeft, p.Eligible.Reason)
}

// stopCapture ends the capture of new connections. A pod that another mesh has left
// behind is taken over first, so that its rules go as well.
func (e *Enroller) stopCapture(m *member, b redirect.Backend) error {
	ns := m.box.ns
	if !m.announced {
		theirs, err := b.Foreign(ns)
		if err != nil {
			return err
		}
		if len(theirs) > 0 {
			if _, err := redirect.TakeOver(b, ns, rulesConfig(*m.box.redirect)); err != nil {
				return err
			}
		}
	}
	return b.StopCapture(ns)
}

// giveBack hands a pod to Istio's agent, which is at work on this node, because the
// mesh leaves it: Istio's rules in the place of ours, the annotation as it is, and the
// proxy goes on with what it carries until it ends.
func (e *Enroller) giveBack(ctx context.Context, m *member, p Pod) error {
	if err := e.open(ctx, m); err != nil {
		return err
	}
	b, err := e.backend(m.box.redirect)
	if err != nil {
		return err
	}
	err = e.rulesWork(ctx, func() error { return redirect.GiveBack(b, m.box.ns, rulesConfig(*m.box.redirect), m.box.theirs) })
	if err != nil {
		return err
	}
	e.log.Info("a pod was given back to Istio", "pod", m.name.String(), "uid", m.uid)
	return e.left(ctx, m, p)
}

// drain waits until nobody can take the pod for one in the mesh any more, and the
// proxy carries nothing for it, or the deadline.
func (e *Enroller) drain(ctx context.Context, m *member) error {
	poll := time.NewTicker(flowPoll)
	defer poll.Stop()
	d := draining{times: e.times, began: time.Now()}
	for {
		view, changed := e.cfg.World.View()
		var p Pod
		if view != nil {
			p, _ = view.Pod(m.name, m.uid)
		}
		if e.isRetired() != "" {
			d.times.Drain, d.times.Linger = retireGrace, 0
			p.Finished = true // nobody is waited for
		} else if p.Eligible.InMesh {
			return errChangedMind
		}
		d.hear(time.Now(), p)
		n, err := e.flows(ctx, m, d.heard)
		now := time.Now()
		if n, err = e.carried(m, &d, now, n, err); d.over(now, n, err) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		case <-poll.C:
		}
	}
}

// draining is how far a pod's connections have come to their ends.
type draining struct {
	times    Times
	began    time.Time // no later connection is captured
	unmarked time.Time // since when others can know that the pod leaves; zero: they cannot
	heard    time.Time // since when nobody takes it for one in the mesh; zero: somebody may
	blind    time.Time // since when it is not known how many there are; zero: it is
	look     time.Time // not before, the kernel is asked what is carried
	bound    int       // what it has said
	told     bool      // that it has said so
}

// hear says whether others have heard by now that the pod leaves.
func (d *draining) hear(now time.Time, p Pod) {
	if p.Marked == "" && d.unmarked.IsZero() {
		d.unmarked = now
	}
	if d.heard.IsZero() && (p.Finished || !d.unmarked.IsZero() && now.Sub(d.unmarked) >= d.times.Linger || now.Sub(d.began) >= lingerAtMost) {
		d.heard, d.look = now, time.Time{}
	}
}

// over says whether a pod need not be served any more: n connections are carried, or
// err says why that is not known. They are those since others have heard, for what came
// before may not have been all.
func (d *draining) over(now time.Time, n int, err error) bool {
	if err == nil {
		d.blind = time.Time{}
	} else if d.blind.IsZero() {
		d.blind = now
	}
	switch {
	case d.late(now):
		return true
	case err != nil:
		return now.Sub(d.blind) >= d.times.Blind
	default:
		return n == 0 && !d.heard.IsZero()
	}
}

// late says whether the time for connections to end is over.
func (d *draining) late(now time.Time) bool {
	return d.times.Drain >= 0 && now.Sub(d.began) >= d.times.Drain
}

// carried is how many connections of a pod proxies carry, where the one that answers says n,
// or cannot say. Then the kernel is asked: another proxy that was told to end answers
// nobody, and goes on with what it has, which would be reset with the last of our rules;
// and a newer one that is not ready yet, or keeps crashing, has taken its place.
func (e *Enroller) carried(m *member, d *draining, now time.Time, n int, err error) (int, error) {
	if e.cfg.Connections == nil || d.late(now) || err == nil && (n > 0 || d.heard.IsZero()) {
		return n, err
	}
	if now.Before(d.look) {
		return d.bound, nil
	}
	bound, unknown := e.cfg.Connections.Carried(m.box.ns)
	if unknown != nil { // what the proxy says has to do
		return n, err
	}
	if bound > 0 && !d.told {
		e.log.Info("a proxy that ends still carries connections of a leaving pod", "pod", m.name.String(), "uid", m.uid, "connections", bound, "err", err)
		d.told = true
	}
	d.look, d.bound = now.Add(carriedAgain), bound
	return bound, nil
}

// lingerAtMost is how long a pod is served without a connection because its mark
// does not go.
const lingerAtMost = time.Minute

// flows counts what the proxy carries for a pod, not before since.
func (e *Enroller) flows(ctx context.Context, m *member, since time.Time) (int, error) {
	e.mu.Lock()
	served := m.announced
	e.mu.Unlock()
	switch {
	case !served:
		return 0, nil
	case e.cfg.Flows == nil:
		return 0, errors.New("nobody counts connections")
	default:
		return e.cfg.Flows.Flows(ctx, m.uid, since)
	}
}
