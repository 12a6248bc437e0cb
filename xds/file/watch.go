package file

import (
	"io/fs"
	"log/slog"
	"os"

	"github.com/fsnotify/fsnotify"
)

// watch says when the folder is worth a look. It follows the path, not the folder
// that was there first: a link that is turned to another folder, or a folder that is
// put in the place of the old one, is watched from the next scan on.
type watch struct {
	dir  string
	log  *slog.Logger
	w    *fsnotify.Watcher // nil while there is no watch to be had
	on   fs.FileInfo       // the folder that w watches; nil for none
	told bool              // the log knows that there is none
	wake chan struct{}     // capacity 1
	done chan struct{}     // closed when the drain has ended
}

func newWatch(dir string, log *slog.Logger) *watch {
	return &watch{dir: dir, log: log, wake: make(chan struct{}, 1)}
}

// ensure watches what is at the path now, and reports whether it does.
func (w *watch) ensure() bool {
	info, err := os.Stat(w.dir)
	if err != nil {
		w.close()
		return false // the scan says so too
	}
	// The watch list is empty once the folder was removed: a new one can have the
	// inode number of the old.
	if w.w != nil && os.SameFile(w.on, info) && len(w.w.WatchList()) > 0 {
		return true
	}
	w.close()
	if err := w.open(); err != nil {
		if !w.told {
			w.log.Warn("cannot watch the folder: looking at it every second instead", "folder", w.dir, "err", err)
		}
		w.told = true
		return false
	}
	// What was watched may already be something newer than info: then the next poll
	// finds another folder and comes here again.
	w.on, w.told = info, false
	return true
}

func (w *watch) open() error {
	n, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	if err := n.Add(w.dir); err != nil {
		_ = n.Close()
		return err
	}
	w.w, w.done = n, make(chan struct{})
	go func(done chan<- struct{}) {
		defer close(done)
		drain(n, w.wake)
	}(w.done)
	return nil
}

// drain turns every event, and every error (a lost event is one), into a wake-up.
// It reads at all times, so that the kernel's queue does not overflow during a scan,
// and ends when the watcher is closed.
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
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

func (w *watch) events() <-chan struct{} { return w.wake }

// close ends the watch and waits for its goroutine.
func (w *watch) close() {
	if w.w == nil {
		return
	}
	_ = w.w.Close() // only ever fails when closed before
	<-w.done
	w.w, w.on = nil, nil
}
