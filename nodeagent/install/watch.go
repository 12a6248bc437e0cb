package install

import (
	"io/fs"
	"log/slog"
	"os"

	"github.com/fsnotify/fsnotify"
)

// watch says when folders are worth a look. It follows paths: a folder that is
// put in the place of another one is watched from the next look on. Where it
// cannot watch, or the kernel loses what happened, there is the poll.
type watch struct {
	log  *slog.Logger
	w    *fsnotify.Watcher // nil while nothing is watched
	on   map[string]fs.FileInfo
	told bool
	wake chan struct{} // capacity 1
	done chan struct{} // closed when the drain has ended
}

func newWatch(log *slog.Logger) *watch {
	return &watch{log: log, wake: make(chan struct{}, 1)}
}

// ensure watches what is at the paths now. It may add events that came of it.
func (w *watch) ensure(paths ...string) {
	now := map[string]fs.FileInfo{}
	for _, p := range paths {
		if info, err := os.Stat(p); err == nil {
			now[p] = info
		}
	}
	if w.current(now) {
		return
	}
	w.close()
	if len(now) == 0 {
		return
	}
	err := w.open(now)
	if err != nil && !w.told {
		w.log.Warn("cannot watch the folders of the CNI: they are looked at from time to time instead", "err", err)
	}
	w.told = err != nil
}

func (w *watch) current(now map[string]fs.FileInfo) bool {
	// The watch list shrinks when a folder is removed: a new one can have the inode
	// number of the old.
	if w.w == nil || len(now) != len(w.on) || len(w.w.WatchList()) != len(now) {
		return false
	}
	for p, info := range now {
		if on, ok := w.on[p]; !ok || !os.SameFile(on, info) {
			return false
		}
	}
	return true
}

func (w *watch) open(now map[string]fs.FileInfo) error {
	n, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	for p := range now {
		if err := n.Add(p); err != nil {
			_ = n.Close()
			return err
		}
	}
	w.w, w.on, w.done = n, now, make(chan struct{})
	go func(done chan<- struct{}) {
		defer close(done)
		drain(n, w.wake)
	}(w.done)
	// Something may have happened between the last look and now.
	poke(w.wake)
	return nil
}

// drain turns every event, and every error (a lost event is one), into a
// wake-up, and ends when the watcher is closed.
func drain(n *fsnotify.Watcher, wake chan<- struct{}) {
	for {
		select {
		case _, ok := <-n.Events:
			if !ok {
				return
			}
		case _, ok := <-n.Errors:
			if !ok {
				return
			}
		}
		poke(wake)
	}
}

func poke(wake chan<- struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

// close ends the watch and waits for its goroutine.
func (w *watch) close() {
	if w.w == nil {
		return
	}
	_ = w.w.Close() // only ever fails when closed before
	<-w.done
	w.w, w.on = nil, nil
}
