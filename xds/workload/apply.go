package workload

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// viewEditor builds the view after a batch.
type viewEditor struct {
	byUID  indexEditor[string]
	byAddr claimsEditor[NetworkAddr, nothing]
	local  claimsEditor[localKey, where]
	byName claimsEditor[NamespacedHostname, nothing]
	node   string
	here   []*Workload
	onNode []change[*Workload]

	services cowEditor[NamespacedHostname, *Service]
	byHost   serviceSets[string]
	byVIP    serviceSets[NetworkAddr]
	byCIDR   serviceSets[NetworkPrefix]
	lengths  map[string]*cidrLengths
	ownLens  bool

	endpoints cowEditor[NamespacedHostname, *EndpointSet]
	changes   pile[NamespacedHostname, change[*Workload]]

	policies    cowEditor[string, *Policy]
	byNamespace cowEditor[string, []*Policy]
	inNamespace pile[string, change[*Policy]]
	global      []*Policy
	everywhere  []change[*Policy]
}

func edit(v *View) *viewEditor {
	n := edits.Add(1)
	return &viewEditor{
		byUID: editIndex(v.byUID, n), byAddr: editClaims(claimedAddr, v.byAddr, n), local: editClaims(claimedName, v.local, n),
		byName: editClaims(claimedHost, v.byName, n), node: v.node, here: v.here,
		services: editMap(v.services, n), byHost: editSets(v.byHost, n), byVIP: editSets(v.byVIP, n),
		byCIDR: editSets(v.byCIDR.services, n), lengths: v.byCIDR.lengths,
		endpoints: editMap(v.endpoints, n),
		policies:  editMap(v.policies, n), byNamespace: editMap(v.byNamespace, n), global: v.global,
	}
}

func (e *viewEditor) view() *View {
	return &View{
		byUID: e.byUID.x, byAddr: e.byAddr.done(), local: e.local.done(), byName: e.byName.done(), node: e.node, here: e.here,
		services: e.services.m, byHost: e.byHost.m, byVIP: e.byVIP.m,
		byCIDR:    cidrIndex{services: e.byCIDR.m, lengths: e.lengths},
		endpoints: e.endpoints.m,
		policies:  e.policies.m, byNamespace: e.byNamespace.m, global: e.global,
		superseded: make(chan struct{}),
	}
}

func (e *viewEditor) apply(b *Batch, rest func()) {
	had, come := e.byUID.x.size, len(b.Workloads)
	if come > had { // a whole mesh
		e.byUID.expect(had + come)
		e.byAddr.few.expect(had + come)
		if e.node == "" {
			e.local.few.expect(had + come)
		}
	}
	e.changes.grow(come + min(come, had) + len(b.RemovedAddresses)) // each may replace another
	for _, n := range b.RemovedAddresses {
		rest()
		e.removeAddress(n)
	}
	for _, n := range b.RemovedPolicies {
		e.removePolicy(n)
	}
	for _, p := range b.Policies {
		rest()
		e.removePolicy(p.ResourceName())
		e.addPolicy(p)
	}
	for _, s := range b.Services {
		rest()
		s = s.sealed()
		e.removeService(s.Key())
		e.addService(s)
	}
	for _, w := range b.Workloads {
		rest()
		w = w.sealed()
		if old := e.byUID.replace(w.UID, w, (*Workload).ResourceName); old != nil {
			e.unlistWorkload(old)
		}
		e.listWorkload(w)
	}
	if len(e.onNode) > 0 {
		e.here = relisted(e.here, e.onNode, compareWorkloads)
	}
	e.rebuildEndpoints(rest)
	e.rebuildServices(rest)
	e.rebuildPolicies(rest)
	e.byAddr.settle(rest)
	e.local.settle(rest)
	e.byName.settle(rest)
}

// removeAddress tries the name as a workload's, then as a service's.
func (e *viewEditor) removeAddress(resource string) {
	if e.removeWorkload(resource) {
		return
	}
	if key, ok := CutNamespacedHostname(resource); ok {
		e.removeService(key)
	}
}

// distinct is addrs without what comes twice, in whatever order.
func distinct(addrs []netip.Addr) []netip.Addr {
	if len(addrs) < 2 || len(addrs) == 2 && addrs[0] != addrs[1] { // as nearly always
		return addrs
	}
	sorted := slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare)
	return slices.Compact(sorted)
}

