package nstest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vishvananda/netlink"
	"github.com/warren-mesh/warren/internal/netns"
)

// in runs fn inside ns with a netlink handle of ns; an error ends the test.
func (n *Net) in(ns *netns.NS, fn func(*netlink.Handle) error) {
	n.t.Helper()
	err := ns.Do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		return fn(h)
	})
	if err != nil {
		n.t.Fatalf("nstest: %v", err)
	}
}

// addr4 and addr6 are host's address on node's network; node 0 is the bridge's.
func addr4(node, host byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 99, node, host}) }

func addr6(node, host byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfd, 0x99, 7: node, 15: host})
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func attrs(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

// addVeth makes a pair, one end here and the other in far, both up.
func addVeth(h *netlink.Handle, name, farName string, far *netns.NS) error {
	link := &netlink.Veth{LinkAttrs: attrs(name), PeerName: farName, PeerNamespace: netlink.NsFd(far.File().Fd())}
	if err := h.LinkAdd(link); err != nil {
		return os.NewSyscallError("add veth "+name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return err
	}
	return far.Do(func() error {
		peer, err := netlink.LinkByName(farName)
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(peer)
	})
}

func master(h *netlink.Handle, name string, br netlink.Link) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	return h.LinkSetMaster(link, br)
}

func addAddr(h *netlink.Handle, link string, p netip.Prefix) error {
	l, err := h.LinkByName(link)
	if err != nil {
		return err
	}
	a := &netlink.Addr{IPNet: ipnet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := h.AddrAdd(l, a); err != nil || p.Addr().Is4() {
		return os.NewSyscallError("add address "+p.String()+" to "+link, err)
	}
	// The kernel makes an IPv6 address usable later, when it finds the time.
	var why error
	if !until(settle, func() bool {
		var found []netlink.Route
		found, why = h.RouteGet(a.IP)
		return why == nil && len(found) > 0 && found[0].Type == unix.RTN_LOCAL
	}) {
		return fmt.Errorf("address %s on %s is not usable: %w", p, link, errors.Join(os.ErrDeadlineExceeded, why))
	}
	return nil
}

// addRoute routes dst out of link, through gateway if that is valid.
func addRoute(h *netlink.Handle, link string, dst netip.Prefix, gateway netip.Addr) error {
	l, err := h.LinkByName(link)
	if err != nil {
		return err
	}
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipnet(dst)}
	if gateway.IsValid() {
		r.Gw = gateway.AsSlice()
	} else if dst.Addr().Is4() {
		r.Scope = netlink.SCOPE_LINK
	}
	return os.NewSyscallError("add route "+dst.String(), h.RouteAdd(r))
}

// routePods routes everything on a node's pod networks to that node.
func routePods(h *netlink.Handle, node *Node) error {
	if err := addRoute(h, "eth0", netip.PrefixFrom(addr4(node.index, 0), 24), node.IP4); err != nil {
		return err
	}
	return addRoute(h, "eth0", netip.PrefixFrom(addr6(node.index, 0), 64), node.IP6)
}

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// sysctl sets a value under /proc/sys/net of the calling thread's namespace.
func sysctl(name, value string) error {
	return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
}
