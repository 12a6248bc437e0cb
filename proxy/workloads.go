package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/warren-mesh/warren/nodeagent/zds"
)

var errPodGone = errors.New("the pod is gone")

// pods are the pods that are served. It is the zds.Handler: the node agent says
// what there is to serve.
type pods struct {
	s   *Server
	log *slog.Logger

	// ops is held through a whole change, which opens or closes listeners, mu
	// only while the fields below are looked at.
	ops sync.Mutex
	bg  sync.WaitGroup // pods that are being stopped

	mu        sync.Mutex
	running   map[string]*pod
	byName    map[podKey]*pod // the newest of those that run under a name
	pending   map[string]pendingPod
	own       []*pod          // not the agent's
	named     map[string]bool // by this connection's snapshot, until it is complete
	connected bool
	synced    bool
	ending    bool
}

// pendingPod is a pod whose listeners could not be opened.
type pendingPod struct {
	w   zds.Workload // its NS is ours
	err error
}

func newPods(s *Server) *pods {
	return &pods{
		s: s, log: s.logs.scope("zds"),
		running: make(map[string]*pod), byName: make(map[podKey]*pod), pending: make(map[string]pendingPod), named: make(map[string]bool),
	}
}

// Add serves a pod: it returns when its listeners are open. A pod for which
// that fails is tried again until the agent takes it back.
func (ps *pods) Add(ctx context.Context, w zds.Workload) error {
	ps.ops.Lock()
	defer ps.ops.Unlock()
	if w.Info.Name == "" || w.Info.Namespace == "" {
		return errors.Join(fmt.Errorf("pod %s comes without name and namespace", w.UID), w.NS.Close())
	}
	ps.mu.Lock()
	old, ending, full := ps.running[w.UID], ps.ending, len(ps.running)+len(ps.pending) >= maxPods
	ps.named[w.UID] = true
	ps.mu.Unlock()
	switch {
	case ending:
		return errors.Join(errors.New("the proxy is shutting down"), w.NS.Close())
	case old != nil && old.ns == w.NS.ID():
		ps.forget(w.UID)
		return w.NS.Close()
	case old == nil && full:
		return errors.Join(fmt.Errorf("more than %d pods", maxPods), w.NS.Close())
	}
	if old != nil {
		ps.log.Info("pod has a new network namespace", "uid", w.UID, "pod", podName(w.Info))
		ps.remove(w.UID)
	}
	return ps.start(ctx, w)
}

// start opens the listeners of a pod; ops is held.
func (ps *pods) start(ctx context.Context, w zds.Workload) error {
	p, err := ps.s.newPod(ctx, w)
	if err != nil {
		err = fmt.Errorf("failure to start proxy: %w", err)
		ps.mu.Lock()
		older, had := ps.pending[w.UID]
		ps.pending[w.UID] = pendingPod{w: w, err: err}
		ps.mu.Unlock()
		if had && older.w.NS != w.NS {
			_ = older.w.NS.Close()
		}
		ps.report()
		return err
	}
	ps.mu.Lock()
	retried := ps.pending[w.UID].w.NS == w.NS
	ps.running[w.UID] = p
	ps.byName[keyOf(p)] = p
	ps.mu.Unlock()
	ps.forget(w.UID)
	if !retried {
		_ = w.NS.Close() // the pod has its own
	}
	ps.s.metrics.started.Inc()
	ps.s.podChange()
	ps.log.Info("pod is served", "uid", w.UID, "pod", podName(w.Info), "netns", p.ns.String())
	ps.report()
	return nil
}

// forget drops what is pending of a pod.
func (ps *pods) forget(uid string) {
	ps.mu.Lock()
	pending, ok := ps.pending[uid]
	delete(ps.pending, uid)
	ps.mu.Unlock()
	if ok {
		_ = pending.w.NS.Close()
		ps.report()
	}
}

// Keep says that a pod stays.
func (ps *pods) Keep(uid string) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.named[uid] = true
}

// Del stops serving a pod. Before the snapshot is complete it only takes the
// name back: what is not named goes then.
func (ps *pods) Del(_ context.Context, uid string) error {
	ps.ops.Lock()
	defer ps.ops.Unlock()
	ps.forget(uid)
	ps.mu.Lock()
	delete(ps.named, uid)
	synced := ps.synced
	ps.mu.Unlock()
	if synced {
		ps.remove(uid)
	}
	return nil
}

