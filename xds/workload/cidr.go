package workload

import (
	"net/netip"
	"slices"
)

// cidrIndex finds the services whose address is a range. There are few lengths
// of prefix and a lookup asks once for each, so its cost does not grow with the
// number of ranges.
type cidrIndex struct {
	services cowMap[NetworkPrefix, []*Service] // by namespace, then hostname
	// lengths in use by network, for IPv4 and IPv6, longest first. Replaced, never
	// changed, when a length comes or goes.
	lengths map[string]*cidrLengths
}

type cidrLengths struct{ v4, v6 []lengthCount }

type lengthCount struct{ bits, prefixes int }

// find ranks by own namespace, then length of prefix, then canonical.
func (c *cidrIndex) find(a NetworkAddr, clientNamespace string) *Service {
	l := c.lengths[a.Network]
	if l == nil {
		return nil
	}
	lengths := l.v6
	if a.Addr.Is4() {
		lengths = l.v4
	}
	var best *Service
	for _, n := range lengths {
		p, err := a.Addr.Prefix(n.bits)
		if err != nil {
			continue
		}
		list, _ := c.services.get(NetworkPrefix{Network: a.Network, Prefix: p})
		s := choose(list, clientNamespace)
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
