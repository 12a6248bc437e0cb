package translate

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
)

// The blocks that hosts without an address are given theirs from, as by istiod: the end
// of IPv4's reserved block, and a part of IPv6's for benchmarks. Nothing real is there.
var (
	autoV4 = netip.MustParsePrefix("240.240.0.0/16")
	autoV6 = netip.MustParsePrefix("2001:2::/48")
)

// autoSize is how many addresses of a block are given out: of IPv4's all but the first
// and the last, and of IPv6's as many.
const autoSize = 1<<16 - 2

// Allocation is what the status of a ServiceEntry should say of the addresses of its hosts.
type Allocation struct {
	Entry     *networkingv1.ServiceEntry
	Addresses []HostAddress // all of them, also those that it says already
}

// HostAddress is an address that stands for a host.
type HostAddress struct {
	Host    string // as the ServiceEntry writes it
	Address netip.Addr
}

// Allocate gives an IPv4 and an IPv6 address to every host of a ServiceEntry that has no
// address of its own, and returns the entries whose status does not say so yet. What is
// said stays, so that clients which resolved a name go on: unless two say the same, and
// then it is the older one's. What somebody writes into a spec keeps hosts to come from
// being given it, and takes nothing away: it could be anybody's entry. A host's address
// is looked for from a place that its name decides: who comes again gets the one from
// before, and one that becomes free is not at once another's.
func Allocate(entries []*networkingv1.ServiceEntry) ([]Allocation, []Problem) {
	entries = oldestFirst(entries)
	a := allocator{owners: make(map[netip.Addr]string), blocks: make(map[netip.Prefix]bool)}
	said := make([]map[hostFamily]netip.Addr, len(entries))
	for i, se := range entries {
		said[i] = a.keep(se)
	}
	for _, se := range entries {
		a.reserve(se)
	}
	var out []Allocation
	for i, se := range entries {
		if hosts := autoHosts(se); len(hosts) > 0 {
			if list := a.give(se, hosts, said[i]); !saysAddresses(se, list) {
				out = append(out, Allocation{se, list})
			}
		}
	}
	a.tellCrowding(entries)
	return out, a.problems
}

func oldestFirst(list []*networkingv1.ServiceEntry) []*networkingv1.ServiceEntry {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b *networkingv1.ServiceEntry) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return list
}

// autoHosts are the hosts of a ServiceEntry that are to be given addresses, each once, as
// they are written. A wildcard has none, unless a waypoint resolves what it stands for.
func autoHosts(se *networkingv1.ServiceEntry) []string {
	if !allocates(se) || se.DeletionTimestamp != nil || len(se.Spec.GetHosts()) > maxHosts {
		return nil
	}
	var out []string
	seen := make(map[string]bool)
	for _, text := range se.Spec.GetHosts() {
		host, err := hostPattern(text)
		if err != nil || seen[host] || wildcard(host) && !dynamic(se) {
			continue
		}
		seen[host] = true
		out = append(out, text)
	}
	return out
}

// hostFamily is what has one address: a host, as hostPattern reads it, in one of IPv4 and IPv6.
type hostFamily struct {
	host string
	six  bool
}

// allocator is one run of Allocate.
type allocator struct {
	owners   map[netip.Addr]string // who has an address: namespace/name, or a spec
	blocks   map[netip.Prefix]bool // that specs have
	blocked  [2]places             // by family: in such a block
	crowded  [2]bool               // by family: nothing is left outside of blocks
	full     [2]bool               // by family: nothing is left at all
	problems []Problem
}

// places are some of the addresses that a block has to give out, by nth.
type places [1 << 16]bool

// autoBlocks are the blocks, in the order of what is kept by family.
var autoBlocks = [2]netip.Prefix{autoV4, autoV6}

// reserve notes addresses that somebody wrote down. One that a host was given stays the
// host's: All leaves it out of the entry that has it in its spec.
func (a *allocator) reserve(se *networkingv1.ServiceEntry) {
	list := se.Spec.GetAddresses()
	for _, text := range list[:min(len(list), maxEndpoints)] {
		p, err := block(text)
		switch {
		case err != nil || a.blocks[p]:
		case !p.IsSingleIP():
			a.blocks[p] = true
			for f, family := range autoBlocks {
				a.blocked[f].add(family, p)
			}
		case a.owners[p.Addr()] == "" && givenOut(p.Addr()):
			a.owners[p.Addr()] = "spec.addresses of " + objectName(se.Namespace, se.Name)
		}
	}
}

// add takes in what a block has of a family.
func (in *places) add(family, p netip.Prefix) {
	first := nth(family, 0)
	outer := netip.PrefixFrom(first, first.BitLen()-16) // what is given out is in it
	switch {
	case !p.Overlaps(outer):
	case p.Bits() <= outer.Bits():
		for i := range in {
			in[i] = true
		}
	default:
		begin := place(p.Addr())
		for i := range uint32(1) << (first.BitLen() - p.Bits()) {
			in[begin+i] = true
		}
	}
}

// givenOut reports whether an address is of the blocks that hosts are given theirs from.
func givenOut(ip netip.Addr) bool { return autoV4.Contains(ip) || autoV6.Contains(ip) }

