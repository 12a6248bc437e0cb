package probe

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
)

// read reads what there is to know of the node. What cannot be read is as if it
// were not there.
func (p *Probe) read(ctx context.Context) facts {
	f := facts{limit: p.State().Limit, asked: p.cfg.Limit}
	if own, err := p.hostAddrs(); err == nil {
		for a := range own {
			usual := a.IsGlobalUnicast()
			f.v4, f.v6 = f.v4 || usual && a.Is4(), f.v6 || usual && a.Is6()
		}
	}
	f.no6 = p.b.refuses(netip.IPv6Unspecified())
	f.plugin = p.readPlugin(ctx)
	f.earlier = p.readEarlier(ctx)
	return f
}

// readPlugin knows plugins by the interfaces that they make.
func (p *Probe) readPlugin(ctx context.Context) (is plugin) {
	var links []netlink.Link
	err := within(p.place.ns, func(h *netlink.Handle) (err error) {
		links, err = h.LinkList()
		return err
	})
	if err != nil {
		return is
	}
	for _, l := range links {
		switch name := l.Attrs().Name; {
		case name == "cilium_host":
			is.cilium = true
		case name == "bpfin.cali" || name == "bpfout.cali":
			is.calicoBPF = true
		case strings.HasPrefix(name, "vlan.eth."):
			is.awsBranch = true
		}
	}
	if ipt, ok := p.b.(*iptables); ok && is.cilium {
		rules, err := ipt.list(ctx, false, "CILIUM_POST_nat")
		is.ciliumBPF = err != nil || !strings.Contains(strings.Join(rules, "\n"), "-j MASQUERADE")
	}
	return is
}

// readEarlier names the chains that see a packet before ours.
func (p *Probe) readEarlier(ctx context.Context) (names []string) {
	ours := int(*nftables.ChainPriorityNATSource) // iptables'
	if p.b.name() == nftName {
		ours = int(*nftPriority())
	}
	_ = withNFT(ctx, p.place, func(c *nftables.Conn) error {
		all, err := c.ListChains()
		for _, ch := range all {
			if ch.Type == nftables.ChainTypeNAT && ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookPostrouting &&
				ch.Priority != nil && int(*ch.Priority) < ours && ch.Table.Name != nftTable {
				names = append(names, fmt.Sprintf("nftables chain %s of table %s, priority %d", ch.Name, ch.Table.Name, *ch.Priority))
			}
		}
		return err
	})
	return names
}

// within gives fn a netlink handle of a namespace.
func within(ns *netns.NS, fn func(*netlink.Handle) error) error {
	var h *netlink.Handle
	err := ns.Do(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.SetSocketTimeout(netlinkTimeout); err != nil {
		return err
	}
	return fn(h)
}

// podFilter says what is odd about the way that a pod looks at sources: strict,
// with the way back to source through another interface than packets to addr
// come in by.
func podFilter(ns *netns.NS, addr, source netip.Addr) (odd string) {
	if !addr.Is4() {
		return "" // rp_filter is IPv4's
	}
	_ = within(ns, func(h *netlink.Handle) error {
		in, back := "", ""
		links, err := h.LinkList()
		if err != nil {
			return err
		}
		routes, err := h.RouteGet(source.AsSlice())
		for _, l := range links {
			addrs, _ := h.AddrList(l, netlink.FAMILY_V4)
			for _, a := range addrs {
				if a.IP.Equal(addr.AsSlice()) {
					in = l.Attrs().Name
				}
			}
			if err == nil && len(routes) > 0 && routes[0].LinkIndex == l.Attrs().Index {
				back = l.Attrs().Name
			}
		}
		if in == "" || in == back || strings.ContainsAny(in, "/.") || !strict(ns, in) {
			return nil
		}
		if back == "" {
			back = "no interface"
		}
		odd = fmt.Sprintf("rp_filter is strict on %s, and the way back to %s is through %s", in, source, back)
		return nil
	})
	return odd
}

// strict: of all and the interface's own value the greater counts; 1 is strict.
func strict(ns *netns.NS, link string) (is bool) {
	_ = ns.Do(func() error {
		most := "0"
		for _, name := range []string{"all", link} {
			v, _ := os.ReadFile("/proc/sys/net/ipv4/conf/" + name + "/rp_filter")
			most = max(most, strings.TrimSpace(string(v)))
		}
		is = most == "1"
		return nil
	})
	return is
}
