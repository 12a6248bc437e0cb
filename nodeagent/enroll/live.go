package enroll

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/cni/redirect"
)

// errChangedMind ends a leave that is no longer wanted.
var errChangedMind = errors.New("the pod is to stay in the mesh after all")

const (
	flowPoll    = 250 * time.Millisecond // between questions to the proxy
	liveTimeout = 10 * time.Second       // for the proxy to open a running pod's listeners
	liveAtOnce  = 8                      // running pods whose rules are changed at a time
	yieldWait   = 50 * time.Millisecond  // before another look, when the runtime came first
)

// Run keeps pods where the objects say they belong until ctx ends; then it
// waits for what is under way and returns nil. Recover comes first.
func (e *Enroller) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer e.workers.Wait()
	defer cancel()
	e.mu.Lock()
	e.ctx = ctx
	e.mu.Unlock()
	if e.cfg.Finder != nil {
		e.workers.Go(func() { e.search(ctx) })
	}
	tick := time.NewTicker(e.times.Sweep)
	defer tick.Stop()
	var away awayFile
	for {
		view, changed := e.cfg.World.View()
		if view != nil {
			if len(view.missing) == 0 { // else the last word stands
				away.keep(e.cfg.StateDir, view.Away(), e.log)
			}
			e.compare(view)
		}
		select {
		case <-ctx.Done():
			e.stopWorkers()
			return nil
		case <-changed:
		case <-tick.C:
			e.sweep(view)
		}
	}
}

// stopWorkers stops new workers from being started.
func (e *Enroller) stopWorkers() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ctx = nil
}

// compare starts a worker for each pod that is not where it belongs.
func (e *Enroller) compare(view *View) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range e.members {
		if a, _ := e.actionLocked(view, m); a != actNone {
			e.convergeLocked(m)
		}
		e.warnLocked(view, m)
	}
}

// warnLocked tells of annotations that are not understood, once.
func (e *Enroller) warnLocked(view *View, m *member) {
	p, ok := view.Pod(m.name, m.uid)
	if !ok || m.box == nil || !p.Eligible.InMesh {
		return
	}
	text := strings.Join(warnings(p), "; ")
	if text == m.warned {
		return
	}
	m.warned = text
	if text != "" && e.cfg.Tell != nil {
		e.cfg.Tell(Notice{p.PodName, p.ObjectUID, NoticeAnnotation, text})
		e.log.Warn("a pod's annotation is ignored", "pod", m.name.String(), "err", text)
	}
}

// actionLocked is next, asked about this pod.
func (e *Enroller) actionLocked(view *View, m *member) (action, Pod) {
	if view == nil || m.box == nil {
		return actNone, Pod{}
	}
	p, ok := view.Pod(m.name, m.uid)
	switch {
	case !ok:
		return next(m.phase, wantUnknown, true), p
	case view.Undecided(p) != nil:
		return next(m.phase, wantUnknown, true), p
	case !p.Eligible.InMesh:
		return next(m.phase, wantOut, true), p
	}
	if rival := e.rival(view); rival != "" && m.phase == PhaseLeft {
		m.reason = rivalReason(rival)
		return actNone, p
	}
	right := true
	if m.box.redirect != nil {
		r := e.redirection(p)
		r.Backend = m.box.redirect.Backend
		right = sameRules(r, *m.box.redirect)
	}
	return next(m.phase, wantIn, right), p
}

// convergeLocked starts a worker for a pod, or makes the one at work look again.
func (e *Enroller) convergeLocked(m *member) {
	if e.ctx == nil {
		return
	}
	m.lookAgain = true
	if m.worker {
		return
	}
	m.worker = true
	m.users++
	ctx := e.ctx
	e.workers.Go(func() {
		defer e.drop(m)
		e.converge(ctx, m)
	})
}

