package file

import (
	"context"
	"errors"
	"log/slog"
	"sync"

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

	mu       sync.Mutex
	objects  translate.Objects
	problems []Problem
	changed  chan struct{} // closed, and replaced, when objects or problems change
}

// Feed prepares a feeder for a folder. Nothing is read before Run.
func Feed(dir string, log *slog.Logger) *Feeder {
	return &Feeder{dir: dir, log: log, synced: make(chan struct{}), changed: make(chan struct{})}
}

// Run reads the folder and follows it until ctx ends; it returns nil then, or the
// reason why it cannot go on at all.
func (f *Feeder) Run(ctx context.Context) error {
	return errors.New("file: not built yet")
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

// Problems returns what was not taken from the folder, sorted by file.
func (f *Feeder) Problems() []Problem {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.problems
}
