package enroll

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/warren-mesh/warren/cni/event"
)

// sortedLocked returns the members by UID.
func (e *Enroller) sortedLocked() []*member {
	return slices.SortedFunc(maps.Values(e.members), func(a, b *member) int { return strings.Compare(a.uid, b.uid) })
}

// sweep looks at what nothing announces: DELs that the plugin could only write
// down, namespaces that went without a DEL, and pods that nobody has looked at for a
// while.
func (e *Enroller) sweep(view *View) {
	e.audit()
	e.tellAddresses()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx == nil {
		return
	}
	ctx := e.ctx
	if !e.burying {
		e.burying = true
		e.workers.Go(func() { e.bury(ctx) })
	}
	for _, m := range e.members {
		if view == nil || m.box == nil || m.phase == PhaseAdding {
			continue
		}
		if _, ok := view.Pod(m.name, m.uid); !ok {
			m.users++
			e.workers.Go(func() {
				defer e.drop(m)
				e.forgetGone(ctx, m)
			})
		}
	}
}

// bury applies DELs that the plugin wrote down because it did not reach us.
func (e *Enroller) bury(ctx context.Context) {
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.burying = false
	}()
	tombs, err := event.Tombstones(e.cfg.StateDir)
	if err != nil {
		e.log.Warn("cannot read the tombstones", "err", err)
	}
	for _, t := range tombs {
		err := e.Del(ctx, t.Key, t.PodUID)
		if err == nil {
			err = event.RemoveTombstone(e.cfg.StateDir, t.Key)
		}
		if err != nil {
			e.log.Warn("cannot apply a tombstone yet", "err", err)
		}
	}
}

// forgetGone removes a pod that has neither object nor namespace any more: its
// DEL is lost, or Istio's plugin added it, which says none. Either alone is not
// enough: objects may be unreadable for a while, and a new mount of the host's
// need not be seen here.
func (e *Enroller) forgetGone(ctx context.Context, m *member) {
	e.mu.Lock()
	box := m.box
	e.mu.Unlock()
	if box == nil {
		return
	}
	ns, err := e.reopen(box.path, box.id)
	if err == nil {
		ns.Close()
	}
	if !errors.Is(err, errGone) {
		return
	}
	select {
	case m.busy <- struct{}{}:
		defer func() { <-m.busy }()
	default: // the next sweep asks again
		return
	}
	e.mu.Lock()
	same := m.box == box
	e.mu.Unlock()
	if same {
		e.log.Info("a pod is gone without a DEL", "pod", m.name.String(), "uid", m.uid, "netns", box.path)
		e.removeBox(ctx, m)
	}
}

// awayFile is what the plugin decides by without us.
type awayFile struct {
	last    event.Away
	written os.FileInfo // the file that says last; nil: none does
	failed  string      // the last error, which is told once
}

func (e *Enroller) keepAway(f *awayFile, view *View) {
	if len(view.missing) == 0 && e.isRetired() == "" { // else the last word stands
		f.keep(e.cfg.StateDir, view.Away(), e.log)
	}
}

// keep writes the file if it is to say something else now, or if somebody has
// removed or changed it.
func (f *awayFile) keep(stateDir string, a event.Away, log *slog.Logger) {
	path := filepath.Join(stateDir, event.AwayName)
	if f.written != nil && maps.Equal(f.last.Namespaces, a.Namespaces) {
		now, err := os.Lstat(path)
		if err == nil && os.SameFile(f.written, now) && f.written.Size() == now.Size() &&
			f.written.ModTime().Equal(now.ModTime()) && f.written.Mode() == now.Mode() {
			return
		}
	}
	err := event.WriteAway(path, a)
	var there event.Away
	if err == nil {
		f.last, f.failed = a, ""
		f.written, err = os.Lstat(path)
	}
	if err == nil { // so that written is of a file that says so
		there, err = event.ReadAway(path)
	}
	if err == nil && !maps.Equal(there.Namespaces, a.Namespaces) {
		err = errors.New("somebody else writes it as well")
	}
	if err != nil {
		f.written = nil
		if f.failed != err.Error() {
			f.failed = err.Error()
			log.Error("cannot write what the plugin decides by when the agent is away", "err", err)
		}
	}
}
