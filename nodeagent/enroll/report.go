package enroll

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/nodeagent/zds"
)

// maxRefusals bounds what is remembered of pods that could not start.
const maxRefusals = 256

// Refusal is the last reason why a pod's ADD failed.
type Refusal struct {
	Time   time.Time
	Reason string
}

// refused remembers why the ADD of a pod failed, and returns err. Its UID, as the runtime
// has it, may be empty.
func (e *Enroller) refused(name PodName, uid string, err error) error {
	e.tell(name, e.objectUID(name, uid), NoticeRefused, err.Error())
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.refusals) >= maxRefusals {
		var oldest PodName
		for n, r := range e.refusals {
			if o, ok := e.refusals[oldest]; !ok || r.Time.Before(o.Time) {
				oldest = n
			}
		}
		delete(e.refusals, oldest)
	}
	e.refusals[name] = Refusal{time.Now(), err.Error()}
	return err
}

// Report is where one pod stands.
type Report struct {
	Name     PodName
	UID      string
	IPs      []netip.Addr
	Netns    string   // path on the host
	NetnsID  netns.ID // zero: none
	Phase    Phase
	Since    time.Time
	Eligible bool   // the objects want it in the mesh
	Known    bool   // there is an object for it
	Reason   string // why it is where it is, or what went wrong last
	Redirect *event.Redirect
	// Refusal is the last failure of a pod that has no sandbox yet.
	Refusal *Refusal
	// Warnings are what is wrong with the pod's annotations, which are ignored.
	Warnings []string
	// Marked is what the pod's annotation says of its redirection.
	Marked string
	// Proof is what the audit has found of a pod in the mesh, Flaw what is wrong.
	Proof Proof
	Flaw  string
	// Before is how many connections are older than the pod's time in the mesh and go
	// on outside of it; BeforeNote why it is not known whether policies allow them.
	Before     int
	BeforeNote string
}

// Report returns every pod of the node that has a sandbox or is to be in the
// mesh, by name.
func (e *Enroller) Report() []Report {
	view, _ := e.cfg.World.View()
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []Report
	seen := make(map[PodName]bool)
	for _, m := range e.members {
		if m.box == nil {
			continue
		}
		r := Report{
			Name: m.name, UID: m.uid, IPs: addresses(m.box), Netns: m.box.path, NetnsID: m.box.id,
			Phase: m.phase, Since: m.since, Reason: m.reason, Redirect: m.box.redirect,
		}
		if m.phase == PhaseEnrolled {
			r.Proof, r.Flaw = m.audit.state()
			r.Before, r.BeforeNote = m.before.count(), m.before.note
		}
		if view != nil {
			if p, ok := view.Pod(m.name, m.uid); ok {
				seen[m.name] = true
				r.Known, r.Eligible, r.Marked = true, p.Eligible.InMesh, p.Marked
				if r.Eligible {
					r.Warnings = warnings(p)
				}
				if m.strange != "" {
					r.Warnings = append(r.Warnings, m.strange)
				}
				if m.probeErr != "" {
					r.Warnings = append(r.Warnings, "kubelet's probes: "+m.probeErr)
				}
			}
		}
		all = append(all, r)
	}
	if view != nil {
		for _, p := range view.Pods() {
			if seen[p.PodName] || !p.Eligible.InMesh {
				continue
			}
			all = append(all, e.absentLocked(p, e.rival(view)))
		}
	}
	warnOfShared(all)
	slices.SortFunc(all, func(a, b Report) int {
		if c := a.Name.compare(b.Name); c != 0 {
			return c
		}
		return strings.Compare(a.UID, b.UID)
	})
	return all
}

// warnOfShared adds to pods with a sandbox what other pod of the node has the same
// address. The runtime gives each its own; what is sent there reaches one of them.
func warnOfShared(all []Report) {
	have := make(map[netip.Addr][]int)
	for i, r := range all {
		for _, a := range r.IPs {
			if r.Phase != "" {
				have[a] = append(have[a], i)
			}
		}
	}
	for a, pods := range have {
		for _, i := range pods {
			for _, j := range pods {
				if all[i].UID != all[j].UID {
					all[i].Warnings = append(all[i].Warnings, fmt.Sprintf("%s is also the address of pod %s", a, all[j].Name))
				}
			}
		}
	}
}

