package enroll

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/cni/redirect"
)

// listen looks whether the proxy's listeners are there in every pod of the mesh, and
// has the proxy open them anew where they are not.
func (e *Enroller) listen(ctx context.Context) {
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.listening = false
	}()
	e.mu.Lock()
	var look []*member
	for _, m := range e.sortedLocked() {
		if m.box != nil && m.announced && m.phase == PhaseEnrolled && m.audit.watched == m.box.id {
			m.users++
			look = append(look, m)
		}
	}
	e.mu.Unlock()
	for _, m := range look {
		if ctx.Err() == nil {
			e.listenIn(ctx, m)
		}
		e.drop(m)
	}
}

func (e *Enroller) listenIn(ctx context.Context, m *member) {
	e.mu.Lock()
	var r *event.Redirect
	if m.box != nil {
		r = m.box.redirect
	}
	e.mu.Unlock()
	missing, err := e.cfg.Watch.NotListening(m.uid, listeners(r)...)
	if err != nil { // it has just gone, or the kernel cannot say
		return
	}
	e.mu.Lock()
	was := !m.audit.unheard
	m.audit.unheard = len(missing) > 0
	if len(missing) > 0 {
		m.audit.flaw = fmt.Sprintf("nobody listens on %v", missing)
		if slices.Contains(missing, redirect.PortDNS) {
			m.audit.flaw += ": the pod's DNS is captured, and the proxy's is turned off"
		}
	}
	if back := !was && !m.audit.unheard; back {
		m.audit.dirty = true // who looked meanwhile found nobody who answers
	}
	late := time.Now().Before(m.retry)
	e.mu.Unlock()
	if len(missing) == 0 || late {
		return
	}
	if was {
		e.log.Warn("the proxy's listeners are not there", "pod", m.name.String(), "uid", m.uid, "ports", missing)
	}
	if slices.Equal(missing, []uint16{redirect.PortDNS}) { // to tell the proxy anew helps nobody, and would cut what it carries
		return
	}
	e.mu.Lock()
	m.users++
	e.mu.Unlock()
	e.workers.Go(func() {
		defer e.drop(m)
		e.reopenListeners(ctx, m)
	})
}

// relistenWait is the time between attempts at one pod's listeners, and for one.
const relistenWait = 5 * time.Second

// reopenListeners tells the proxy of a pod anew; to one that takes it for served
// already, that it is gone first. Nothing is lost by that: nobody listens.
func (e *Enroller) reopenListeners(ctx context.Context, m *member) {
	select {
	case m.busy <- struct{}{}:
		defer func() { <-m.busy }()
	default:
		return
	}
	e.mu.Lock()
	ok := m.box != nil && m.box.ns != nil && m.announced && m.phase == PhaseEnrolled && time.Now().After(m.retry)
	m.retry = time.Now().Add(relistenWait)
	e.mu.Unlock()
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, relistenWait)
	defer cancel()
	began := time.Now()
	err := e.announce(ctx, m)
	if missing, lookErr := e.cfg.Watch.NotListening(m.uid, listeners(nil)...); err == nil && lookErr == nil && len(missing) > 0 {
		if err = e.cfg.Proxy.Del(ctx, m.uid); err == nil {
			err = e.announce(ctx, m)
		}
	}
	e.cfg.Observe("repair", time.Since(began), err)
	e.log.Info("the proxy was asked to open a pod's listeners anew", "pod", m.name.String(), "uid", m.uid, "err", err)
}
