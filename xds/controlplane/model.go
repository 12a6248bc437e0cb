package controlplane

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/kubeauth"
	caserver "github.com/warren-mesh/warren/ca/server"
	"github.com/warren-mesh/warren/xds/server"
	"github.com/warren-mesh/warren/xds/translate"
)

const (
	// patience is how long a request for a certificate waits for its pod to appear: a
	// node's agent reads the same folder, and may be a moment earlier.
	patience = time.Second
	// maxPatient bounds the requests that wait at a time; others are refused at once.
	maxPatient = 256
	// longestRest bounds the time between a model and the next.
	longestRest = time.Second
	// toldEvery is how often at most the log is told that the model changed.
	toldEvery = 10 * time.Second
	// maxProblemLines bounds the log lines that one change can cause.
	maxProblemLines = 100
)

// model keeps what is made of the newest objects. It is the CA's Authorizer for nodes
// with tokens, and where kubeauth reads of pods.
type model struct {
	opts    translate.Options
	publish func(*server.Snapshot)
	log     *slog.Logger
	waiting chan struct{} // a slot for each request that waits
	told    time.Time     // when the log was told of a change; update's

	complained map[translate.Problem]bool // what the log was told of; update's

	mu       sync.Mutex
	objects  translate.Objects
	result   translate.Result
	cluster  kubeauth.Cluster // objects and result as kubeauth reads them
	snapshot *server.Snapshot // nil before the first objects
	complete bool             // everything was read once
	missing  []string         // what has not been, until then
	changed  chan struct{}    // closed, and replaced, when they change
}

func newModel(opts translate.Options, publish func(*server.Snapshot), log *slog.Logger) *model {
	return &model{opts: opts, publish: publish, log: log, waiting: make(chan struct{}, maxPatient), changed: make(chan struct{})}
}

// run follows a feed until ctx ends.
func (m *model) run(ctx context.Context, f feed) error {
	for {
		m.await(f.Untaken())
		began := time.Now()
		objects, changed := f.Read()
		if err := m.update(objects); err != nil {
			return err
		}
		// Where much changes all the time, half of one core is enough for it.
		rest := time.NewTimer(min(time.Since(began), longestRest))
		select {
		case <-ctx.Done():
			rest.Stop()
			return nil
		case <-rest.C:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// await holds what proxies are told back until everything was read once. A file that
// became unreadable keeps its objects, but not over a restart, and proxies that are told
// of a mesh without it drop its policies: told nothing, they keep what they have. The CA
// goes on for the pods that are known.
func (m *model) await(untaken []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.complete {
		return
	}
	if len(untaken) > 0 && !slices.Equal(untaken, m.missing) {
		m.log.Error("proxies are told nothing until every file has been read once: mend or remove it", "files", len(untaken), "err", untaken[0])
	}
	m.missing, m.complete = untaken, len(untaken) == 0
}

// unready says what keeps proxies from being told, empty for nothing.
func (m *model) unready() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.snapshot == nil:
		return "the model has not been made yet"
	case !m.complete:
		return fmt.Sprintf("proxies are told nothing until every file has been read once: %s", m.missing[0])
	}
	return ""
}

// update makes the model of new objects.
func (m *model) update(objects translate.Objects) error {
	result, err := translate.All(objects, m.opts)
	if err != nil {
		return err
	}
	_, previous, _ := m.current()
	snapshot, err := server.NewSnapshot(previous, server.Model{Workloads: result.Workloads, Services: result.Services, Policies: result.Policies})
	if err != nil { // the rest of it is good
		m.log.Error("not everything can be served", "err", err)
	}
	m.mu.Lock()
	m.objects, m.result, m.snapshot = objects, result, snapshot
	m.cluster = kubeauth.Index(objects.Pods, func(node string, id spiffeid.ID) bool { return result.Placements[node][id] })
	close(m.changed)
	m.changed = make(chan struct{})
	complete := m.complete
	m.mu.Unlock()
	if complete {
		m.publish(snapshot)
	}
	if previous == nil || previous.Version() != snapshot.Version() {
		level := slog.LevelDebug // in a cluster something changes all the time
		if time.Since(m.told) > toldEvery {
			level, m.told = slog.LevelInfo, time.Now()
		}
		m.log.Log(context.Background(), level, "model changed", "version", snapshot.Version(), "workloads", len(result.Workloads),
			"services", len(result.Services), "policies", len(result.Policies), "problems", len(result.Problems))
	}
	m.complain(result.Problems)
	return nil
}

// complain logs problems, each once while it lasts, and a bounded number at a time: the
// rest with the changes that come.
func (m *model) complain(now []translate.Problem) {
	told := make(map[translate.Problem]bool, len(now))
	lines, untold := 0, 0
	for _, p := range now {
		if m.complained[p] || told[p] {
			told[p] = true
			continue
		}
		if lines == maxProblemLines {
			untold++
			continue
		}
		lines++
		told[p] = true
		m.log.Warn("not translated as written", "kind", p.Kind, "namespace", p.Namespace, "name", p.Name, "field", p.Field, "err", p.Reason)
	}
	if untold > 0 {
		m.log.Warn("further problems are logged after the next change", "problems", untold)
	}
	m.complained = told
}

func (m *model) current() (translate.Result, *server.Snapshot, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.result, m.snapshot, m.changed
}

// policies returns the newest objects with what became of them.
func (m *model) policies() (translate.Objects, translate.Result, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.objects, m.result, m.changed
}

// Read implements kubeauth.Source.
func (m *model) Read() (kubeauth.Cluster, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cluster, m.changed
}

// Allowed lets a node have certificates for the pods that are placed on it.
func (m *model) Allowed(caller caserver.Caller, id spiffeid.ID) error {
	result, _, changed := m.current()
	if result.Placements[caller.Node][id] {
		return nil
	}
	select {
	case m.waiting <- struct{}{}:
		defer func() { <-m.waiting }()
	default:
		return fmt.Errorf("no pod with identity %s is on node %s, and too many requests wait for pods to appear", id, caller.Node)
	}
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		select {
		case <-changed:
		case <-limit.C:
			return fmt.Errorf("no pod of the mesh with identity %s is on node %s", id, caller.Node)
		}
		if result, _, changed = m.current(); result.Placements[caller.Node][id] {
			return nil
		}
	}
}