// tellCrowding tells those whose blocks leave nothing for hosts without an address.
func (a *allocator) tellCrowding(entries []*networkingv1.ServiceEntry) {
	for _, se := range entries {
		list := se.Spec.GetAddresses()
		for f, family := range autoBlocks {
			if !a.crowded[f] {
				continue
			}
			for i, text := range list[:min(len(list), maxEndpoints)] {
				if p, err := block(text); err == nil && !p.IsSingleIP() && p.Overlaps(family) {
					a.problems = append(a.problems, Problem{Kind: "ServiceEntry", Namespace: se.Namespace, Name: se.Name, Field: fmt.Sprintf("spec.addresses[%d]", i),
						Reason: fmt.Sprintf("such blocks leave nothing of %s, which hosts without addresses are given theirs from: they are given some that are in it, and to those it does not lead", family)})
					break
				}
			}
		}
	}
}

// keep notes what a status says, and returns what of it counts. What an entry has that is
// not to have any, for now, is not given to another.
func (a *allocator) keep(se *networkingv1.ServiceEntry) map[hostFamily]netip.Addr {
	owner := objectName(se.Namespace, se.Name)
	out := make(map[hostFamily]netip.Addr)
	list := se.Status.GetAddresses()
	for _, said := range list[:min(len(list), 2*maxHosts)] {
		ip, err := address(said.GetValue())
		if err != nil || a.owners[ip] != "" {
			continue
		}
		host, err := hostPattern(said.GetHost())
		key := hostFamily{host, ip.Is6()}
		if _, twice := out[key]; err == nil && !twice {
			out[key] = ip
			a.owners[ip] = owner
		}
	}
	return out
}

// give returns the addresses of all hosts of an entry.
func (a *allocator) give(se *networkingv1.ServiceEntry, hosts []string, said map[hostFamily]netip.Addr) []HostAddress {
	owner := objectName(se.Namespace, se.Name)
	var out []HostAddress
	for _, text := range hosts {
		host, _ := hostPattern(text) // it was read before
		for f, family := range autoBlocks {
			ip, ok := said[hostFamily{host, family.Addr().Is6()}]
			if !ok {
				ip, ok = a.next(f, owner+"/"+host)
			}
			if !ok {
				a.problems = append(a.problems, Problem{Kind: "ServiceEntry", Namespace: se.Namespace, Name: se.Name, Field: "spec.hosts",
					Reason: fmt.Sprintf("%s has no address: all of %s are given out; write one into spec.addresses", host, family)})
				continue
			}
			a.owners[ip] = owner
			out = append(out, HostAddress{text, ip})
		}
	}
	return out
}

// next is the first free address of a family from where a name begins; of those that are
// in somebody's block only when there are no others.
func (a *allocator) next(f int, name string) (netip.Addr, bool) {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // never fails
	begin := h.Sum32() % autoSize
	if !a.crowded[f] {
		if ip, ok := a.free(f, begin, &a.blocked[f]); ok {
			return ip, true
		}
		a.crowded[f] = true
	}
	if !a.full[f] {
		if ip, ok := a.free(f, begin, new(places)); ok {
			return ip, true
		}
		a.full[f] = true
	}
	return netip.Addr{}, false
}

// free is the first address from a place on that nobody has, without some.
func (a *allocator) free(f int, begin uint32, without *places) (netip.Addr, bool) {
	for i := range uint32(autoSize) {
		n := 1 + (begin+i)%autoSize
		if ip := nth(autoBlocks[f], n); !without[n] && a.owners[ip] == "" {
			return ip, true
		}
	}
	return netip.Addr{}, false
}

// nth is the address of a block at a place below 2^16.
func nth(p netip.Prefix, n uint32) netip.Addr {
	if p.Addr().Is4() {
		b := p.Addr().As4()
		binary.BigEndian.PutUint16(b[2:], uint16(n))
		return netip.AddrFrom4(b)
	}
	b := p.Addr().As16()
	binary.BigEndian.PutUint16(b[14:], uint16(n))
	return netip.AddrFrom16(b)
}

// place is nth's n of an address.
func place(ip netip.Addr) uint32 {
	b := ip.AsSlice()
	return uint32(binary.BigEndian.Uint16(b[len(b)-2:]))
}

// given are the addresses that hosts were given, by what has them: namespace/name.
func given(entries []*networkingv1.ServiceEntry) map[netip.Addr]string {
	a := allocator{owners: make(map[netip.Addr]string)}
	for _, se := range oldestFirst(entries) {
		if len(autoHosts(se)) > 0 {
			a.keep(se)
		}
	}
	maps.DeleteFunc(a.owners, func(ip netip.Addr, _ string) bool { return !givenOut(ip) })
	return a.owners
}

// saysAddresses reports whether a status says these addresses and no others, in any order.
func saysAddresses(se *networkingv1.ServiceEntry, want []HostAddress) bool {
	list := se.Status.GetAddresses()
	if len(list) != len(want) {
		return false
	}
	left := make(map[HostAddress]int, len(want))
	for _, w := range want {
		left[w]++
	}
	for _, said := range list {
		ip, err := address(said.GetValue())
		if k := (HostAddress{said.GetHost(), ip}); err != nil || left[k] == 0 {
			return false
		} else {
			left[k]--
		}
	}
	return true
}