func (e *viewEditor) listWorkload(w *Workload) {
	if w.NetworkMode != HostNetwork {
		for _, a := range distinct(w.Addresses) {
			e.byAddr.add(NetworkAddr{Network: w.Network, Addr: a}, w)
		}
	}
	if w.Hostname != "" {
		e.byName.add(w.hostKey(), w)
	}
	e.listLocal(change[*Workload]{item: w})
	for _, m := range w.Services {
		e.changes.add(m.Service, change[*Workload]{item: w})
	}
}

func (e *viewEditor) removeWorkload(uid string) bool {
	w := withUID(&e.byUID.x, uid)
	if w == nil {
		return false
	}
	e.byUID.remove(uid, w)
	e.unlistWorkload(w)
	return true
}

func (e *viewEditor) unlistWorkload(w *Workload) {
	if w.NetworkMode != HostNetwork {
		for _, a := range distinct(w.Addresses) {
			e.byAddr.remove(NetworkAddr{Network: w.Network, Addr: a}, w)
		}
	}
	if w.Hostname != "" {
		e.byName.remove(w.hostKey(), w)
	}
	e.listLocal(change[*Workload]{item: w, gone: true})
	for _, m := range w.Services {
		e.changes.add(m.Service, change[*Workload]{item: w, gone: true})
	}
}

// listLocal has a change made in what is known of the node's own workloads: most are
// others'.
func (e *viewEditor) listLocal(c change[*Workload]) {
	switch {
	case e.node == "": // any may be
	case e.node != c.item.Node:
		return
	default:
		e.onNode = append(e.onNode, c)
	}
	if c.gone {
		e.local.remove(c.item.localKey(), c.item)
	} else {
		e.local.add(c.item.localKey(), c.item)
	}
}

func (w *Workload) localKey() localKey {
	return localKey{namespace: w.Namespace, name: w.Name, serviceAccount: w.ServiceAccount}
}

// hostKey is lower case, as gateways' addresses are.
func (w *Workload) hostKey() NamespacedHostname {
	return NamespacedHostname{Namespace: w.Namespace, Hostname: strings.ToLower(w.Hostname)}
}

func (e *viewEditor) addService(s *Service) {
	e.services.set(s.Key(), s)
	e.listService(change[*Service]{item: s})
}

func (e *viewEditor) removeService(key NamespacedHostname) {
	s, ok := e.services.get(key)
	if !ok {
		return
	}
	e.services.delete(key)
	e.listService(change[*Service]{item: s, gone: true})
}

// listService has a change made wherever the service is listed.
func (e *viewEditor) listService(c change[*Service]) {
	e.byHost.changes.add(c.item.Hostname, c)
	for _, a := range c.item.VIPs {
		e.byVIP.changes.add(a, c)
	}
	for _, p := range c.item.CIDRs {
		e.byCIDR.changes.add(p, c)
	}
}

func (e *viewEditor) rebuildServices(rest func()) {
	e.byHost.rebuild(rest, func(string, int) {})
	e.byVIP.rebuild(rest, func(NetworkAddr, int) {})
	e.byCIDR.rebuild(rest, e.countLength)
}

func (e *viewEditor) countLength(p NetworkPrefix, delta int) {
	if !e.ownLens {
		e.lengths = maps.Clone(e.lengths)
		if e.lengths == nil {
			e.lengths = map[string]*cidrLengths{}
		}
		e.ownLens = true
	}
	l := e.lengths[p.Network].count(p.Prefix, delta)
	if len(l.v4)+len(l.v6) == 0 {
		delete(e.lengths, p.Network)
		return
	}
	e.lengths[p.Network] = l
}

func (e *viewEditor) addPolicy(p *Policy) {
	e.policies.set(p.ResourceName(), p)
	e.listPolicy(change[*Policy]{item: p})
}

func (e *viewEditor) removePolicy(resource string) {
	p, ok := e.policies.get(resource)
	if !ok {
		return
	}
	e.policies.delete(resource)
	e.listPolicy(change[*Policy]{item: p, gone: true})
}

// listPolicy has a change made where the policy is listed.
func (e *viewEditor) listPolicy(c change[*Policy]) {
	switch c.item.Scope {
	case ScopeGlobal:
		e.everywhere = append(e.everywhere, c)
	case ScopeNamespace:
		e.inNamespace.add(c.item.Namespace, c)
	case ScopeSelector: // found by name
	}
}

func (e *viewEditor) rebuildPolicies(rest func()) {
	if len(e.everywhere) > 0 {
		e.global = relisted(e.global, e.everywhere, comparePolicies)
	}
	rebuild(&e.byNamespace, &e.inNamespace, rest, func(_ string, old []*Policy, changes []change[*Policy]) ([]*Policy, bool) {
		list := relisted(old, changes, comparePolicies)
		return list, len(list) > 0
	})
}
