package enroll

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/warren-mesh/warren/cni/event"
)

// Del implements event.Handler. The rules stay: they go with the namespace.
func (e *Enroller) Del(ctx context.Context, key event.Key, podUID string) error {
	e.mu.Lock()
	uid, ok := e.keys[key]
	e.mu.Unlock()
	if !ok {
		// Unknown, or an earlier sandbox of a pod that has another now. At most
		// its file is left.
		return internal(e.store.remove(key))
	}
	if podUID != "" && podUID != uid {
		e.log.Warn("DEL names another pod than ADD did; the attachment counts", "uid", podUID, "added", uid)
	}
	m, err := e.acquire(ctx, uid)
	if err != nil {
		return err
	}
	defer e.release(m)
	began := time.Now()
	e.forgetKey(key)
	e.mu.Lock()
	last := m.box != nil && len(m.box.attached) == 0
	phase := m.phase
	e.mu.Unlock()
	if last {
		e.removeBox(ctx, m)
		if phase != PhaseLeft {
			e.cfg.Observe("del", time.Since(began), nil)
			e.log.Info("a pod has left with its sandbox", "pod", m.name.String(), "uid", uid)
		}
	}
	return nil
}

// forgetKey removes one attachment from memory and disk.
func (e *Enroller) forgetKey(key event.Key) {
	e.mu.Lock()
	if m := e.members[e.keys[key]]; m != nil && m.box != nil {
		delete(m.box.attached, key)
	}
	delete(e.keys, key)
	e.mu.Unlock()
	if err := e.store.remove(key); err != nil {
		e.log.Warn("an attachment's file is left", "err", err)
	}
}

// forgetFiles removes all attachments of a sandbox but one.
func (e *Enroller) forgetFiles(b *sandbox, but event.Key) {
	e.mu.Lock()
	var keys []event.Key
	for key := range b.attached {
		if key != but {
			keys = append(keys, key)
		}
	}
	e.mu.Unlock()
	for _, key := range keys {
		e.mu.Lock()
		delete(e.keys, key)
		e.mu.Unlock()
		if err := e.store.remove(key); err != nil {
			e.log.Warn("an attachment's file is left", "err", err)
		}
	}
}

// removeBox makes a pod absent: its files go first, so that a successor of this
// agent does not find it, then the proxy is told. The caller holds busy.
func (e *Enroller) removeBox(ctx context.Context, m *member) {
	e.mu.Lock()
	b := m.box
	e.mu.Unlock()
	e.forgetFiles(b, event.Key{})
	_ = e.withdraw(ctx, m) // cannot fail
	e.stopProbes(ctx, m)
	e.clearBox(m)
}

// clearBox lets go of a sandbox that the proxy does not serve any more.
func (e *Enroller) clearBox(m *member) {
	e.mu.Lock()
	b := m.box
	m.box, m.announced, m.phase, m.reason = nil, false, PhaseAbsent, ""
	e.wakeLocked()
	e.mu.Unlock()
	e.forgetFiles(b, event.Key{})
	e.unwatch(m)
	if b.ns != nil {
		b.ns.Close()
	}
}

// GC implements event.Handler.
func (e *Enroller) GC(ctx context.Context, network string, valid []event.Key) error {
	e.mu.Lock()
	var stale []event.Key
	for _, m := range e.members {
		if m.box == nil {
			continue
		}
		for key, a := range m.box.attached {
			if a.source == SourcePlugin && a.network == network && !slices.Contains(valid, key) {
				stale = append(stale, key)
			}
		}
	}
	e.mu.Unlock()
	var errs []error
	for _, key := range stale {
		if err := e.Del(ctx, key, ""); err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", key.ContainerID, key.IfName, err))
		}
	}
	return internal(errors.Join(errs...))
}

// Check implements event.Handler.
func (e *Enroller) Check(_ context.Context, key event.Key) (event.Answer, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	m := e.members[e.keys[key]]
	if m == nil || m.box == nil {
		return event.Answer{Action: event.Leave, Reason: "no pod of the mesh has this attachment"}, nil
	}
	switch m.phase {
	case PhaseEnrolled:
		r := *m.box.redirect
		return event.Answer{Action: event.RedirectSo, Redirect: &r, Reason: m.reason}, nil
	case PhaseLeft:
		return event.Answer{Action: event.Leave, Reason: m.reason}, nil
	default:
		return event.Answer{}, &event.Error{
			Retryable: true, Msg: fmt.Sprintf("the pod %s is between two states (%s)", m.name, m.phase), Details: firstOf(m.reason, "check again later"),
		}
	}
}

// Status implements event.Handler. It fails only when not even a pod outside of the mesh
// could be let start: a runtime that hears so takes its node's network for not ready.
func (e *Enroller) Status(context.Context) error {
	if view, _ := e.cfg.World.View(); view != nil {
		return nil
	}
	if _, err := event.ReadAway(filepath.Join(e.cfg.StateDir, event.AwayName)); err == nil {
		return nil
	}
	return &event.Error{Retryable: true, Msg: "the node agent does not know the cluster's objects yet", Details: "see its log"}
}
