package probe

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"unicode"
)

// maxUID bounds a pod's UID, which ends up as a comment in the kernel.
const maxUID = 128

// claims says which pods claim an address, the one shown in the kernel last. An
// address is let through as long as any pod claims it, so that the end of a
// dead pod takes nothing from a new one that got its address.
type claims map[netip.Addr][]string

// set makes uid's addresses exactly addrs.
func (c claims) set(uid string, addrs []netip.Addr) {
	for _, a := range c.of(uid) {
		if !slices.Contains(addrs, a) {
			c.drop(uid, a)
		}
	}
	for _, a := range addrs {
		owners := slices.DeleteFunc(c[a], func(o string) bool { return o == uid })
		c[a] = append(owners, uid)
	}
}

func (c claims) drop(uid string, a netip.Addr) {
	if c[a] = slices.DeleteFunc(c[a], func(o string) bool { return o == uid }); len(c[a]) == 0 {
		delete(c, a)
	}
}

// of lists the addresses that uid claims.
func (c claims) of(uid string) (addrs []netip.Addr) {
	for a, owners := range c {
		if slices.Contains(owners, uid) {
			addrs = append(addrs, a)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}

// members is what the kernel's sets should hold: an address, and whose it is.
func (c claims) members() map[netip.Addr]string {
	m := make(map[netip.Addr]string, len(c))
	for a, owners := range c {
		m[a] = owners[len(owners)-1]
	}
	return m
}

// claimsOf makes claims of a snapshot. Of several pods with one address the one
// that the kernel has already is shown, or else the last by name.
func claimsOf(pods map[string][]netip.Addr, have map[netip.Addr]string) claims {
	c := claims{}
	for _, uid := range slices.Sorted(maps.Keys(pods)) {
		c.set(uid, pods[uid])
	}
	for a, shown := range have {
		if owners := c[a]; slices.Contains(owners, shown) {
			c[a] = append(slices.DeleteFunc(owners, func(o string) bool { return o == shown }), shown)
		}
	}
	return c
}

// diffMembers is what leads from one content of the sets to another.
func diffMembers(want, have map[netip.Addr]string) (put map[netip.Addr]string, drop []netip.Addr) {
	put = map[netip.Addr]string{}
	for a, owner := range want {
		if shown, ok := have[a]; !ok || shown != owner {
			put[a] = owner
		}
	}
	for a := range have {
		if _, ok := want[a]; !ok {
			drop = append(drop, a)
		}
	}
	slices.SortFunc(drop, netip.Addr.Compare)
	return put, drop
}

// checkPod returns the addresses that may be let through, each once, and says
// for each of the others what is wrong with it.
func checkPod(uid string, addrs []netip.Addr, host map[netip.Addr]bool) (good []netip.Addr, err error) {
	if uid == "" || len(uid) > maxUID || slices.ContainsFunc([]rune(uid), func(r rune) bool {
		return r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '-' && r != '_' && r != '.' && r != '/' && r != ':'
	}) {
		return nil, fmt.Errorf("probe: pod UID %.40q: want 1 to %d letters, digits and any of -_./: only", uid, maxUID)
	}
	for i, a := range addrs {
		a, why := checkAddr(a, host)
		switch {
		case why != "":
			err = errors.Join(err, fmt.Errorf("probe: pod %s: address %d, %s: %s; its probes are not let through on it", uid, i+1, a, why))
		case !slices.Contains(good, a):
			good = append(good, a)
		}
	}
	return good, err
}

// checkAddr says why an address cannot be a pod's. What it accepts is what
// kubelet's packets get another source for: were it an address of the node's
// own, or of many, kubelet could no longer reach what is there.
func checkAddr(a netip.Addr, host map[netip.Addr]bool) (plain netip.Addr, why string) {
	plain = a.Unmap()
	switch {
	case !a.IsValid():
		return a, "it is not an IP address"
	case a.Zone() != "":
		return a, "it has a zone"
	case plain.IsUnspecified():
		return plain, "it is the unspecified address"
	case plain.IsLoopback():
		return plain, "it is a loopback address"
	case plain.IsMulticast() || plain == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return plain, "it is a multicast or broadcast address"
	case plain.IsLinkLocalUnicast():
		return plain, "it is a link-local address"
	case host[plain]:
		return plain, "it is this node's own; a pod on the host's network is not in the mesh"
	}
	return plain, ""
}
