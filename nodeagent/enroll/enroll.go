package enroll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/nodeagent/zds"
)

// World is where the objects come from.
type World interface {
	// View returns the newest view, nil while nothing is known yet, and a channel
	// that is closed when it is no longer the newest.
	View() (*View, <-chan struct{})
}

// Proxy serves pods; zds.Server is one.
type Proxy interface {
	Add(ctx context.Context, w zds.Workload) error
	Del(ctx context.Context, uid string) error
}

// Flows counts the connections that the proxy carries for a pod, as they were at some
// moment not before since. An error means that it cannot be known.
type Flows interface {
	Flows(ctx context.Context, uid string, since time.Time) (int, error)
}

// Config is what an Enroller works with. All of it is required but where it says
// otherwise.
type Config struct {
	StateDir string // attachments, away file and tombstones
	HostRoot string // where the host's files are seen; "/" on the host itself
	Proc     string // the same of its /proc; empty: below HostRoot
	BootID   string // of the running kernel; empty: unknown

	Redirect event.Redirect   // what pods get unless they say otherwise; Backend is filled in
	Backend  redirect.Backend // for pods that have no other yet
	// Named finds the backend that a pod was programmed with before.
	Named func(name string) (redirect.Backend, error)

	Proxy  Proxy
	World  World
	Flows  Flows  // nil: unknown
	Finder Finder // nil: running pods whose ADD was not seen are not looked for
	Watch  Watch  // nil: pods are looked at in turn only
	Probes Probes // nil: nothing is to be done for kubelet's probes

	// Connections are looked at when a running pod is captured; nil: nobody looks.
	Connections Connections
	Policies    Policies // nil: nobody is asked which of them must end
	// SelfProbe: the audit connects to the proxy inside each pod, too.
	SelfProbe bool
	// Rival names what shows that another mesh's agent is at work on this node;
	// empty: nothing does. nil: nobody looks.
	Rival func() string
	// RivalChained names the network configuration by which runtimes run its plugin,
	// empty for none, and says whether that is run behind ours. nil: nobody looks.
	RivalChained func() (file string, follows bool)
	// Stale says why no news of objects arrive; empty: they do. nil: they always do.
	Stale func() string
	// Exempt are the namespaces whose pods are left alone whatever is known of them.
	Exempt []string
	// Tell is told what people are to hear about a pod; nil: nobody is. It must not
	// block.
	Tell func(Notice)
	// Observe is told of each change of a pod: "add", "del", "enroll", "leave",
	// "repair"; nil: nobody is. It must not block.
	Observe func(what string, took time.Duration, err error)
	Log     *slog.Logger

	Times Times
}

// Source says who announced an attachment.
type Source string

// The sources. Istio's plugin knows neither DEL nor GC: its pods go when their
// object and their namespace are gone.
const (
	SourcePlugin Source = "warren-cni"
	SourceIstio  Source = "istio-cni"
	SourceFound  Source = "found" // nobody: the agent found it running
)

// attachment is one interface of a sandbox, as announced.
type attachment struct {
	network string
	source  Source
	add     event.Add
	added   time.Time
}

// sandbox is a pod's network namespace. A pod may get another, never two at once.
type sandbox struct {
	ns       *netns.NS // nil: not open, because outside the mesh or not to be found now
	id       netns.ID
	path     string          // on the host
	redirect *event.Redirect // what is (to be) programmed; nil: nothing
	theirs   string          // the form of another mesh's rules that ours took the place of; empty: there were none
	attached map[event.Key]attachment
}

// found says whether nobody but this agent's search told of a sandbox, so that its
// path is that of one of its processes.
func (b *sandbox) found() bool {
	for _, a := range b.attached {
		if a.source != SourceFound {
			return false
		}
	}
	return true
}

