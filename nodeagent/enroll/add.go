package enroll

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/netns"
)

// delWait is how long undoing an ADD waits for the proxy; see withdraw.
const delWait = 500 * time.Millisecond

// Decide implements event.Handler.
func (e *Enroller) Decide(ctx context.Context, add event.Add, ns *netns.NS) (event.Session, event.Answer, error) {
	s, answer, err := e.decide(ctx, add, SourcePlugin, ns)
	if s == nil { // not an event.Session that holds nil
		return nil, answer, err
	}
	return s, answer, err
}

func (e *Enroller) decide(ctx context.Context, add event.Add, source Source, ns *netns.NS) (_ *addition, answer event.Answer, err error) {
	began := time.Now()
	name := PodName{add.PodNamespace, add.PodName}
	kept := false
	defer func() {
		if !kept {
			ns.Close()
		}
		if err != nil {
			e.refused(name, add.PodUID, err)
		}
	}()
	view, _ := e.cfg.World.View()
	if err := e.notTheHosts(ns); err != nil {
		return nil, event.Answer{}, err
	}
	if view != nil && view.Exempt(add.PodNamespace) {
		return nil, event.Answer{Action: event.Leave, Reason: "its namespace is exempt from the mesh"}, nil
	}
	if why := e.isRetired(); why != "" {
		return nil, event.Answer{Action: event.Leave, Reason: why}, nil
	}
	pod, err := e.findPod(ctx, name, add.PodUID)
	if err != nil {
		if why := e.outside(add.PodNamespace); why != "" {
			e.log.Warn("a pod of which nothing is known starts outside of the mesh", "pod", name.String(), "uid", add.PodUID, "reason", why)
			return nil, event.Answer{Action: event.Leave, Reason: why}, nil
		}
		return nil, event.Answer{}, err
	}
	uid := firstOf(add.PodUID, pod.UID, name.String())
	m, err := e.acquire(ctx, uid)
	if err != nil {
		return nil, event.Answer{}, err
	}
	s := &addition{
		e: e, m: m, key: add.Key, pod: pod, ns: ns,
		attachment: attachment{network: add.Network, source: source, add: add, added: began.UTC()},
	}
	if !pod.Eligible.InMesh {
		defer e.release(m)
		s.leave(ctx, pod.Eligible.Reason)
		return nil, event.Answer{Action: event.Leave, Reason: pod.Eligible.Reason}, nil
	}
	if left, answer, err := s.toRival(ctx); left || err != nil {
		e.release(m)
		return nil, answer, err
	}
	if err := s.begin(); err != nil {
		e.release(m)
		return nil, event.Answer{}, err
	}
	kept = true
	s.budget = e.times.Add - time.Since(began)
	return s, event.Answer{Action: event.RedirectSo, Redirect: &s.redirect, Reason: pod.Eligible.Reason}, nil
}

// findPod waits for the object: the runtime may be faster than the news.
func (e *Enroller) findPod(ctx context.Context, name PodName, uid string) (Pod, error) {
	timer := time.NewTimer(e.times.Pod)
	defer timer.Stop()
	for {
		var err error
		view, changed := e.cfg.World.View()
		if view != nil {
			if p, ok := view.Pod(name, uid); ok {
				if err = view.Undecided(p); err == nil {
					return p, nil
				}
				if !view.whole { // a file that somebody has to mend
					return Pod{}, undecided(name, err)
				}
			}
		}
		select {
		case <-changed:
			continue
		case <-timer.C:
		case <-ctx.Done():
		}
		if err != nil {
			return Pod{}, undecided(name, err)
		}
		what := fmt.Sprintf("the node agent knows no pod %s", name)
		if uid != "" {
			what += " with UID " + uid
		}
		if view == nil {
			what = "the node agent does not know the cluster's objects yet"
		}
		if stale := e.stale(); stale != "" {
			what += ": no news arrive (" + stale + ")"
		}
		return Pod{}, &event.Error{Retryable: true, Msg: what, Details: "this is retried; if it stays, look at the agent's log for where its objects come from"}
	}
}

func undecided(name PodName, err error) error {
	return &event.Error{
		Retryable: true, Msg: fmt.Sprintf("whether pod %s belongs into the mesh is not known: %v", name, err),
		Details: "this is retried; mend what is named, or see the node agent's log",
	}
}

