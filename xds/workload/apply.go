package workload

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// viewEditor builds the view after a batch.
type viewEditor struct {
	byUID  indexEditor[string]
	byAddr indexEditor[NetworkAddr]
	local  indexEditor[localKey]
	byName cowEditor[NamespacedHostname, []*Workload]
	byNode cowEditor[string, []*Workload]
	onNode pile[string, change]

	services cowEditor[NamespacedHostname, *Service]
	byHost   cowEditor[string, []*Service]
	byVIP    cowEditor[NetworkAddr, []*Service]
	byCIDR   cowEditor[NetworkPrefix, []*Service]
	lengths  map[string]*cidrLengths
	ownLens  bool

	endpoints cowEditor[NamespacedHostname, *EndpointSet]
	changes   pile[NamespacedHostname, change]

	policies    cowEditor[string, *Policy]
	byNamespace cowEditor[string, []*Policy]
	global      []*Policy
}

func edit(v *View) *viewEditor {
	n := edits.Add(1)
	return &viewEditor{
		byUID: editIndex(v.byUID, n), byAddr: editIndex(v.byAddr, n), local: editIndex(v.local, n), byName: editMap(v.byName, n), byNode: editMap(v.byNode, n),
		services: editMap(v.services, n), byHost: editMap(v.byHost, n), byVIP: editMap(v.byVIP, n),
		byCIDR: editMap(v.byCIDR.services, n), lengths: v.byCIDR.lengths,
		endpoints: editMap(v.endpoints, n),
		policies:  editMap(v.policies, n), byNamespace: editMap(v.byNamespace, n), global: v.global,
	}
}

func (e *viewEditor) view() *View {
	return &View{
		byUID: e.byUID.x, byAddr: e.byAddr.x, local: e.local.x, byName: e.byName.m, byNode: e.byNode.m,
		services: e.services.m, byHost: e.byHost.m, byVIP: e.byVIP.m,
		byCIDR:    cidrIndex{services: e.byCIDR.m, lengths: e.lengths},
		endpoints: e.endpoints.m,
		policies:  e.policies.m, byNamespace: e.byNamespace.m, global: e.global,
		superseded: make(chan struct{}),
	}
}

func (e *viewEditor) apply(b *Batch, rest func()) {
	n := 2*len(b.Workloads) + len(b.RemovedAddresses) // each may replace another
	if e.byUID.x.size == 0 {
		n = len(b.Workloads)
		e.byUID.expect(n)
		e.byAddr.expect(n)
		e.local.expect(n)
	}
	e.onNode.grow(n)
	e.changes.grow(n)
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
		e.removeWorkload(w.UID)
		e.addWorkload(w)
	}
	e.rebuildNodes(rest)
	e.rebuildEndpoints(rest)
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

func (e *viewEditor) addWorkload(w *Workload) {
	e.byUID.add(w.UID, w)
	if w.Node != "" { // nobody asks for those of none
		e.onNode.add(w.Node, change{uid: w.UID, workload: w})
	}
	if w.NetworkMode != HostNetwork {
		for _, a := range distinct(w.Addresses) {
			e.byAddr.add(NetworkAddr{Network: w.Network, Addr: a}, w)
		}
	}
	if w.Hostname != "" {
		listAdd(&e.byName, w.hostKey(), w, byRank)
	}
	e.local.add(w.localKey(), w)
	for key := range w.Services {
		e.changes.add(key, change{uid: w.UID, workload: w})
	}
}

func (e *viewEditor) removeWorkload(uid string) bool {
	w := withUID(&e.byUID.x, uid)
	if w == nil {
		return false
	}
	e.byUID.remove(uid, w)
	if w.Node != "" {
		e.onNode.add(w.Node, change{uid: uid})
	}
	if w.NetworkMode != HostNetwork {
		for _, a := range distinct(w.Addresses) {
			e.byAddr.remove(NetworkAddr{Network: w.Network, Addr: a}, w)
		}
	}
	if w.Hostname != "" {
		listRemove(&e.byName, w.hostKey(), w)
	}
	e.local.remove(w.localKey(), w)
	for key := range w.Services {
		e.changes.add(key, change{uid: uid})
	}
	return true
}

