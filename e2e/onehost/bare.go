package onehost

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
)

// bareBridge is the node's bridge for bare pods, named as the bridge plugin
// names its own.
const bareBridge = "cni0"

// AddBare makes a pod without CNI plugins and without an object: the wiring of
// the bridge plugin by netlink, IPv4 only, in a few milliseconds. Nobody
// redirects it and nobody tells the proxy. A node has either bare pods or pods
// by AddPod, since nobody keeps their addresses apart.
func (n *Node) AddBare(spec PodSpec) (_ *Pod, err error) {
	subnet := podSubnets(n.index)[0]
	if n.bare == nil {
		if n.bare, err = newBareBridge(n.NS, netip.PrefixFrom(subnet.Addr().Next(), subnet.Bits())); err != nil {
			return nil, err
		}
	}
	n.seq++
	host := byte(n.seq + 1) // .1 is the bridge's
	if n.seq+1 > 254 {
		return nil, fmt.Errorf("%s: no address is left in %s", n.Name, subnet)
	}
	b := subnet.Addr().As4()
	b[3] = host
	p := &Pod{
		Spec: spec, node: n, bare: true, containerID: fmt.Sprintf("%s%d", spec.Name, n.seq), IPs: []netip.Addr{netip.AddrFrom4(b)},
		UID: fmt.Sprintf("00000000-0000-4000-8000-%06d%06d", n.index, n.seq),
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("bare pod %s: %w", spec.key(), err), p.removeBare())
		}
	}()
	if p.NS, err = createNS(p.NetnsName()); err != nil {
		return nil, err
	}
	if err := prepare(p.NS); err != nil {
		return nil, err
	}
	if err := n.plugBare(p, subnet); err != nil {
		return nil, err
	}
	n.Pods[spec.key()] = p
	return p, nil
}

func (n *Node) plugBare(p *Pod, subnet netip.Prefix) error {
	bridge, err := n.bare.LinkByName(bareBridge)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = fmt.Sprintf("bare%d", n.seq), bridge.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(p.NS.File().Fd()))}
	if err := n.bare.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	if err := n.bare.LinkSetUp(veth); err != nil {
		return err
	}
	nl, err := handleIn(p.NS)
	if err != nil {
		return err
	}
	defer nl.Close()
	if err := errors.Join(addAddr(nl, "eth0", netip.PrefixFrom(p.IPs[0], subnet.Bits())), setUp(nl, "eth0")); err != nil {
		return err
	}
	return nl.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), Gw: subnet.Addr().Next().AsSlice()})
}

func newBareBridge(ns *netns.NS, gateway netip.Prefix) (*netlink.Handle, error) {
	nl, err := handleIn(ns)
	if err != nil {
		return nil, err
	}
	if err = nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bareBridge}}); err == nil {
		err = errors.Join(addAddr(nl, bareBridge, gateway), setUp(nl, bareBridge))
	}
	if err != nil {
		nl.Close()
		return nil, fmt.Errorf("bridge %s: %w", bareBridge, err)
	}
	return nl, nil
}

func (p *Pod) removeBare() error {
	if p.NS == nil {
		return nil
	}
	return errors.Join(p.NS.Close(), deleteNS(p.NetnsName()))
}

// Sysctl writes one value under /proc/sys/net in the pod.
func (p *Pod) Sysctl(key, value string) error { return sysctl(p.NS, key, value) }

// Answers makes the pod take every address of a prefix as its own, and routes
// them to it from every node.
func (p *Pod) Answers(prefix netip.Prefix) error {
	nl, err := handleIn(p.NS)
	if err != nil {
		return err
	}
	defer nl.Close()
	lo, err := nl.LinkByName("lo")
	if err != nil {
		return err
	}
	r := &netlink.Route{
		LinkIndex: lo.Attrs().Index, Dst: ipNet(prefix), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
	}
	if err := nl.RouteAdd(r); err != nil {
		return fmt.Errorf("local route of %s: %w", prefix, err)
	}
	for _, n := range p.node.mesh.Nodes {
		via := nodeAddrs(p.node.index)[0].Addr()
		if n == p.node {
			via = p.IP4()
		}
		if err := route(n.NS, prefix, via); err != nil {
			return err
		}
	}
	return nil
}
