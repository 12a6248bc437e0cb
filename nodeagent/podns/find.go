package podns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/podproc"
)

// Wanted is a pod whose namespace is looked for, and what is known of it.
type Wanted struct {
	UID        string
	IPs        []netip.Addr // one must be in the namespace; none: that is not asked
	Containers []string     // IDs of its containers, as in its status, without the runtime's name
}

// Found is a pod's namespace, or why there is none.
type Found struct {
	NS        *netns.NS // the caller's
	Path      string    // the same, by way of a process, for as long as that lives
	Container string    // ID of the sandbox; "" is not known
	Err       error
	Proof     Proof
}

// Proof says why it is this one.
type Proof struct {
	PID    int    // the pod's first process that is alive
	Start  uint64 // when it started, in clock ticks since boot
	Held   bool   // the runtime holds the namespace
	Strays int    // other namespaces that processes of the pod were in
}

// The reasons why nothing is found.
var (
	ErrNoProcess   = errors.New("no process of it was found on this node")
	ErrHostNetwork = errors.New("its processes are in the host's network namespace")
	ErrNotItsIPs   = errors.New("its namespace has none of the addresses that its status names")
	ErrAnothers    = errors.New("the namespace that its processes are in is another pod's")
)

// Finder finds namespaces. It keeps nothing between calls.
type Finder struct{ proc string }

// New makes a Finder that looks in the host's /proc, which an agent has as its
// own /proc if it shares the host's processes.
func New(proc string) *Finder { return &Finder{proc: proc} }

// Find looks for all of the pods in one go through /proc. Each has an answer. The
// error is that it could not look at all, or not to the end.
func (f *Finder) Find(ctx context.Context, pods []Wanted) (map[string]Found, error) {
	seen, err := f.scan(ctx, pods)
	if err != nil {
		return nil, fmt.Errorf("podns: look for %d pods: %w", len(pods), err)
	}
	held, hosts := held(f.proc), hosts(f.proc)
	found := map[string]Found{}
	for _, w := range pods {
		if _, twice := found[w.UID]; !twice {
			found[w.UID] = f.choose(w, seen[w.UID], held, hosts)
		}
	}
	oneEach(found)
	return found, nil
}

// scan collects the processes of the pods.
func (f *Finder) scan(ctx context.Context, pods []Wanted) (map[string][]process, error) {
	wanted, containers := map[string]string{}, map[string]string{} // to the UID as it was asked for
	for _, w := range pods {
		wanted[strings.ToLower(w.UID)] = w.UID
		for _, id := range w.Containers {
			containers[strings.ToLower(id)] = w.UID
		}
	}
	all, err := podproc.PIDs(f.proc)
	if err != nil {
		return nil, err
	}
	seen := map[string][]process{}
	for _, pid := range all {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		// Most are none of ours, or gone by now.
		at, err := podproc.ReadPlace(filepath.Join(f.proc, strconv.Itoa(pid), "cgroup"))
		if err != nil || whose(at, wanted, containers) == "" {
			continue
		}
		p, ns, err := look(f.proc, pid)
		if err != nil {
			continue
		}
		ns.Close()
		if uid := whose(p.Place, wanted, containers); uid != "" {
			seen[uid] = append(seen[uid], p)
		}
	}
	return seen, nil
}

// whose says which of the pods that are wanted a process is of. Where its control
// groups name no pod its container has to.
func whose(p podproc.Place, wanted, containers map[string]string) string {
	if p.UID != "" {
		return wanted[p.UID]
	}
	return containers[p.Container]
}

// choose takes the namespace of a pod's first process: the sandbox's, where it has
// one, and nobody in the pod is older. Where it can be seen which namespaces the
// runtime holds, only those count, and if the first has none of the pod's addresses
// the next may: a sandbox that was replaced can live on for a while.
func (f *Finder) choose(w Wanted, processes []process, held map[uint64]bool, hosts map[netns.ID]bool) Found {
	if len(processes) == 0 {
		return Found{Err: ErrNoProcess}
	}
	listed := func(p process) bool { return slices.Contains(w.Containers, p.Container) }
	slices.SortFunc(processes, func(a, b process) int {
		return cmp.Or(cmp.Compare(a.start, b.start), compareBool(listed(a), listed(b)), cmp.Compare(a.pid, b.pid))
	})
	processes = slices.DeleteFunc(processes, func(p process) bool { return hosts[p.ns] })
	if len(processes) == 0 {
		return Found{Err: ErrHostNetwork}
	}
	spaces := map[netns.ID]bool{}
	for _, p := range processes {
		spaces[p.ns] = true
	}
	isHeld := func(p process) bool { return held[p.ns.Ino] }
	runtimes := slices.ContainsFunc(processes, isHeld)
	refused := map[netns.ID]bool{}
	for _, p := range processes {
		if runtimes && !isHeld(p) || refused[p.ns] {
			continue
		}
		ns, err := f.confirm(p)
		if err != nil { // it has ended or moved
			continue
		}
		if has, err := hasAny(ns, w.IPs); err != nil || !has {
			ns.Close()
			if refused[p.ns] = true; !runtimes {
				break
			}
			continue
		}
		r := Found{NS: ns, Path: filepath.Join(f.proc, strconv.Itoa(p.pid), "ns/net"),
			Proof: Proof{PID: p.pid, Start: p.start, Held: isHeld(p), Strays: len(spaces) - 1}}
		if !listed(p) {
			r.Container = p.Container
		}
		return r
	}
	if len(refused) > 0 {
		return Found{Err: ErrNotItsIPs}
	}
	return Found{Err: ErrNoProcess}
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// confirm opens the namespace of a process that was seen, if it is still that
// process, in that pod and there.
func (f *Finder) confirm(seen process) (*netns.NS, error) {
	now, ns, err := look(f.proc, seen.pid)
	if err != nil {
		return nil, err
	}
	if now != seen {
		ns.Close()
		return nil, ErrNoProcess
	}
	return ns, nil
}

// hasAny says whether a namespace has one of the addresses; with none to look for
// it has.
func hasAny(ns *netns.NS, ips []netip.Addr) (has bool, err error) {
	if len(ips) == 0 {
		return true, nil
	}
	var addrs []net.Addr
	err = ns.Do(func() (err error) {
		addrs, err = net.InterfaceAddrs()
		return err
	})
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			ip, _ := netip.AddrFromSlice(n.IP)
			has = has || slices.ContainsFunc(ips, func(w netip.Addr) bool { return w.Unmap() == ip.Unmap() })
		}
	}
	return has, err
}

// oneEach sees to it that no namespace is two pods'. The runtime makes one for a
// pod, so the pod whose process is older has it.
func oneEach(found map[string]Found) {
	owner := map[netns.ID]string{}
	for _, uid := range slices.Sorted(maps.Keys(found)) {
		f := found[uid]
		if f.NS == nil {
			continue
		}
		other, taken := owner[f.NS.ID()]
		if !taken {
			owner[f.NS.ID()] = uid
			continue
		}
		loser := uid
		if o := found[other]; f.Proof.Start < o.Proof.Start {
			loser, owner[f.NS.ID()] = other, uid
		}
		found[loser].NS.Close()
		found[loser] = Found{Err: fmt.Errorf("%w (%s)", ErrAnothers, owner[f.NS.ID()])}
	}
}