// addition is an ADD of a pod that belongs into the mesh. It holds the pod's busy
// until Programmed or Abort.
type addition struct {
	e          *Enroller
	m          *member
	key        event.Key
	pod        Pod
	ns         *netns.NS // ours until the pod has it
	attachment attachment
	redirect   event.Redirect
	backend    redirect.Backend
	budget     time.Duration

	// again: the pod is served in this namespace already, so that the ADD is a
	// repetition, or for another of its interfaces. It undoes nothing.
	again bool
	box   *sandbox // after Programmed
}

// leave notes a pod outside the mesh, in case that changes while it runs.
func (s *addition) leave(ctx context.Context, reason string) {
	e, m := s.e, s.m
	if m.box != nil && m.box.id != s.ns.ID() {
		e.removeBox(ctx, m)
	}
	e.mu.Lock()
	s.describeLocked()
	if m.box == nil {
		m.box = s.newBox(nil)
		m.phase, m.since = PhaseLeft, time.Now()
	}
	m.box.attached[s.key] = s.attachment
	e.keys[s.key] = m.uid
	phase := m.phase
	delete(e.refusals, m.name)
	e.mu.Unlock()
	if err := e.setPhase(m, phase, reason); err != nil {
		// A full disk is no reason to keep a pod from starting that has nothing to
		// do with the mesh: all that is lost is that a successor of this agent
		// could take it in while it runs.
		e.log.Error("cannot write down a pod outside the mesh", "pod", m.name.String(), "uid", m.uid, "err", err)
	}
}

// begin checks what must hold before anything is changed, and writes down that
// it is about to be.
func (s *addition) begin() error {
	e, m := s.e, s.m
	s.again = m.box != nil && m.box.id == s.ns.ID() && m.announced
	s.redirect = e.redirection(s.pod)
	if s.again {
		s.redirect.Backend = m.box.redirect.Backend
	}
	var err error
	if s.backend, err = e.backend(&s.redirect); err != nil {
		return internal(err)
	}
	if err := foreign(s.backend, s.ns); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s.describeLocked()
	if s.again {
		return nil
	}
	e.keys[s.key] = m.uid
	box := s.newBox(nil)
	box.redirect = &s.redirect
	pending := &member{uid: m.uid, name: m.name, serviceAccount: m.serviceAccount, phase: PhaseAdding, box: box}
	err = e.store.put(e.recordsLocked(pending)[0])
	if err != nil {
		delete(e.keys, s.key)
	}
	return internal(err)
}

func (s *addition) describeLocked() {
	s.m.name, s.m.serviceAccount = s.pod.PodName, s.pod.ServiceAccount
}

func (s *addition) newBox(ns *netns.NS) *sandbox {
	return &sandbox{ns: ns, id: s.ns.ID(), path: s.attachment.add.Netns, attached: map[event.Key]attachment{s.key: s.attachment}}
}

// Programmed implements event.Session: rules, then listeners, then the answer.
func (s *addition) Programmed(ctx context.Context, how string) error {
	began := time.Now()
	defer s.e.release(s.m)
	ctx, cancel := context.WithTimeoutCause(ctx, s.budget, errors.New("the node agent's time for one ADD is over"))
	defer cancel()
	program := step{
		name: "program the redirection", do: func(context.Context) error { return nil },
		// Also the plugin's: it takes them away as well, if it lives to hear of this.
		undo: func(context.Context) error { return s.unprogram() },
	}
	if how == event.ByAgent {
		program.do = func(context.Context) error { return s.backend.Apply(s.ns, rulesConfig(s.redirect)) }
	}
	steps := []step{
		program,
		{name: "verify the redirection", do: func(context.Context) error { return verify(s.backend, s.ns, s.redirect) }},
		{name: "open the proxy's listeners", do: s.serve, undo: s.unserve},
		{name: "let kubelet's probes through", do: func(ctx context.Context) error {
			s.e.letProbes(ctx, s.m, s.e.probeIPs(s.m, s.pod))
			return nil
		}, undo: func(ctx context.Context) error { s.e.stopProbes(ctx, s.m); return nil }},
		{name: "write down the attachment", do: func(context.Context) error {
			return s.e.setPhase(s.m, PhaseEnrolled, s.pod.Eligible.Reason)
		}},
	}
	if s.again {
		for i := range steps {
			steps[i].undo = nil
		}
	}
	err := run(ctx, steps...)
	s.e.cfg.Observe("add", time.Since(began), err)
	if err != nil {
		s.failed()
		return s.e.refused(s.pod.PodName, s.attachment.add.PodUID, explain(err))
	}
	if s.again {
		s.closeNS()
	}
	s.e.mu.Lock()
	delete(s.e.refusals, s.m.name)
	s.e.mu.Unlock()
	s.e.log.Info("a pod is in the mesh", "pod", s.m.name.String(), "uid", s.m.uid, "netns", s.box.path, "programmed", how, "took", time.Since(began))
	return nil
}

