package server

import (
	"cmp"
	"slices"
	"sync"

	"github.com/warren-mesh/warren/xds/workload"
)

// index finds resources by what clients that subscribe on demand call them. Names
// are those of resources.
type index struct {
	byAddress map[workload.NetworkAddr][]string
	byRange   map[workload.NetworkPrefix][]string
	lengths   []int               // of the prefixes in byRange, longest first, IPv4 and IPv6 together
	members   map[string][]string // a service's name → its workloads
	byNode    map[string][]string
	aliases   map[string][]string
}

// lazyIndex is built for the first client that needs it: most meshes have none.
type lazyIndex struct {
	once  sync.Once
	built *index
}

// index returns the snapshot's index.
func (s *Snapshot) index() *index {
	s.lazy.once.Do(func() { s.lazy.built = newIndex(s.model) })
	return s.lazy.built
}

func newIndex(m Model) *index {
	x := &index{
		byAddress: make(map[workload.NetworkAddr][]string), byRange: make(map[workload.NetworkPrefix][]string),
		members: make(map[string][]string), byNode: make(map[string][]string), aliases: make(map[string][]string),
	}
	for _, w := range m.Workloads {
		x.workload(w)
	}
	for _, s := range m.Services {
		x.service(s)
	}
	for p := range x.byRange {
		if !slices.Contains(x.lengths, p.Prefix.Bits()) {
			x.lengths = append(x.lengths, p.Prefix.Bits())
		}
	}
	slices.SortFunc(x.lengths, func(a, b int) int { return cmp.Compare(b, a) })
	return x
}

func (x *index) workload(w *workload.Workload) {
	name := w.ResourceName()
	if w.Node != "" {
		x.byNode[w.Node] = append(x.byNode[w.Node], name)
	}
	for _, m := range w.Services {
		key := m.Service.String()
		x.members[key] = append(x.members[key], name)
	}
	if w.NetworkMode == workload.HostNetwork {
		return // its address is the node's, and belongs to nobody
	}
	for _, a := range w.Addresses {
		x.address(workload.NetworkAddr{Network: w.Network, Addr: a}, name)
	}
}

func (x *index) service(s *workload.Service) {
	name := s.ResourceName()
	for _, a := range s.VIPs {
		x.address(a, name)
	}
	for _, p := range s.CIDRs {
		x.byRange[p] = append(x.byRange[p], name)
		x.aliases[name] = append(x.aliases[name], p.String())
	}
}

func (x *index) address(a workload.NetworkAddr, name string) {
	x.byAddress[a] = append(x.byAddress[a], name)
	x.aliases[name] = append(x.aliases[name], a.String())
}

// find returns the resources that a name stands for: a workload or a service, whose
// workloads belong to it (members), by name or by an address, exact ones before ranges. Of
// several that share an address all are returned: which of them is meant depends on who
// asks. exact is false where there are ranges at best.
func (x *index) find(name string, exists func(string) bool) (found []string, exact bool) {
	if exists(name) {
		return []string{name}, true
	}
	a, err := workload.ParseNetworkAddr(name)
	if err != nil {
		return nil, false
	}
	if found = x.byAddress[a]; len(found) > 0 {
		return found, true
	}
	for _, bits := range x.lengths {
		p, err := a.Addr.Prefix(bits)
		if err != nil {
			continue // an IPv6 length, an IPv4 address
		}
		found = append(found, x.byRange[workload.NetworkPrefix{Network: a.Network, Prefix: p}]...)
	}
	return found, false
}