// member is a pod of this node that has (or is about to get) a sandbox. All
// fields but uid and busy are guarded by the enroller's mutex; who holds busy is
// the only one to change phase, box and announced.
type member struct {
	uid  string
	busy chan struct{} // capacity 1: full while somebody changes this pod

	users     int                // who holds or waits for busy
	interrupt context.CancelFunc // stops what the agent does of its own accord
	worker    bool               // a worker converges this pod
	lookAgain bool               // it must not end without another look

	name           PodName
	serviceAccount string
	phase          Phase
	box            *sandbox
	announced      bool         // part of the proxy's snapshot
	since          time.Time    // of the phase
	reason         string       // of the phase, or what went wrong last
	suspect        time.Time    // until then the rules are looked at in every sweep
	probed         []netip.Addr // that the host lets kubelet's probes through to
	probeErr       string       // why it does not
	saidIPs        []netip.Addr // what its object said last
	strange        string       // of those, what it does not have
	addressTold    string       // what was told about its addresses
	let            bool         // its capture was ended, or that was tried
	unmark         bool         // its mark has to go, whoever else is at work here
	audit          audited
	before         before
	retry          time.Time // not before, the listeners are asked for again
	warned         string    // what was told about its annotations
}

// Enroller takes pods into the mesh and out of it. It implements event.Handler.
type Enroller struct {
	cfg   Config
	log   *slog.Logger
	store store
	times Times

	mu         sync.Mutex
	members    map[string]*member   // by pod UID
	keys       map[event.Key]string // → pod UID, also of ADDs under way
	refusals   map[PodName]Refusal
	burying    bool               // a sweep applies tombstones
	listening  bool               // a sweep looks at listeners
	digesting  bool               // a sweep looks at tables of the legacy variant
	tending    bool               // a sweep looks after connections of before
	nudge      chan struct{}      // capacity 1: a pod is to be looked at
	inspecting chan struct{}      // full while as many pods are looked at as may be at once
	seeking    map[string]*sought // by pod UID
	changed    chan struct{}      // closed, and replaced, when a pod's phase changes
	retired    string             // why no pod is taken into the mesh any more; empty: they are
	rivalWas   rivalSeen
	slots      chan struct{} // full while as many running pods are changed as may be at once
	turns      chan struct{} // full while as many are handed to the proxy as may be at once

	ctx     context.Context // of Run: workers end with it
	workers sync.WaitGroup
}

// New makes an enroller. Recover and then Run bring it to life.
func New(cfg Config) (*Enroller, error) {
	st, err := openStore(filepath.Join(cfg.StateDir, "attachments"))
	if err != nil {
		return nil, err
	}
	if cfg.Observe == nil {
		cfg.Observe = func(string, time.Duration, error) {}
	}
	return &Enroller{
		cfg: cfg, log: cfg.Log, store: st, times: cfg.Times.withDefaults(),
		members: make(map[string]*member), keys: make(map[event.Key]string), refusals: make(map[PodName]Refusal),
		seeking: make(map[string]*sought), changed: make(chan struct{}), slots: make(chan struct{}, liveAtOnce), turns: make(chan struct{}, liveAtOnce),
		nudge: make(chan struct{}, 1), inspecting: make(chan struct{}, inspectedAtOnce),
	}, nil
}

// acquire waits for the sole right to change a pod, and stops what the agent does
// to it of its own accord. It is given back with release.
func (e *Enroller) acquire(ctx context.Context, uid string) (*member, error) {
	e.mu.Lock()
	m := e.members[uid]
	if m == nil {
		m = &member{uid: uid, busy: make(chan struct{}, 1)}
		e.members[uid] = m
	}
	m.users++
	if m.interrupt != nil {
		m.interrupt()
	}
	e.mu.Unlock()
	select {
	case m.busy <- struct{}{}:
		return m, nil
	case <-ctx.Done():
		e.drop(m)
		return nil, &event.Error{Retryable: true, Msg: "the node agent is still busy with an earlier request for this pod", Details: "try again"}
	}
}

func (e *Enroller) release(m *member) {
	<-m.busy
	e.drop(m)
}

func (e *Enroller) drop(m *member) {
	e.mu.Lock()
	defer e.mu.Unlock()
	m.users--
	if m.users == 0 && m.box == nil {
		delete(e.members, m.uid)
	}
}

// setPhase moves a pod and writes that down.
func (e *Enroller) setPhase(m *member, p Phase, reason string) error {
	e.mu.Lock()
	if m.phase != p {
		m.phase, m.since = p, time.Now()
		e.wakeLocked()
	}
	m.reason = reason
	m.let = m.let && p == PhaseLeaving
	records := e.recordsLocked(m)
	e.mu.Unlock()
	return e.put(records)
}