// serve gives the pod its namespace and hands it to the proxy.
func (s *addition) serve(ctx context.Context) error {
	e, m := s.e, s.m
	if s.again {
		e.mu.Lock()
		s.box = m.box
		if s.box.ns == nil {
			s.box.ns, s.ns = s.ns, nil // found again
		}
		s.box.redirect = &s.redirect
		s.box.attached[s.key] = s.attachment
		e.keys[s.key] = m.uid
		e.mu.Unlock()
		return e.announce(ctx, m)
	}
	old := m.box
	if old != nil {
		e.forgetFiles(old, s.key) // an earlier sandbox: its DEL has nothing left to do
	}
	e.mu.Lock()
	s.box = s.newBox(s.ns)
	s.box.redirect = &s.redirect
	if old != nil && old.id == s.box.id { // left outside so far
		maps.Copy(s.box.attached, old.attached)
		s.box.attached[s.key] = s.attachment
	}
	for key := range s.box.attached {
		e.keys[key] = m.uid
	}
	m.box, m.phase, m.since, m.audit = s.box, PhaseAdding, time.Now(), audited{looking: m.audit.looking}
	e.mu.Unlock()
	if old != nil && old.ns != nil {
		old.ns.Close()
	}
	return e.announce(ctx, m)
}

func (s *addition) unserve(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, delWait)
	defer cancel()
	return s.e.withdraw(ctx, s.m)
}

// unprogram takes the rules away, whoever put them there.
func (s *addition) unprogram() error { return s.backend.Remove(s.ns) }

// failed lets go of what the ADD held.
func (s *addition) failed() {
	e, m := s.e, s.m
	// The plugin takes its rules away after a failed ADD. This pod needs them if it
	// is served already, or as soon as another ADD that waits for its turn succeeds.
	e.mu.Lock()
	m.suspect = time.Now().Add(event.PluginTimeout)
	e.mu.Unlock()
	if s.again {
		s.closeNS()
		return
	}
	if m.box != nil && m.box == s.box { // serve has given it the namespace
		e.clearBox(m)
		return
	}
	e.forgetKey(s.key)
	s.closeNS()
}

func (s *addition) closeNS() {
	if s.ns != nil {
		s.ns.Close()
	}
}

// Abort implements event.Session.
func (s *addition) Abort(reason error) {
	e, m := s.e, s.m
	e.log.Info("an ADD was given up", "pod", s.pod.PodName.String(), "uid", m.uid, "err", reason)
	_ = e.refused(s.pod.PodName, s.attachment.add.PodUID, fmt.Errorf("the plugin gave up: %w", reason))
	if s.box == nil { // before Programmed, so that busy is ours
		if !s.again {
			// A plugin that was killed takes nothing away.
			if err := s.unprogram(); err != nil {
				e.log.Warn("cannot take a pod's rules away", "pod", s.pod.PodName.String(), "uid", m.uid, "err", err)
			}
		}
		s.failed()
		e.release(m)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	if s.again {
		return
	}
	m, err := e.acquire(ctx, m.uid)
	if err != nil {
		return // whoever is busy with it answers a later request
	}
	defer e.release(m)
	if m.box == s.box {
		if err := s.backend.Remove(s.box.ns); err != nil {
			e.log.Warn("cannot take a pod's rules away", "pod", m.name.String(), "uid", m.uid, "err", err)
		}
		e.removeBox(ctx, m)
	}
}

func firstOf(s ...string) string {
	for _, v := range s {
		if v != "" {
			return v
		}
	}
	return ""
}
