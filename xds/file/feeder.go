package file

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/warren-mesh/warren/xds/translate"
)

// Problem is a file, or an object in it, that was not taken.
type Problem struct {
	File   string // name inside the folder; empty when it is about the folder
	Object string // kind namespace/name; empty when it is about the whole file
	Reason string
}

// String is one line for a log.
func (p Problem) String() string {
	s := p.Reason
	if p.Object != "" {
		s = p.Object + ": " + s
	}
	if p.File != "" {
		s = p.File + ": " + s
	}
	return s
}

// Feeder holds the objects of one folder. Its methods may be called from any
// goroutine.
type Feeder struct {
	dir string
	log *slog.Logger

	synced chan struct{} // closed after the first scan that could read the folder
	once   sync.Once     // guards the closing of synced

	mu       sync.Mutex
	objects  translate.Objects
	problems []Problem
	untaken  []Problem
	changed  chan struct{} // closed, and replaced, when objects or problems change
}

// Feed prepares a feeder for a folder. Nothing is read before Run.
func Feed(dir string, log *slog.Logger) *Feeder {
	return &Feeder{dir: dir, log: log, synced: make(chan struct{}), changed: make(chan struct{})}
}

// How quickly a change is taken. A burst of changes is read once it has been quiet
// for quiet, or has gone on for longest; the polls see what a watch cannot, such as
// a link to another folder, and take the place of a watch that cannot be had.
const (
	quiet         = 50 * time.Millisecond
	longest       = time.Second
	poll          = 5 * time.Second
	pollUnwatched = time.Second
)

// Run reads the folder and follows it until ctx ends, and returns nil then. A folder
// that cannot be read is a problem to report and to try again, not an end.
func (f *Feeder) Run(ctx context.Context) error {
	unknown := newUnknownKinds(f.log)
	s := newScanner(f.dir, unknown.report)
	w := newWatch(f.dir, f.log)
	defer w.Close()
	for {
		watched := w.ensure()
		changed, err := s.scan(time.Now())
		if changed {
			f.publish(s)
		}
		if err == nil {
			f.once.Do(func() { close(f.synced) })
		}
		if !f.wait(ctx, w, watched) {
			return nil
		}
	}
}

// wait returns when the folder is worth another look, and false when ctx has ended.
func (f *Feeder) wait(ctx context.Context, w *watch, watched bool) bool {
	interval := poll
	if !watched {
		interval = pollUnwatched
	}
	due := time.NewTimer(interval)
	defer due.Stop()
	var deadline time.Time
	for {
		select {
		case <-ctx.Done():
			return false
		case <-due.C:
			return true
		case <-w.Events():
			now := time.Now()
			if deadline.IsZero() {
				deadline = now.Add(longest)
			}
			due.Reset(min(quiet, deadline.Sub(now)))
		}
	}
}

// publish hands out what the scanner holds now.
func (f *Feeder) publish(s *scanner) {
	objects, problems := merge(s.files)
	if s.folder != "" {
		problems = slices.Insert(problems, 0, Problem{Reason: s.folder})
	}
	f.mu.Lock()
	before := f.problems
	f.objects, f.problems, f.untaken = objects, problems, s.untaken()
	close(f.changed)
	f.changed = make(chan struct{})
	f.mu.Unlock()
	for _, p := range problems {
		if !slices.Contains(before, p) {
			f.log.Warn("not taken from the folder", "folder", f.dir, "file", p.File, "object", p.Object, "err", p.Reason)
		}
	}
	if len(before) > 0 && len(problems) == 0 {
		f.log.Info("everything in the folder is taken again", "folder", f.dir)
	}
}

// Synced is closed once the folder has been read for the first time. Until then
// the feeder knows nothing: an absent pod is then not a pod that does not exist.
func (f *Feeder) Synced() <-chan struct{} { return f.synced }

// Objects returns the newest objects, which nobody may change.
func (f *Feeder) Objects() translate.Objects {
	objects, _ := f.Read()
	return objects
}

// Changed returns a channel that is closed at the next change. To miss none, take
// the channel before the objects, or both at once with Read.
func (f *Feeder) Changed() <-chan struct{} {
	_, changed := f.Read()
	return changed
}

// Read returns the newest objects and a channel that is closed when they are no
// longer the newest.
func (f *Feeder) Read() (translate.Objects, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.objects, f.changed
}

// Problems returns what was not taken from the folder, sorted by file. Nobody may
// change the slice.
func (f *Feeder) Problems() []Problem {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.problems
}

// Untaken returns the files that have never been taken since the start, sorted: what
// they held before is not known, and not among the objects. To know that Read returned
// everything, ask first. Nobody may change the slice.
func (f *Feeder) Untaken() []Problem {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.untaken
}