// converge brings a pod to where it belongs, with growing waits between
// attempts, and returns when there is nothing left to do.
func (e *Enroller) converge(ctx context.Context, m *member) {
	wait := e.times.Retry
	for {
		a := e.pending(ctx, m)
		if a == actNone {
			return
		}
		err := e.attempt(ctx, m)
		switch {
		case err == nil, errors.Is(err, errChangedMind):
			wait = e.times.Retry
			continue
		case ctx.Err() != nil:
			continue
		case errors.Is(err, errYield):
			e.pause(ctx, yieldWait)
			continue
		}
		e.note(m, err)
		e.tell(m.name, "", NoticeRefused, err.Error())
		e.log.Warn("a running pod is not where it belongs", "pod", m.name.String(), "uid", m.uid, "action", a.String(), "retry", wait, "err", err)
		e.pause(ctx, wait)
		wait = min(2*wait, maxRetry)
	}
}

// pending is what a worker has to do next; with actNone the worker has ended.
func (e *Enroller) pending(ctx context.Context, m *member) action {
	for {
		e.mu.Lock()
		m.lookAgain = false
		e.mu.Unlock()
		view, _ := e.cfg.World.View()
		e.mu.Lock()
		a, _ := e.actionLocked(view, m)
		if ctx.Err() != nil {
			a, m.lookAgain = actNone, false
		}
		if a != actNone || !m.lookAgain {
			m.worker = a != actNone
			e.mu.Unlock()
			return a
		}
		e.mu.Unlock()
	}
}

func (e *Enroller) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// attempt does what is to be done now, unless the runtime wants something of
// this pod: then it yields.
func (e *Enroller) attempt(ctx context.Context, m *member) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	e.mu.Lock()
	if m.users > 1 {
		e.mu.Unlock()
		return errYield
	}
	m.interrupt = func() { cancel(errYield) }
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		m.interrupt = nil
		e.mu.Unlock()
	}()
	select {
	case m.busy <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-m.busy }()
	view, _ := e.cfg.World.View()
	e.mu.Lock()
	a, p := e.actionLocked(view, m)
	e.mu.Unlock()
	began := time.Now()
	var err error
	switch a {
	case actEnroll:
		err = e.enrollRunning(ctx, m, p)
	case actLeave:
		err = e.leave(ctx, m, p)
	case actAdjust:
		err = e.adjust(ctx, m, p)
	default:
		return nil
	}
	if err != nil && context.Cause(ctx) == errYield {
		return errYield
	}
	if !errors.Is(err, errChangedMind) {
		e.cfg.Observe(a.String(), time.Since(began), err)
	}
	if err == nil {
		e.log.Info("a running pod is where it belongs", "pod", m.name.String(), "uid", m.uid, "action", a.String(), "took", time.Since(began))
	}
	return err
}

// errYield is the cause when the runtime comes first.
var errYield = errors.New("the runtime wants something of this pod first")

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
	var theirs []string
	if err == nil {
		err = e.rulesWork(ctx, func() (err error) { theirs, err = b.Foreign(m.box.ns); return err })
	}
	if err == nil {
		err = run(ctx, e.enrollSteps(m, p, b, r, fresh, theirs)...)
	}
	if err != nil && fresh {
		e.closeNS(m)
	}
	return err
}