func (e *Enroller) put(records []record) error {
	var errs []error
	for _, r := range records {
		errs = append(errs, e.store.put(r))
	}
	return errors.Join(errs...)
}

func (e *Enroller) recordsLocked(m *member) (records []record) {
	for key, a := range m.box.attached {
		records = append(records, record{
			Key: key, Network: a.network, Source: a.source,
			PodUID: m.uid, PodNamespace: m.name.Namespace, PodName: m.name.Name, ServiceAccount: m.serviceAccount,
			IPs: a.add.IPs, Netns: m.box.path, NetnsID: m.box.id, BootID: e.cfg.BootID,
			Phase: m.phase, Redirect: m.box.redirect, Reason: m.reason, Added: a.added,
			Before: m.before.kept(), BeforeMore: m.before.count() - len(m.before.kept()), BeforeUnseen: m.before.anew,
			Theirs: m.box.theirs,
		})
	}
	return records
}

// Snapshot is every pod that the proxy is to serve; zds.Server calls it. A pod
// whose namespace cannot be found now is named without it.
func (e *Enroller) Snapshot() []zds.Workload {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []zds.Workload
	for _, m := range e.sortedLocked() {
		if m.announced {
			all = append(all, e.workloadLocked(m))
		}
	}
	return all
}

func (e *Enroller) workloadLocked(m *member) zds.Workload {
	return zds.Workload{
		UID: m.uid, NS: m.box.ns,
		Info: zds.Info{Name: m.name.Name, Namespace: m.name.Namespace, ServiceAccount: m.serviceAccount},
	}
}

// announce puts a pod into the snapshot and tells the proxy.
func (e *Enroller) announce(ctx context.Context, m *member) error {
	e.mu.Lock()
	m.announced = true
	w := e.workloadLocked(m)
	e.mu.Unlock()
	return e.cfg.Proxy.Add(ctx, w)
}

// withdraw is the opposite. The proxy is told in any case; that it has not
// acked in time is not the caller's problem, since it can only obey or lose the
// connection, and the next snapshot lacks the pod.
func (e *Enroller) withdraw(ctx context.Context, m *member) error {
	e.mu.Lock()
	told := m.announced
	m.announced = false
	e.mu.Unlock()
	if !told {
		return nil
	}
	if err := e.cfg.Proxy.Del(ctx, m.uid); err != nil {
		e.log.Warn("the proxy has not confirmed that a pod is gone", "pod", m.name.String(), "uid", m.uid, "err", err)
	}
	return nil
}

// hostPath is where we see a path of the host's.
func (e *Enroller) hostPath(path string) string {
	if rest, ok := strings.CutPrefix(path, "/proc/"); ok && e.cfg.Proc != "" {
		return filepath.Join(e.cfg.Proc, rest)
	}
	return filepath.Join(e.cfg.HostRoot, path)
}

// backend is the one a pod was programmed with.
func (e *Enroller) backend(r *event.Redirect) (redirect.Backend, error) {
	if r == nil || r.Backend == "" || r.Backend == e.cfg.Backend.Name() {
		return e.cfg.Backend, nil
	}
	b, err := e.cfg.Named(r.Backend)
	if err != nil {
		return nil, fmt.Errorf("enroll: the pod was redirected by the backend %s: %w", r.Backend, err)
	}
	return b, nil
}

func rulesConfig(r event.Redirect) redirect.Config {
	return redirect.Config{
		IPv4: true, IPv6: r.IPv6, DNS: r.DNS, BypassInbound: r.BypassInbound, VirtualInterfaces: r.VirtualInterfaces,
		ProbeIP4: r.ProbeIP4, ProbeIP6: r.ProbeIP6,
	}
}

// verify returns an error that says what differs.
func verify(b redirect.Backend, ns *netns.NS, r event.Redirect) error {
	diffs, err := b.Verify(ns, rulesConfig(r))
	if err != nil {
		return err
	}
	if len(diffs) > 0 {
		return fmt.Errorf("%d differences: %s", len(diffs), strings.Join(diffs[:min(len(diffs), 3)], "; "))
	}
	return nil
}

// Close closes what is open of every pod, which stays as it is: a successor
// finds it again. Nothing may be called any more.
func (e *Enroller) Close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range e.members {
		if m.box != nil && m.box.ns != nil {
			m.box.ns.Close()
		}
	}
}
