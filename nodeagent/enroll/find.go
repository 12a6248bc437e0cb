package enroll

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/internal/netns"
)

// Finder finds the network namespaces of pods that run already.
type Finder interface {
	// Find looks for all of them at once. A pod that is not in the answer was not
	// found. The namespaces are the caller's.
	Find(ctx context.Context, pods []Wanted) (map[string]Found, error)
}

// Wanted is a pod whose namespace is looked for, and what it is known by.
type Wanted struct {
	UID        string
	IPs        []netip.Addr
	Containers []string
}

// Found is a pod's namespace.
type Found struct {
	NS        *netns.NS
	Path      string // on the host
	Container string // ID of the sandbox; empty: not known
	Err       error  // why there is no namespace
}

const (
	findTimeout = 20 * time.Second // for one look for all pods
	// unseenName begins the container's ID of a pod that was found, where the sandbox
	// has none that can be seen.
	unseenName = "found-"
)

var errNotFound = errors.New("no process of it was found on this node, so that its network namespace is not known")

// sought is a running pod whose namespace is looked for.
type sought struct {
	name   PodName
	next   time.Time // when to look again
	wait   time.Duration
	reason string // why it was not found the last time
}

// search looks, until ctx ends, for the pods that run and whose ADD was not seen:
// they are older than the plugin or this agent's memory. All that are due are
// looked for at once; each has its own waits.
func (e *Enroller) search(ctx context.Context) {
	for {
		view, changed := e.cfg.World.View()
		due, wait := e.due(view, time.Now())
		if len(due) > 0 {
			e.look(ctx, due)
			if ctx.Err() == nil {
				continue
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// due are the pods to look for now, and the time until there are more.
func (e *Enroller) due(view *View, now time.Time) (due []Pod, wait time.Duration) {
	wait = maxRetry
	if view == nil {
		return nil, wait
	}
	rival := e.rival(view)
	if rival != "" { // its end is announced by nothing
		wait = e.times.Sweep
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	seen := make(map[string]bool)
	for _, p := range view.Pods() {
		if !e.lostLocked(view, p, rival) {
			continue
		}
		seen[p.UID] = true
		s := e.seeking[p.UID]
		if s == nil {
			s = &sought{name: p.PodName, wait: e.times.Retry}
			e.seeking[p.UID] = s
		}
		if left := s.next.Sub(now); left > 0 {
			wait = min(wait, left)
			continue
		}
		due = append(due, p)
	}
	for uid := range e.seeking {
		if !seen[uid] {
			delete(e.seeking, uid)
		}
	}
	return due, wait
}

// lostLocked says whether a pod has to be looked for: it is to be in the mesh, or
// says that it is, and nothing is known about its namespace.
func (e *Enroller) lostLocked(view *View, p Pod, rival string) bool {
	if e.retired != "" || p.UID == "" || !p.running() || rival != "" || view.Exempt(p.Namespace) || view.Undecided(p) != nil {
		return false
	}
	m := e.members[p.UID]
	return (m == nil || m.box == nil && m.users == 0) && (p.Eligible.InMesh || p.Marked != "")
}

func (e *Enroller) look(ctx context.Context, pods []Pod) {
	ctx, cancel := context.WithTimeoutCause(ctx, findTimeout, fmt.Errorf("not done within %s", findTimeout))
	defer cancel()
	wanted := make([]Wanted, len(pods))
	for i, p := range pods {
		wanted[i] = Wanted{UID: p.UID, IPs: p.IPs, Containers: p.Containers}
	}
	began := time.Now()
	found, err := e.cfg.Finder.Find(ctx, wanted)
	n := 0
	for _, p := range pods {
		f, ok := found[p.UID]
		switch {
		case err != nil && f.Err == nil && f.NS == nil:
			f.Err = err
		case !ok || f.NS == nil && f.Err == nil:
			f.Err = errNotFound
		}
		if f.Err == nil {
			f.Err = e.adopt(p, f)
		} else if f.NS != nil {
			f.NS.Close()
		}
		if f.Err != nil {
			e.notFound(p, f.Err)
			continue
		}
		n++
	}
	e.log.Info("looked for running pods", "pods", len(pods), "found", n, "took", time.Since(began))
}

// notFound notes why a pod's namespace is not known, and when to look again.
func (e *Enroller) notFound(p Pod, err error) {
	e.mu.Lock()
	s := e.seeking[p.UID]
	if s == nil { // it is gone, or its ADD came
		e.mu.Unlock()
		return
	}
	s.next, s.reason = time.Now().Add(s.wait), err.Error()
	// A pod that has just started has processes soon. That is no refusal yet.
	again := s.wait > e.times.Retry
	s.wait = min(2*s.wait, maxRetry)
	e.mu.Unlock()
	if again {
		e.tell(p.PodName, p.ObjectUID, NoticeRefused, err.Error())
	}
}

// adopt makes a member of a pod that was found. It is outside the mesh at first,
// or, when it says that it is in and is not to be, on its way out. It takes
// ownership of the namespace.
func (e *Enroller) adopt(p Pod, f Found) (err error) {
	defer func() {
		if err != nil {
			f.NS.Close()
		}
	}()
	if err := e.notTheHosts(f.NS); err != nil {
		return err
	}
	ips, err := ownIPs(f.NS, p.IPs)
	if err != nil {
		return err
	}
	key := event.Key{ContainerID: firstOf(f.Container, unseenName+p.UID), IfName: "eth0"}
	box := &sandbox{ns: f.NS, id: f.NS.ID(), path: f.Path, attached: map[event.Key]attachment{key: {
		source: SourceFound, added: time.Now().UTC(),
		add: event.Add{Key: key, PodName: p.Name, PodNamespace: p.Namespace, PodUID: p.UID, IPs: ips, Netns: f.Path},
	}}}
	phase, reason := PhaseLeft, "it ran before this agent knew it"
	if !p.Eligible.InMesh {
		d := e.cfg.Redirect
		d.Backend = e.cfg.Backend.Name()
		box.redirect, phase, reason = &d, PhaseLeaving, p.Eligible.Reason
	}
	e.mu.Lock()
	if m := e.members[p.UID]; m != nil { // its ADD came meanwhile
		e.mu.Unlock()
		f.NS.Close()
		return nil
	}
	m := &member{uid: p.UID, busy: make(chan struct{}, 1), name: p.PodName, serviceAccount: p.ServiceAccount, box: box}
	e.members[p.UID], e.keys[key] = m, p.UID
	delete(e.seeking, p.UID)
	m.busy <- struct{}{}
	m.users++
	e.mu.Unlock()
	defer e.release(m)
	if err := e.setPhase(m, phase, reason); err != nil {
		e.log.Error("cannot write down a pod that was found", "pod", m.name.String(), "uid", m.uid, "err", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.convergeLocked(m)
	return nil
}

// ownIPs are those of a pod's addresses that its namespace has: what an object
// says is not to be relied on.
func ownIPs(ns *netns.NS, ips []netip.Addr) (own []netip.Prefix, err error) {
	var addrs []net.Addr
	err = ns.Do(func() (err error) { addrs, err = net.InterfaceAddrs(); return err })
	if err != nil {
		return nil, fmt.Errorf("enroll: addresses of the pod: %w", err)
	}
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		ip, ok := netip.AddrFromSlice(n.IP)
		if ip = ip.Unmap(); ok && slices.Contains(ips, ip) {
			ones, _ := n.Mask.Size()
			own = append(own, netip.PrefixFrom(ip, ones))
		}
	}
	return own, nil
}

// refind opens the namespace of a pod whose path has gone: that of a pod that was
// found is a process's, and processes come and go in a pod.
func (e *Enroller) refind(ctx context.Context, m *member) (*netns.NS, error) {
	if e.cfg.Finder == nil {
		return nil, errGone
	}
	e.mu.Lock()
	w, id := Wanted{UID: m.uid, IPs: addresses(m.box)}, m.box.id
	e.mu.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, findTimeout, fmt.Errorf("not done within %s", findTimeout))
	defer cancel()
	all, err := e.cfg.Finder.Find(ctx, []Wanted{w})
	f := all[m.uid]
	switch {
	case f.Err != nil:
		err = f.Err
	case err == nil && f.NS == nil:
		err = errNotFound
	case err == nil && f.NS.ID() != id:
		err = fmt.Errorf("%w: the pod has another", errGone)
	}
	if err != nil {
		if f.NS != nil {
			f.NS.Close()
		}
		return nil, err
	}
	e.mu.Lock()
	m.box.path = f.Path
	e.mu.Unlock()
	return f.NS, nil
}
