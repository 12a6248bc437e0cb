package probe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
)

const standInLink = "warren-selftest" // on the host; its other end is eth0

// The addresses of the stand-in, and of the host's end as its gateway. They are
// link-local like the source of probes, and as unlikely to be in use.
func standInIPs() []netip.Addr {
	return []netip.Addr{trialIP(), netip.MustParseAddr("fd16:9254:7127:1337:ffff:ffff:ffff:fffe")}
}

func gateway(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.AddrFrom4([4]byte{169, 254, 7, 125})
	}
	return netip.MustParseAddr("fe80::7127")
}

// standIn makes a namespace on a link of the host's, as a pod is, in the
// families that the host has.
func (p *Probe) standIn(f facts) (t Target, remove func(), err error) {
	t.Name = "a stand-in for a pod"
	for _, a := range standInIPs() {
		if f.v4 && a.Is4() || f.v6 && a.Is6() {
			t.Addrs = append(t.Addrs, a)
		}
	}
	if len(t.Addrs) == 0 {
		return t, nil, errors.New("the node has no address of its own")
	}
	if t.NS, err = newNS(func(*netlink.Handle, netlink.Link) error { return nil }); err != nil {
		return t, nil, fmt.Errorf("a namespace: %w", err)
	}
	remove = func() {
		// The link goes with the namespace, but later.
		_ = within(p.place.ns, deleteStandIn)
		t.NS.Close()
	}
	if err = within(p.place.ns, func(host *netlink.Handle) error {
		return within(t.NS, func(pod *netlink.Handle) error { return wire(host, pod, t) })
	}); err != nil {
		remove()
		return t, nil, fmt.Errorf("a link to a namespace: %w", err)
	}
	return t, remove, nil
}

func deleteStandIn(h *netlink.Handle) error {
	l, err := h.LinkByName(standInLink)
	if err != nil {
		return err
	}
	return h.LinkDel(l)
}

// wire links host and pod. Neighbours are made known, so that nobody needs to
// answer for the gateway.
func wire(host, pod *netlink.Handle, t Target) error {
	_ = deleteStandIn(host) // an agent that died in a self-test left it
	attrs := netlink.NewLinkAttrs()
	attrs.Name = standInLink
	if err := host.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(t.NS.File().Fd())}); err != nil {
		return os.NewSyscallError("add veth "+standInLink, err)
	}
	near, err := host.LinkByName(standInLink)
	if err != nil {
		return err
	}
	far, err := pod.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := noDuplicateDetection(t.NS); err != nil {
		return err
	}
	if err := errors.Join(host.LinkSetUp(near), pod.LinkSetUp(far)); err != nil {
		return err
	}
	for _, a := range t.Addrs {
		if err := wireAddr(host, pod, near, far, a); err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
	}
	return nil
}

func wireAddr(host, pod *netlink.Handle, near, far netlink.Link, a netip.Addr) error {
	family, all, addr := unix.AF_INET, netip.PrefixFrom(netip.IPv4Unspecified(), 0), &netlink.Addr{IPNet: hostNet(a)}
	if a.Is6() {
		family, all = unix.AF_INET6, netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		addr.Flags = unix.IFA_F_NODAD
	}
	neighbour := func(l netlink.Link, ip netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
		return &netlink.Neigh{LinkIndex: l.Attrs().Index, Family: family, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac}
	}
	return errors.Join(
		pod.AddrAdd(far, addr),
		pod.NeighSet(neighbour(far, gateway(a), near.Attrs().HardwareAddr)),
		host.NeighSet(neighbour(near, a, far.Attrs().HardwareAddr)),
		host.RouteAdd(&netlink.Route{LinkIndex: near.Attrs().Index, Dst: hostNet(a), Scope: scope(a)}),
		pod.RouteAdd(&netlink.Route{
			LinkIndex: far.Attrs().Index, Gw: gateway(a).AsSlice(), Flags: int(netlink.FLAG_ONLINK),
			Dst: &net.IPNet{IP: all.Addr().AsSlice(), Mask: net.CIDRMask(0, a.BitLen())},
		}),
	)
}

func scope(a netip.Addr) netlink.Scope {
	if a.Is4() {
		return netlink.SCOPE_LINK
	}
	return netlink.SCOPE_UNIVERSE
}

// noDuplicateDetection: an address is usable at once.
func noDuplicateDetection(ns *netns.NS) error {
	return ns.Do(func() error {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/eth0/accept_dad", []byte("0"), 0)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EROFS) {
			return nil
		}
		return err
	})
}
