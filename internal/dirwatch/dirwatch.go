package dirwatch

import (
	"io/fs"
	"os"

	"github.com/fsnotify/fsnotify"
)

// Watch follows paths: a folder that is put in the place of another one, or a link that
// is turned to another, is watched from the next call of Ensure on. It has one user.
type Watch struct {
	w    *fsnotify.Watcher // nil while nothing is watched
	on   map[string]fs.FileInfo
	wake chan struct{} // capacity 1
	done chan struct{} // closed when the drain has ended
}

// New makes one that watches nothing.
func New() *Watch { return &Watch{wake: make(chan struct{}, 1)} }

// Events gets something after a change, and after some that were none.
func (w *Watch) Events() <-chan struct{} { return w.wake }

// Ensure watches the folders that are at the paths now, and reports how many those are.
// The error is about watching; what is not there is not watched, and no error.
func (w *Watch) Ensure(paths ...string) (int, error) {
	now := map[string]fs.FileInfo{}
	for _, p := range paths {
		if info, err := os.Stat(p); err == nil {
			now[p] = info
		}
	}
	if w.current(now) {
		return len(now), nil
	}
	w.Close()
	if len(now) == 0 {
		return 0, nil
	}
	if err := w.open(now); err != nil {
		return 0, err
	}
	return len(now), nil
}

func (w *Watch) current(now map[string]fs.FileInfo) bool {
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

func (w *Watch) open(now map[string]fs.FileInfo) error {
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
	// What is watched may be newer than what was looked at: then the next call sees it.
	w.w, w.on, w.done = n, now, make(chan struct{})
	go func(done chan<- struct{}) {
		defer close(done)
		drain(n, w.wake)
	}(w.done)
	// Something may have happened between the last look and now.
	poke(w.wake)
	return nil
}

// drain turns every event, and every error (a lost event is one), into a wake-up. It
// reads at all times, so that the kernel's queue does not overflow while its user is
// busy, and ends when the watcher is closed.
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

// Close ends watching, until the next call of Ensure.
func (w *Watch) Close() {
	if w.w == nil {
		return
	}
	_ = w.w.Close() // only ever fails when closed before
	<-w.done
	w.w, w.on = nil, nil
}
