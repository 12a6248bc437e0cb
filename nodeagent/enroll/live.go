package enroll

import (
	"context"
	"errors"
	"fmt"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/cni/redirect"
)

// liveAtOnce is how many running pods are handed to the proxy at a time, and of how many
// the rules are changed.
const liveAtOnce = 8

// rulesWork does one thing to a pod's rules. It is what an enrolment costs, so
// that only so many go on side by side; a pod waits for its turn and for nothing
// else of another.
func (e *Enroller) rulesWork(ctx context.Context, do func() error) error {
	select {
	case e.slots <- struct{}{}:
		defer func() { <-e.slots }()
		return do()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// enrollRunning serves a running pod and only then redirects it. On failure a
// pod that was outside is outside again, as it was.
func (e *Enroller) enrollRunning(ctx context.Context, m *member, p Pod) error {
	r := e.redirection(p)
	e.mu.Lock()
	if m.box.redirect != nil {
		r.Backend = m.box.redirect.Backend
	}
	fresh := m.phase == PhaseLeft
	e.mu.Unlock()
	if err := e.open(ctx, m); err != nil {
		return err
	}
	b, err := e.backend(&r)
	if err == nil {
		err = e.rulesWork(ctx, func() error { return e.foresee(m, b) })
	}
	if err == nil {
		err = run(ctx, e.enrollSteps(m, p, b, r, fresh)...)
	}
	if err != nil && fresh {
		e.closeNS(m)
	}
	return err
}

// foresee finds out whether another mesh has redirected a pod, and refuses one that cannot
// be taken over from it before anything is changed: that mesh may be serving it.
func (e *Enroller) foresee(m *member, b redirect.Backend) error {
	form, err := redirect.Takeable(m.box.ns)
	if errors.Is(err, redirect.ErrNotAmbient) {
		if err := foreign(b, m.box.ns); err != nil {
			return err
		}
	}
	if err == nil && form != "" {
		e.setTheirs(m, form)
	}
	return err
}

// setTheirs notes in which form another mesh's rules are in a pod, or were.
func (e *Enroller) setTheirs(m *member, form string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	m.box.theirs = form
}

func (e *Enroller) enrollSteps(m *member, p Pod, b redirect.Backend, r event.Redirect, fresh bool) []step {
	var form string // of the rules that ours took the place of
	steps := []step{
		{name: "write down that the pod is on its way", do: func(context.Context) error {
			e.setRedirect(m, &r, p)
			return e.setPhase(m, PhaseEnrolling, p.Eligible.Reason)
		}, undo: func(context.Context) error {
			e.setRedirect(m, nil, p)
			e.setTheirs(m, "")
			return e.setPhase(m, PhaseLeft, "it could not be brought into the mesh")
		}},
		{name: "open the proxy's listeners", do: func(ctx context.Context) error { return e.announceInTurn(ctx, m) }, undo: func(ctx context.Context) error { return e.withdraw(ctx, m) }},
		{name: "program the redirection", do: func(ctx context.Context) error {
			return e.rulesWork(ctx, func() (err error) { form, err = e.program(m, b, r); return err })
		}, undo: func(context.Context) error { return unprogram(m, b, r, form) }},
		{name: "let kubelet's probes through", do: func(ctx context.Context) error {
			e.letProbes(ctx, m, e.probeIPs(m, p))
			return nil
		}, undo: func(ctx context.Context) error { e.stopProbes(ctx, m); return nil }},
		{name: "write down that the pod is in", do: func(context.Context) error {
			return e.setPhase(m, PhaseEnrolled, p.Eligible.Reason)
		}},
	}
	if !fresh { // it has been served before: what was done stays
		for i := range steps {
			steps[i].undo = nil
		}
	}
	return steps
}

// announceInTurn hands a running pod to the proxy, which takes one after the other: the
// time that it has for one does not run while hundreds wait, as when an agent comes to a
// node that is full.
func (e *Enroller) announceInTurn(ctx context.Context, m *member) error {
	select {
	case e.turns <- struct{}{}:
		defer func() { <-e.turns }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, e.times.Live, fmt.Errorf("not done within %s", e.times.Live))
	defer cancel()
	return e.announce(ctx, m)
}

// program makes a running pod's rules ours, in the place of another mesh's that has
// left it, and verifies them. Connections that the pod has go on beside them. form is that
// of the rules that were to be replaced, if they may have been changed.
func (e *Enroller) program(m *member, b redirect.Backend, r event.Redirect) (form string, err error) {
	ns := m.box.ns
	e.noteBefore(m)
	if m.box.theirs == "" {
		err = b.Apply(ns, rulesConfig(r))
	} else {
		form, err = redirect.TakeOver(b, ns, rulesConfig(r))
	}
	if err != nil {
		return form, err
	}
	if form != "" {
		e.setTheirs(m, form)
		e.log.Info("a pod was taken over from Istio", "pod", m.name.String(), "uid", m.uid, "rules", form)
	}
	return form, verify(b, ns, r)
}

// unprogram leaves a pod as it was before program: outside, or another mesh's.
func unprogram(m *member, b redirect.Backend, r event.Redirect, form string) error {
	if form == "" {
		return b.Remove(m.box.ns)
	}
	return redirect.GiveBack(b, m.box.ns, rulesConfig(r), form)
}

func (e *Enroller) setRedirect(m *member, r *event.Redirect, p Pod) {
	e.mu.Lock()
	defer e.mu.Unlock()
	m.box.redirect = r
	m.name, m.serviceAccount = p.PodName, p.ServiceAccount
}

// adjust changes the rules of a pod that is in the mesh.
func (e *Enroller) adjust(ctx context.Context, m *member, p Pod) error {
	if err := e.open(ctx, m); err != nil {
		return err
	}
	r := e.redirection(p)
	r.Backend = m.box.redirect.Backend
	b, err := e.backend(&r)
	if err != nil {
		return err
	}
	err = e.rulesWork(ctx, func() error {
		if err := b.Apply(m.box.ns, rulesConfig(r)); err != nil {
			return err
		}
		return verify(b, m.box.ns, r)
	})
	if err != nil {
		return err
	}
	e.setRedirect(m, &r, p)
	return e.setPhase(m, PhaseEnrolled, p.Eligible.Reason)
}

// open opens a pod's namespace if it is not.
func (e *Enroller) open(ctx context.Context, m *member) error {
	if m.box.ns != nil {
		return nil
	}
	ns, err := e.reopen(m.box.path, m.box.id)
	if err != nil && m.box.found() {
		ns, err = e.refind(ctx, m)
	}
	if err != nil {
		return err
	}
	e.mu.Lock()
	m.box.ns = ns
	e.mu.Unlock()
	return nil
}

func (e *Enroller) closeNS(m *member) {
	e.mu.Lock()
	ns := m.box.ns
	m.box.ns = nil
	e.mu.Unlock()
	if ns != nil {
		ns.Close()
	}
}
