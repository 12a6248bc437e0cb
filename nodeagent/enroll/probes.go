package enroll

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
)

// Probes lets kubelet's probes through to pods of the mesh.
type Probes interface {
	// Add lets them through to these addresses of a pod, and to no other of it.
	Add(ctx context.Context, uid string, ips []netip.Addr) error
	Del(ctx context.Context, uid string) error
}

// letProbes lets kubelet's probes through to a pod. That this fails keeps no pod from
// its work: it is noted, and tried again by whoever keeps the host's rules.
func (e *Enroller) letProbes(ctx context.Context, m *member, ips []netip.Addr) {
	if e.cfg.Probes == nil || slices.Equal(ips, m.probed) && m.probeErr == "" {
		return
	}
	err := e.cfg.Probes.Add(ctx, m.uid, ips)
	text := ""
	if err != nil {
		text = err.Error()
		e.log.Warn("kubelet's probes are not let through to all of a pod", "pod", m.name.String(), "uid", m.uid, "err", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	m.probed, m.probeErr = ips, text
}

// stopProbes is the opposite.
func (e *Enroller) stopProbes(ctx context.Context, m *member) {
	if e.cfg.Probes == nil || m.probed == nil {
		return
	}
	if err := e.cfg.Probes.Del(ctx, m.uid); err != nil {
		e.log.Warn("kubelet's probes are still let through to a pod that has left", "pod", m.name.String(), "uid", m.uid, "err", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	m.probed, m.probeErr = nil, ""
}

// probeIPs are the addresses of a pod that kubelet may probe: those that the runtime
// gave it or its object has, and that it really has.
func (e *Enroller) probeIPs(m *member, p Pod) []netip.Addr {
	e.mu.Lock()
	ips := addresses(m.box)
	e.mu.Unlock()
	if m.box.ns == nil {
		return ips
	}
	for _, ip := range p.IPs {
		if !slices.Contains(ips, ip) {
			ips = append(ips, ip)
		}
	}
	own, err := ownIPs(m.box.ns, ips)
	if err != nil {
		e.log.Warn("cannot look at a pod's addresses", "pod", m.name.String(), "uid", m.uid, "err", err)
		return addresses(m.box)
	}
	if len(own) == 0 { // it is only being made, or taken down
		return addresses(m.box)
	}
	ips = nil
	for _, prefix := range own {
		ips = append(ips, prefix.Addr())
	}
	slices.SortFunc(ips, netip.Addr.Compare)
	ips = slices.Compact(ips)
	e.noteLacking(m, slices.DeleteFunc(slices.Clone(p.IPs), func(ip netip.Addr) bool { return slices.Contains(ips, ip) }))
	return ips
}

// noteLacking keeps what a pod's object says that the pod does not have.
func (e *Enroller) noteLacking(m *member, ips []netip.Addr) {
	text := ""
	if len(ips) > 0 {
		text = fmt.Sprintf("its status has addresses that it does not have: %v", ips)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	m.strange = text
}

// Probed is what kubelet's probes are to be let through to: for one who makes that
// anew. It is called before Run.
func (e *Enroller) Probed() map[string][]netip.Addr {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make(map[string][]netip.Addr)
	for _, m := range e.members {
		if m.box != nil && m.phase.served() {
			m.probed = addresses(m.box)
			all[m.uid] = m.probed
		}
	}
	return all
}
