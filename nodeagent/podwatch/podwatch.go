// Package podwatch follows the objects that say which pods of this node belong
// into the mesh, and makes enroll's View of them.
//
// The objects come from a Source: a folder of Kubernetes YAML, which is xds/file's
// Feeder, or an API server, by xds/kube's.
//
// Kind: adapter. Used by nodeagent.
package podwatch

import (
	"context"
	"errors"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/warren-mesh/warren/nodeagent/enroll"
	"github.com/warren-mesh/warren/xds/translate"
)

// ErrNoSource is returned where no source of objects is given.
var ErrNoSource = errors.New("podwatch: no source of objects: give a folder of Kubernetes YAML or an API server")

// Source feeds objects.
type Source interface {
	// Run follows the objects until ctx ends.
	Run(ctx context.Context) error
	// Synced is closed once the objects are known for the first time.
	Synced() <-chan struct{}
	// Read returns the newest objects and a channel that is closed when they are
	// no longer the newest.
	Read() (translate.Objects, <-chan struct{})
}

// Watcher holds the newest view. It implements enroll.World.
type Watcher struct {
	source  Source
	missing func() []string
	opts    enroll.ViewOptions

	mu       sync.Mutex
	plain    *enroll.View // as the source has it; nil until it has synced
	view     *enroll.View // with what is known of other nodes
	labelled []string     // namespaces with pods that are in the mesh by their own labels
	changed  chan struct{}
}

// New prepares a watcher; Run makes it watch. missing names what the source has
// not been able to read since its start, and so does not know what it held; nil:
// nothing ever is.
func New(source Source, missing func() []string, opts enroll.ViewOptions) (*Watcher, error) {
	if source == nil {
		return nil, ErrNoSource
	}
	if missing == nil {
		missing = func() []string { return nil }
	}
	return &Watcher{source: source, missing: missing, opts: opts, changed: make(chan struct{})}, nil
}

// Run follows the objects until ctx ends; it returns what the source's Run
// does.
func (w *Watcher) Run(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- w.source.Run(ctx) }()
	changed := w.source.Synced()
	for {
		select {
		case <-changed:
		case err := <-done:
			return err
		}
		missing := w.missing() // first: what is read meanwhile is missed for once, not trusted too early
		var objects translate.Objects
		objects, changed = w.source.Read()
		w.publish(enroll.NewView(objects, w.opts).Without(missing))
	}
}

func (w *Watcher) publish(v *enroll.View) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.plain = v
	w.showLocked()
}

func (w *Watcher) showLocked() {
	w.view = w.plain.WithLabelled(w.labelled)
	close(w.changed)
	w.changed = make(chan struct{})
}

// mixed adds to the view what is known of other nodes: the namespaces in which pods are
// in the mesh by their own labels.
func (w *Watcher) mixed(namespaces []string) {
	slices.Sort(namespaces)
	w.mu.Lock()
	defer w.mu.Unlock()
	if slices.Equal(namespaces, w.labelled) {
		return
	}
	if w.labelled = namespaces; w.plain != nil {
		w.showLocked()
	}
}

// namespaces are those that the source knows now.
func (w *Watcher) namespaces() map[string]*corev1.Namespace {
	objects, _ := w.source.Read()
	all := make(map[string]*corev1.Namespace, len(objects.Namespaces))
	for _, ns := range objects.Namespaces {
		all[ns.Name] = ns
	}
	return all
}

// View implements enroll.World.
func (w *Watcher) View() (*enroll.View, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.view, w.changed
}
