package enroll

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"
)

// yieldWait is before another look, when the runtime came first.
const yieldWait = 50 * time.Millisecond

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
			e.keepAway(&away, view)
			e.compare(view)
		}
		select {
		case <-ctx.Done():
			if view, _ := e.cfg.World.View(); view != nil {
				e.keepAway(&away, view) // it is what the plugin goes by from now on
			}
			e.stopWorkers()
			return nil
		case <-changed:
		case <-e.nudge:
			e.inspectDue()
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
	e.tellRival(view)
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range e.members {
		if a, _ := e.actionLocked(view, m); a != actNone {
			e.convergeLocked(m)
		}
		if view != nil {
			e.warnLocked(view, m)
			e.addressedLocked(view, m)
		}
	}
}

// addressedLocked has a pod looked at whose object says other addresses than before: they
// are published after the kernel has told of them.
func (e *Enroller) addressedLocked(view *View, m *member) {
	p, ok := view.Pod(m.name, m.uid)
	if !ok || m.phase != PhaseEnrolled || slices.Equal(m.saidIPs, p.IPs) {
		return
	}
	m.saidIPs, m.audit.dirty = p.IPs, true
	e.nudgeInspection()
}

// tellRival tells of running pods that are outside because another mesh's agent is at
// work on this node.
func (e *Enroller) tellRival(view *View) {
	rival := e.rival(view)
	if view == nil || rival == "" || e.isRetired() != "" {
		return
	}
	for _, p := range view.Pods() {
		if !p.Eligible.InMesh || !p.running() || e.holds(p.UID) {
			continue
		}
		e.tell(p.PodName, p.ObjectUID, NoticeRefused, rivalReason(rival))
	}
}

// holds says whether a pod is in the mesh, or on its way there or out.
func (e *Enroller) holds(uid string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	m := e.members[uid]
	return m != nil && m.box != nil && (m.phase.served() || m.phase == PhaseAdding)
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
	if m.box == nil {
		return actNone, Pod{}
	}
	if e.retired != "" {
		return e.retiringLocked(m)
	}
	if view == nil {
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