func (w *Workload) localKey() localKey {
	return localKey{namespace: w.Namespace, name: w.Name, serviceAccount: w.ServiceAccount}
}

// hostKey is lower case, as gateways' addresses are.
func (w *Workload) hostKey() NamespacedHostname {
	return NamespacedHostname{Namespace: w.Namespace, Hostname: strings.ToLower(w.Hostname)}
}

// rank orders workloads that claim one address. A pod of the mesh is the surest
// owner; a static entry may be stale.
func rank(w *Workload) int {
	switch pod := strings.Contains(w.UID, "//Pod/"); {
	case pod && w.Protocol == HBONE:
		return 3
	case pod:
		return 2
	case w.Protocol == HBONE:
		return 1
	default:
		return 0
	}
}

// byRank puts the highest rank first. Equal ranks stay in the order of arrival,
// the latest first: its address was given out last.
func byRank(a, b *Workload) int {
	if c := cmp.Compare(rank(b), rank(a)); c != 0 {
		return c
	}
	return 1
}

func (e *viewEditor) addService(s *Service) {
	e.services.set(s.Key(), s)
	listAdd(&e.byHost, s.Hostname, s, compareServices)
	for _, a := range s.VIPs {
		listAdd(&e.byVIP, a, s, compareServices)
	}
	for _, c := range s.CIDRs {
		if listAdd(&e.byCIDR, c, s, compareServices) == 1 {
			e.countLength(c, 1)
		}
	}
}

func (e *viewEditor) removeService(key NamespacedHostname) {
	s, ok := e.services.get(key)
	if !ok {
		return
	}
	e.services.delete(key)
	listRemove(&e.byHost, s.Hostname, s)
	for _, a := range s.VIPs {
		listRemove(&e.byVIP, a, s)
	}
	for _, c := range s.CIDRs {
		if had, left := listRemove(&e.byCIDR, c, s); had && left == 0 {
			e.countLength(c, -1)
		}
	}
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

func compareServices(a, b *Service) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Hostname, b.Hostname))
}

func (e *viewEditor) addPolicy(p *Policy) {
	e.policies.set(p.ResourceName(), p)
	switch p.Scope {
	case ScopeGlobal:
		e.global = inserted(e.global, p, comparePolicies)
	case ScopeNamespace:
		listAdd(&e.byNamespace, p.Namespace, p, comparePolicies)
	case ScopeSelector: // found by name
	}
}

func (e *viewEditor) removePolicy(resource string) {
	p, ok := e.policies.get(resource)
	if !ok {
		return
	}
	e.policies.delete(resource)
	switch p.Scope {
	case ScopeGlobal:
		e.global = without(e.global, p)
	case ScopeNamespace:
		listRemove(&e.byNamespace, p.Namespace, p)
	case ScopeSelector:
	}
}

// listAdd puts x into a key's list, before what does not compare less, and
// returns the list's new length. A list is never changed in place: views share it.
func listAdd[K, T comparable](m *cowEditor[K, []T], k K, x T, compare func(a, b T) int) int {
	old, _ := m.get(k)
	if slices.Contains(old, x) { // an object that lists one address twice
		return len(old)
	}
	list := inserted(old, x, compare)
	m.set(k, list)
	return len(list)
}

func listRemove[K, T comparable](m *cowEditor[K, []T], k K, x T) (had bool, left int) {
	old, _ := m.get(k)
	if !slices.Contains(old, x) {
		return false, len(old)
	}
	list := without(old, x)
	if len(list) == 0 {
		m.delete(k)
	} else {
		m.set(k, list)
	}
	return true, len(list)
}

func inserted[T any](old []T, x T, compare func(a, b T) int) []T {
	i, _ := slices.BinarySearchFunc(old, x, compare)
	list := make([]T, 0, len(old)+1)
	return append(append(append(list, old[:i]...), x), old[i:]...)
}

func without[T comparable](old []T, x T) []T {
	list := make([]T, 0, len(old))
	for _, y := range old {
		if y != x {
			list = append(list, y)
		}
	}
	return list
}
