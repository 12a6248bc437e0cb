package kube

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/warren-mesh/warren/xds/translate"
)

// defaultSettle is how far apart two versions of the objects are at least.
const defaultSettle = 100 * time.Millisecond

// Config says what to follow, and where.
type Config struct {
	// REST reaches the API server; Connect makes it. The clients are made of it, unless
	// they are given.
	REST    *rest.Config
	Client  kubernetes.Interface
	Dynamic dynamic.Interface

	// Node is the node whose pods are followed, with all namespaces and nothing else.
	// Empty: the control plane's everything.
	Node string
	Log  *slog.Logger
	// Settle is how long changes are gathered after one that was handed out at once;
	// zero: 100 ms.
	Settle time.Duration
	// Poll is how often a kind that is not defined is asked for; zero: 5 s.
	Poll time.Duration
}

// Problem is what keeps objects from being known, or from being known as they are.
type Problem struct {
	Kind            string
	Namespace, Name string // empty when it is about the whole kind
	Reason          string

	APIVersion string // of the object
	UID        types.UID
	Unread     bool // nothing of the object is understood, as it is now
}

// String is one line for a log.
func (p Problem) String() string {
	if p.Name == "" {
		return p.Kind + ": " + p.Reason
	}
	return fmt.Sprintf("%s %s: %s", p.Kind, key{p.Namespace, p.Name}, p.Reason)
}

// Status is how it is with one kind.
type Status struct {
	Kind    string
	Objects int
	Synced  bool      // all of them were read once, or there is no such kind
	Absent  bool      // the API server has no such kind
	Heard   time.Time // when the API server last said something about it; zero for never
	Err     string    // what is in the way of news; empty for nothing
}

// Feeder holds the objects of one API server. Its methods may be called from any
// goroutine.
type Feeder struct {
	log     *slog.Logger
	client  kubernetes.Interface
	dynamic dynamic.Interface
	served  func(context.Context, schema.GroupVersion) ([]string, error)
	settle  time.Duration
	poll    time.Duration

	kinds  []kind
	told   map[Problem]bool // what the log says of single objects
	touch  func()
	wake   chan struct{} // capacity 1
	synced chan struct{} // closed after the first publish, which every kind is in

	mu      sync.Mutex
	objects translate.Objects
	changed chan struct{} // closed, and replaced, when there are newer
}

// New prepares a feeder. Nothing is read before Run.
func New(cfg Config) (*Feeder, error) {
	if err := cfg.connect(); err != nil {
		return nil, err
	}
	f := &Feeder{
		log: cfg.Log, client: cfg.Client, dynamic: cfg.Dynamic, settle: cfg.Settle, poll: cfg.Poll,
		wake: make(chan struct{}, 1), synced: make(chan struct{}), changed: make(chan struct{}),
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if f.settle <= 0 {
		f.settle = defaultSettle
	}
	if f.poll <= 0 {
		f.poll = poll
	}
	f.touch = func() {
		select {
		case f.wake <- struct{}{}:
		default:
		}
	}
	if cfg.Node != "" {
		f.addNode(cfg.Client, cfg.Node)
		return f, nil
	}
	f.served = served(cfg.Client.Discovery())
	f.addCluster(cfg.Client)
	f.addCustom()
	return f, nil
}

// connect makes the clients that are not given.
func (c *Config) connect() error {
	needed := c.Client == nil || c.Node == "" && c.Dynamic == nil
	if !needed {
		return nil
	}
	if c.REST == nil {
		return errNoClient
	}
	var err error
	if c.Client == nil {
		compact := rest.CopyConfig(c.REST) // what is JSON for people costs several times as much
		compact.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
		compact.ContentType = "application/vnd.kubernetes.protobuf"
		if c.Client, err = kubernetes.NewForConfig(compact); err != nil {
			return fmt.Errorf("kube: %w", err)
		}
	}
	if c.Dynamic == nil {
		if c.Dynamic, err = dynamic.NewForConfig(c.REST); err != nil {
			return fmt.Errorf("kube: %w", err)
		}
	}
	return nil
}

func (f *Feeder) contact(kind string) *contact {
	return &contact{kind: kind, log: f.log}
}

// Run follows the API server until ctx ends, and returns nil then. One that cannot be
// reached is a problem to report and to try again, not an end.
func (f *Feeder) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	for _, k := range f.kinds {
		running.Go(func() { k.run(ctx) })
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
		}
		if !f.known() {
			continue // the kind that is read next wakes us
		}
		f.publish()
		// What comes now waits, together with what comes behind it.
		pause := time.NewTimer(f.settle)
		select {
		case <-ctx.Done():
			pause.Stop()
			return nil
		case <-pause.C:
		}
	}
}

// known says whether every kind has been read.
func (f *Feeder) known() bool {
	return !slices.ContainsFunc(f.kinds, func(k kind) bool { return !k.status(time.Now()).Synced })
}

func (f *Feeder) publish() {
	var objects translate.Objects
	for _, k := range f.kinds {
		k.fill(&objects)
	}
	f.complain()
	f.mu.Lock()
	f.objects = objects
	close(f.changed)
	f.changed = make(chan struct{})
	f.mu.Unlock()
	select {
	case <-f.synced:
	default:
		close(f.synced)
		f.log.Info("everything has been read from the API server", "pods", len(objects.Pods), "namespaces", len(objects.Namespaces), "services", len(objects.Services))
	}
}

// maxComplaints bounds the log lines that one change can cause.
const maxComplaints = 100

// complain logs what is newly wrong with objects.
func (f *Feeder) complain() {
	now := make(map[Problem]bool)
	lines := 0
	for _, k := range f.kinds {
		for _, p := range k.complaints() {
			now[p] = true
			if lines++; !f.told[p] && lines <= maxComplaints {
				f.log.Warn("an object in the API server is not read as it is", "kind", p.Kind, "namespace", p.Namespace, "name", p.Name, "err", p.Reason)
			}
		}
	}
	f.told = now
}

// Synced is closed once everything has been read for the first time. Until then the
// feeder knows nothing: an absent pod is then not a pod that does not exist.
func (f *Feeder) Synced() <-chan struct{} { return f.synced }

// Read returns the newest objects, which nobody may change, and a channel that is closed
// when there are newer, or something else is wrong with one of them.
func (f *Feeder) Read() (translate.Objects, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.objects, f.changed
}

// Problems returns what is in the way of news, and what is wrong with single objects.
func (f *Feeder) Problems() []Problem {
	var out []Problem
	for _, k := range f.kinds {
		if s := k.status(time.Now()); s.Err != "" {
			out = append(out, Problem{Kind: s.Kind, Reason: s.Err})
		}
		out = append(out, k.complaints()...)
	}
	return out
}

// Status returns how it is with each kind.
func (f *Feeder) Status() []Status {
	out := make([]Status, 0, len(f.kinds))
	for _, k := range f.kinds {
		out = append(out, k.status(time.Now()))
	}
	return out
}
