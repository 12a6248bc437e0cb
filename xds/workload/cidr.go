package workload

import (
	"iter"
	"net/netip"
	"slices"
)

// cidrIndex finds the services whose address is a range. There are few lengths
// of prefix and a lookup asks once for each, so its cost does not grow with the
// number of ranges.
type cidrIndex struct {
	services cowMap[NetworkPrefix, serviceSet]
	// lengths in use by network, for IPv4 and IPv6, longest first. Replaced, never
	// changed, when a length comes or goes.
	lengths map[string]*cidrLengths
}

type cidrLengths struct{ v4, v6 []lengthCount }

type lengthCount struct{ bits, prefixes int }

// find ranks by own namespace, then length of prefix, then canonical.
func (c *cidrIndex) find(a NetworkAddr, clientNamespace string) *Service {
	var best *Service
	for _, n := range c.lengthsFor(a) {
		s := c.at(a, n.bits).forClient(clientNamespace)
		if s == nil {
			continue
		}
		if s.Namespace == clientNamespace {
			return s
		}
		if best == nil {
			best = s
		}
	}
	return best
}

// around goes through all services with a range around an address, the narrowest first.
func (c *cidrIndex) around(a NetworkAddr) iter.Seq[*Service] {
	return func(yield func(*Service) bool) {
		for _, n := range c.lengthsFor(a) {
			for _, s := range c.at(a, n.bits).list {
				if !yield(s) {
					return
				}
			}
		}
	}
}

func (c *cidrIndex) lengthsFor(a NetworkAddr) []lengthCount {
	l := c.lengths[a.Network]
	switch {
	case l == nil:
		return nil
	case a.Addr.Is4():
		return l.v4
	}
	return l.v6
}

// at are the services of the range of a length around an address.
func (c *cidrIndex) at(a NetworkAddr, bits int) serviceSet {
	p, err := a.Addr.Prefix(bits)
	if err != nil {
		return serviceSet{}
	}
	set, _ := c.services.get(NetworkPrefix{Network: a.Network, Prefix: p})
	return set
}

// count changes how many prefixes of a length there are by delta.
func (l *cidrLengths) count(p netip.Prefix, delta int) *cidrLengths {
	out := &cidrLengths{}
	if l != nil {
		*out = *l
	}
	list := &out.v6
	if p.Addr().Is4() {
		list = &out.v4
	}
	*list = slices.Clone(*list)
	i, found := slices.BinarySearchFunc(*list, p.Bits(), func(n lengthCount, bits int) int { return bits - n.bits })
	if !found {
		*list = slices.Insert(*list, i, lengthCount{bits: p.Bits()})
	}
	(*list)[i].prefixes += delta
	if (*list)[i].prefixes <= 0 {
		*list = slices.Delete(*list, i, i+1)
	}
	return out
}