func (e *Enroller) enrollSteps(m *member, p Pod, b redirect.Backend, r event.Redirect, fresh bool, theirs []string) []step {
	ns := m.box.ns
	steps := []step{
		{name: "write down that the pod is on its way", do: func(context.Context) error {
			e.setRedirect(m, &r, p)
			return e.setPhase(m, PhaseEnrolling, p.Eligible.Reason)
		}, undo: func(context.Context) error {
			e.setRedirect(m, nil, p)
			return e.setPhase(m, PhaseLeft, "it could not be brought into the mesh")
		}},
		{name: "open the proxy's listeners", do: func(ctx context.Context) error {
			ctx, cancel := context.WithTimeoutCause(ctx, liveTimeout, fmt.Errorf("not done within %s", liveTimeout))
			defer cancel()
			return e.announce(ctx, m)
		}, undo: func(ctx context.Context) error { return e.withdraw(ctx, m) }},
		{name: "program the redirection", do: func(ctx context.Context) error {
			return e.rulesWork(ctx, func() error { return e.program(m, b, r, theirs) })
		}, undo: func(context.Context) error { return b.Remove(ns) }},
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

// program makes a running pod's rules ours and verifies them. Connections that
// the pod has go on beside them.
func (e *Enroller) program(m *member, b redirect.Backend, r event.Redirect, theirs []string) error {
	ns := m.box.ns
	if len(theirs) > 0 {
		return foreignError(theirs)
	}
	if err := b.Apply(ns, rulesConfig(r)); err != nil {
		return err
	}
	return verify(b, ns, r)
}

func (e *Enroller) setRedirect(m *member, r *event.Redirect, p Pod) {
	e.mu.Lock()
	defer e.mu.Unlock()
	m.box.redirect = r
	m.name, m.serviceAccount = p.PodName, p.ServiceAccount
}

// leave takes a running pod out without breaking what the proxy carries for it,
// as far as the deadline allows.
func (e *Enroller) leave(ctx context.Context, m *member, p Pod) error {
	e.mu.Lock()
	m.unmark = true
	e.mu.Unlock()
	if err := e.setPhase(m, PhaseLeaving, p.Eligible.Reason); err != nil {
		return err
	}
	if err := e.open(ctx, m); err != nil {
		return err
	}
	ns := m.box.ns
	b, err := e.backend(m.box.redirect)
	if err != nil {
		return err
	}
	if err := e.rulesWork(ctx, func() error { return b.StopCapture(ns) }); err != nil {
		return err
	}
	if err := e.drain(ctx, m); err != nil {
		return err
	}
	if err := e.withdraw(ctx, m); err != nil {
		return err
	}
	if err := e.rulesWork(ctx, func() error { return b.Remove(ns) }); err != nil {
		return err
	}
	e.setRedirect(m, nil, p)
	e.closeNS(m)
	return e.setPhase(m, PhaseLeft, p.Eligible.Reason)
}

// drain waits until nobody can take the pod for one in the mesh any more, and the
// proxy carries nothing for it, or the deadline.
func (e *Enroller) drain(ctx context.Context, m *member) error {
	poll := time.NewTicker(flowPoll)
	defer poll.Stop()
	began := time.Now()
	var unmarked, blind time.Time
	for {
		now := time.Now()
		view, changed := e.cfg.World.View()
		p, ok := view.Pod(m.name, m.uid)
		if ok && p.Eligible.InMesh {
			return errChangedMind
		}
		if p.Marked == "" && unmarked.IsZero() {
			unmarked = now
		}
		n, err := e.flows(ctx, m)
		switch {
		case err == nil:
			blind = time.Time{}
		case blind.IsZero():
			blind = now
		}
		switch {
		case e.times.Drain >= 0 && now.Sub(began) >= e.times.Drain:
			return nil
		case err == nil && n == 0 && (p.Finished || !unmarked.IsZero() && now.Sub(unmarked) >= e.times.Linger || now.Sub(began) >= lingerAtMost):
			return nil
		case err != nil && now.Sub(blind) >= e.times.Blind:
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

// lingerAtMost is how long a pod is served without a connection because its mark
// does not go.
const lingerAtMost = time.Minute

// flows counts what the proxy carries for a pod.
func (e *Enroller) flows(ctx context.Context, m *member) (int, error) {
	e.mu.Lock()
	served := m.announced
	e.mu.Unlock()
	switch {
	case !served:
		return 0, nil
	case e.cfg.Flows == nil:
		return 0, errors.New("nobody counts connections")
	default:
		return e.cfg.Flows.Flows(ctx, m.uid)
	}
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
