package workload

import (
	"cmp"
	"strings"
)

// claims finds the workload that is meant by something that workloads say of themselves,
// such as an address. Few say the same, as a rule: they are gone through. Of a crowd it is
// known beforehand who is meant, so that to decide costs the same however many there are.
// It is immutable; the zero value is empty.
type claims[K, C comparable] struct {
	few    index[K]
	crowds cowMap[K, *crowd[C]] // of keys that few does not have
}

// crowd are the workloads that claim one key.
type crowd[C comparable] struct {
	list  []*Workload          // in the order of arrival
	meant cowMap[C, *Workload] // by what who asks knows besides the key
}

// crowd finds the crowd of a key; nil: there are few.
func (x *claims[K, C]) crowd(k K) *crowd[C] {
	if x.crowds.size == 0 { // as nearly always
		return nil
	}
	c, _ := x.crowds.get(k)
	return c
}

// nothing is known besides the key.
type nothing = struct{}

// where is what who looks for a pod knows besides its name.
type where struct {
	cluster  string
	anywhere bool // cluster is not looked at
}

// local is who is meant: one of the cluster if there is one.
func local(c *crowd[where], cluster string) *Workload {
	if w, ok := c.meant.get(where{cluster: cluster}); ok {
		return w
	}
	w, _ := c.meant.get(where{anywhere: true})
	return w
}

// claim is what is claimed, and who is meant by it.
type claim[K, C comparable] struct {
	claims func(w *Workload, k K) bool
	keys   func(*Workload) []K
	// meets appends what w is asked for with, besides the key.
	meets func(to []C, w *Workload) []C
	// goesFirst compares two that meet the same, of which o came first. It is an order.
	goesFirst func(w, o *Workload) bool
}

var (
	claimedAddr = &claim[NetworkAddr, nothing]{claims: (*Workload).ownsAddr, keys: (*Workload).ownAddrs, meets: meetsNothing, goesFirst: succeeds}
	claimedHost = &claim[NamespacedHostname, nothing]{
		claims:    func(w *Workload, k NamespacedHostname) bool { return w.hostKey() == k },
		keys:      func(w *Workload) []NamespacedHostname { return []NamespacedHostname{w.hostKey()} },
		meets:     meetsNothing,
		goesFirst: succeeds,
	}
	claimedName = &claim[localKey, where]{
		claims:    func(w *Workload, k localKey) bool { return w.localKey() == k },
		keys:      func(w *Workload) []localKey { return []localKey{w.localKey()} },
		meets:     meetsWhere,
		goesFirst: func(w, o *Workload) bool { return w.compareFit(o) <= 0 },
	}
)

func meetsNothing(to []nothing, _ *Workload) []nothing { return append(to, nothing{}) }

func meetsWhere(to []where, w *Workload) []where {
	return append(to, where{cluster: w.ClusterID}, where{anywhere: true})
}

func (w *Workload) ownsAddr(a NetworkAddr) bool { return w.Network == a.Network && w.HasAddr(a.Addr) }

func (w *Workload) ownAddrs() []NetworkAddr {
	var list []NetworkAddr
	for _, a := range distinct(w.Addresses) {
		list = append(list, NetworkAddr{Network: w.Network, Addr: a})
	}
	return list
}

// succeeds says whether w takes an address or a hostname over from o, which came first.
func succeeds(w, o *Workload) bool { return rank(w) >= rank(o) }

// before says whether w is likelier than o to be a pod of the cluster.
func (w *Workload) before(o *Workload, cluster string) bool {
	if own := w.ClusterID == cluster; own != (o.ClusterID == cluster) {
		return own
	}
	return w.compareFit(o) < 0
}

// compareFit puts the healthy one first, then the first by UID.
func (w *Workload) compareFit(o *Workload) int {
	return cmp.Or(cmp.Compare(w.Status, o.Status), strings.Compare(w.UID, o.UID))
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