// Snapshot stops the pods that this connection has not named.
func (ps *pods) Snapshot(context.Context) error {
	ps.ops.Lock()
	defer ps.ops.Unlock()
	ps.mu.Lock()
	var gone []string
	for uid := range ps.running {
		if !ps.named[uid] {
			gone = append(gone, uid)
		}
	}
	ps.named, ps.synced = make(map[string]bool), true
	ps.mu.Unlock()
	for _, uid := range gone {
		ps.remove(uid)
	}
	ps.report()
	return nil
}

// remove takes a pod out and stops it, in the background; ops is held.
func (ps *pods) remove(uid string) {
	ps.mu.Lock()
	p := ps.running[uid]
	delete(ps.running, uid)
	if p != nil && ps.byName[keyOf(p)] == p {
		delete(ps.byName, keyOf(p))
	}
	ps.mu.Unlock()
	if p == nil {
		return
	}
	ps.log.Info("pod is not served any more", "uid", uid, "pod", podName(p.info))
	p.closeListeners() // now: another pod object may want the ports
	p.endDNS()
	ps.bg.Go(p.stop)
	ps.s.metrics.stopped.Inc()
	ps.s.podChange()
	ps.report()
}

// state is zds.Client's OnState.
func (ps *pods) state(connected, synced bool) {
	ps.ops.Lock()
	defer ps.ops.Unlock()
	ps.mu.Lock()
	var drop []string
	if connected && !ps.connected { // the names come anew
		ps.named, ps.synced = make(map[string]bool), false
		for uid := range ps.pending {
			drop = append(drop, uid)
		}
	}
	ps.connected = connected
	ps.synced = connected && synced
	ps.mu.Unlock()
	for _, uid := range drop {
		ps.forget(uid)
	}
	ps.s.lines.zds.state(connected, synced)
	ps.report()
}

// retry tries pending pods again until ctx ends.
func (ps *pods) retry(ctx context.Context) {
	tick := time.NewTicker(retryPods)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			ps.retryOnce(ctx)
		case <-ctx.Done():
			return
		}
	}
}

func (ps *pods) retryOnce(ctx context.Context) {
	ps.mu.Lock()
	var uids []string
	for uid := range ps.pending {
		uids = append(uids, uid)
	}
	ps.mu.Unlock()
	for _, uid := range uids {
		ps.ops.Lock() // for each: an Add in between must not wait for all
		ps.mu.Lock()
		pending, ok := ps.pending[uid]
		ok = ok && !ps.ending
		ps.mu.Unlock()
		if ok {
			if err := ps.start(ctx, pending.w); err != nil {
				ps.log.Warn("pod is not served yet", "uid", uid, "pod", podName(pending.w.Info), "err", err)
			}
		}
		ps.ops.Unlock()
	}
}

// report tells readiness and metrics how things stand.
func (ps *pods) report() {
	ps.mu.Lock()
	running, pending, ready := len(ps.running), len(ps.pending), ps.connected && ps.synced && len(ps.pending) == 0
	ps.mu.Unlock()
	ps.s.metrics.active.Set(float64(running))
	ps.s.metrics.pending.Set(float64(pending))
	if !ps.s.cfg.Dedicated {
		ps.s.ready.Set(taskPods, ready)
	}
}

// list returns the pods that are served, by UID.
func (ps *pods) list() []*pod {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	out := make([]*pod, 0, len(ps.running)+len(ps.own))
	for _, p := range ps.running {
		out = append(out, p)
	}
	out = append(out, ps.own...)
	slices.SortFunc(out, func(a, b *pod) int { return cmpText(a.uid, b.uid) })
	return out
}

// drain ends all pods: their listeners close at once, their connections have
// until ctx ends.
func (ps *pods) drain(ctx context.Context) {
	ps.ops.Lock()
	ps.mu.Lock()
	ps.ending = true
	ps.mu.Unlock()
	var wg sync.WaitGroup
	for _, p := range ps.list() {
		wg.Go(func() { p.drain(ctx) })
	}
	ps.mu.Lock()
	var pending []string
	for uid := range ps.pending {
		pending = append(pending, uid)
	}
	ps.mu.Unlock()
	for _, uid := range pending {
		ps.forget(uid)
	}
	ps.ops.Unlock()
	wg.Wait()
	ps.bg.Wait()
}

func podName(i zds.Info) string { return i.Namespace + "/" + i.Name }