// tellAddresses tells, once, of pods that share an address, or whose objects say one
// that they do not have.
func (e *Enroller) tellAddresses() {
	var all []Report
	var members []*member
	e.mu.Lock()
	for _, m := range e.members {
		if m.box != nil {
			members = append(members, m)
			all = append(all, Report{Name: m.name, UID: m.uid, IPs: addresses(m.box), Phase: m.phase})
		}
	}
	warnOfShared(all)
	var due []Report
	for i, m := range members {
		r := all[i]
		if m.strange != "" {
			r.Warnings = append(r.Warnings, m.strange)
		}
		slices.Sort(r.Warnings)
		r.Reason = strings.Join(r.Warnings, "; ")
		if r.Reason != "" && r.Reason != m.addressTold {
			due = append(due, r)
		}
		m.addressTold = r.Reason
	}
	e.mu.Unlock()
	for _, r := range due {
		e.log.Warn("a pod's addresses are not its own", "pod", r.Name.String(), "uid", r.UID, "err", r.Reason)
		e.tell(r.Name, e.objectUID(r.Name, r.UID), NoticeAddress, r.Reason)
	}
}

// absentLocked is a pod that is to be in the mesh and has no sandbox.
func (e *Enroller) absentLocked(p Pod, rival string) Report {
	r := Report{Name: p.PodName, UID: p.UID, IPs: p.IPs, Known: true, Eligible: true, Marked: p.Marked, Warnings: warnings(p), Reason: "waiting for the runtime's ADD"}
	s := e.seeking[p.UID]
	switch {
	case rival != "":
		r.Reason = rivalReason(rival)
	case s != nil && s.reason != "":
		r.Reason = s.reason
	case p.running() && e.cfg.Finder == nil:
		r.Reason = "it runs, but no ADD for it was seen: it is older than the plugin; recreate it"
	case p.running():
		r.Reason = "it runs, and its network namespace is looked for"
	}
	if f, ok := e.refusals[p.PodName]; ok {
		r.Refusal, r.Reason = &f, f.Reason
	}
	return r
}

func addresses(b *sandbox) (ips []netip.Addr) {
	for _, a := range b.attached {
		for _, p := range a.add.IPs {
			if !slices.Contains(ips, p.Addr()) {
				ips = append(ips, p.Addr())
			}
		}
	}
	slices.SortFunc(ips, netip.Addr.Compare)
	return ips
}

// Verify looks at the rules of a pod that is in the mesh: nothing differs, or
// what does, in words.
func (e *Enroller) Verify(ctx context.Context, uid string) ([]string, error) {
	e.mu.Lock()
	m := e.members[uid]
	if m == nil || m.box == nil || m.box.redirect == nil {
		e.mu.Unlock()
		return nil, fmt.Errorf("enroll: verify uid %s: no such pod in the mesh", uid)
	}
	r, open := *m.box.redirect, m.box.ns
	e.mu.Unlock()
	if open == nil {
		return nil, fmt.Errorf("enroll: verify uid %s: its network namespace cannot be found", uid)
	}
	ns, err := open.Dup() // the pod may go meanwhile
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	b, err := e.backend(&r)
	if err != nil {
		return nil, err
	}
	return b.Verify(ns, rulesConfig(r))
}

var _ Proxy = (*zds.Server)(nil)
var _ event.Handler = (*Enroller)(nil)

// Sampled is a pod of the mesh, with its namespace, which is the caller's.
type Sampled struct {
	Pod PodName
	NS  *netns.NS
	IPs []netip.Addr
}

// Sample returns up to n pods of the mesh, the newest first.
func (e *Enroller) Sample(n int) (pods []Sampled) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var in []*member
	for _, m := range e.members {
		if m.box != nil && m.box.ns != nil && m.phase == PhaseEnrolled {
			in = append(in, m)
		}
	}
	slices.SortFunc(in, func(a, b *member) int { return b.since.Compare(a.since) })
	for _, m := range in[:min(n, len(in))] {
		if ns, err := m.box.ns.Dup(); err == nil {
			pods = append(pods, Sampled{m.name, ns, addresses(m.box)})
		}
	}
	return pods
}

// note keeps what went wrong last with a pod.
func (e *Enroller) note(m *member, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	m.reason = err.Error()
}
