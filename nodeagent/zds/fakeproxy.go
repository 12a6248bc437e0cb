package zds

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/warren-mesh/warren/internal/netns"
)

// FakePod is a pod as a FakeProxy has been told of it.
type FakePod struct {
	Info Info
	NS   netns.ID
}

// FakeProxy is a proxy for tests of the node agent: it does what the protocol
// asks of one, keeps the pods it was told of, and serves nothing.
type FakeProxy struct {
	path string

	mu      sync.Mutex
	onAdd   func(ctx context.Context, uid string, info Info) error
	synced  bool
	named   map[string]bool // in the snapshot under way
	pods    map[string]FakePod
	events  []string      // "add UID", "keep UID", "del UID", "snapshot"
	changed chan struct{} // closed, and replaced, at each change
}

// NewFakeProxy makes a proxy for the agent's socket at path.
func NewFakeProxy(path string) *FakeProxy {
	return &FakeProxy{path: path, named: make(map[string]bool), pods: make(map[string]FakePod), changed: make(chan struct{})}
}

// OnAdd sets what is called for each Add before it takes effect; its error is
// the answer. It may block, to be a slow proxy.
func (f *FakeProxy) OnAdd(fn func(ctx context.Context, uid string, info Info) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onAdd = fn
}

// Run keeps it connected until ctx ends. It may be called again: the pods stay,
// as those of a proxy do when its agent restarts.
func (f *FakeProxy) Run(ctx context.Context) error {
	c := &Client{Path: f.path, Handler: f, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), OnState: f.onState}
	return c.Run(ctx)
}

// Wait returns once ok holds, or ctx's error. ok is called without a lock.
func (f *FakeProxy) Wait(ctx context.Context, ok func() bool) error {
	for {
		f.mu.Lock()
		changed := f.changed
		f.mu.Unlock()
		if ok() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Synced says whether a snapshot has been taken on the present connection.
func (f *FakeProxy) Synced() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.synced
}

// Pods returns the pods it serves, by UID.
func (f *FakeProxy) Pods() map[string]FakePod {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.pods)
}

// Events returns the messages so far, such as "add UID" or "snapshot".
func (f *FakeProxy) Events() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.events)
}

func (f *FakeProxy) onState(connected, synced bool) {
	f.change("", func() {
		f.synced = synced
		if connected && !synced {
			clear(f.named)
		}
	})
}

func (f *FakeProxy) change(event string, do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	if event != "" {
		f.events = append(f.events, event)
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// Add implements Handler.
func (f *FakeProxy) Add(ctx context.Context, w Workload) error {
	defer w.NS.Close()
	f.mu.Lock()
	onAdd := f.onAdd
	f.mu.Unlock()
	if onAdd != nil {
		if err := onAdd(ctx, w.UID, w.Info); err != nil {
			return err
		}
	}
	f.change("add "+w.UID, func() {
		f.named[w.UID] = true
		f.pods[w.UID] = FakePod{Info: w.Info, NS: w.NS.ID()}
	})
	return nil
}

// Keep implements Handler.
func (f *FakeProxy) Keep(uid string) {
	f.change("keep "+uid, func() { f.named[uid] = true })
}

// Del implements Handler.
func (f *FakeProxy) Del(_ context.Context, uid string) error {
	f.change("del "+uid, func() {
		delete(f.named, uid)
		delete(f.pods, uid)
	})
	return nil
}

// Snapshot implements Handler.
func (f *FakeProxy) Snapshot(context.Context) error {
	f.change("snapshot", func() {
		maps.DeleteFunc(f.pods, func(uid string, _ FakePod) bool { return !f.named[uid] })
		clear(f.named)
	})
	return nil
}
