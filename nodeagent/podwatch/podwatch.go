// Package podwatch follows the objects that say which pods of this node belong
// into the mesh, and makes enroll's View of them.
//
// They come from a folder of Kubernetes YAML (xds/file). From an API server they
// do not come yet; asking for that is an error.
//
// Kind: adapter. Used by nodeagent.
package podwatch

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/warren-mesh/warren/nodeagent/enroll"
	"github.com/warren-mesh/warren/xds/file"
)

// ErrNoKubernetes is returned for the mode that is not there yet.
var ErrNoKubernetes = errors.New("podwatch: following the pods of an API server is not built yet: give a folder of Kubernetes YAML (--kube-dir)")

// Config says where the objects come from and whose view is wanted.
type Config struct {
	Dir  string // folder of Kubernetes YAML; empty asks for an API server
	View enroll.ViewOptions
	Log  *slog.Logger
}

// Watcher holds the newest view. It implements enroll.World.
type Watcher struct {
	cfg    Config
	feeder *file.Feeder

	mu      sync.Mutex
	view    *enroll.View // nil until the folder has been read
	changed chan struct{}
}

// New prepares a watcher; Run makes it watch.
func New(cfg Config) (*Watcher, error) {
	if cfg.Dir == "" {
		return nil, ErrNoKubernetes
	}
	return &Watcher{cfg: cfg, feeder: file.Feed(cfg.Dir, cfg.Log), changed: make(chan struct{})}, nil
}

// Run follows the objects until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	fed := make(chan error, 1)
	wg.Go(func() { fed <- w.feeder.Run(ctx) })
	select {
	case <-w.feeder.Synced():
	case err := <-fed:
		return err
	}
	for {
		objects, changed := w.feeder.Read()
		w.publish(enroll.NewView(objects, w.cfg.View))
		select {
		case <-changed:
		case err := <-fed:
			return err
		}
	}
}

func (w *Watcher) publish(v *enroll.View) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.view = v
	close(w.changed)
	w.changed = make(chan struct{})
}

// View implements enroll.World.
func (w *Watcher) View() (*enroll.View, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.view, w.changed
}

// Problems says in words what was not taken from the folder.
func (w *Watcher) Problems() []string {
	var all []string
	for _, p := range w.feeder.Problems() {
		all = append(all, p.String())
	}
	return all
}
