package nstest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vishvananda/netlink"
	"github.com/warren-mesh/warren/internal/netns"
)

const bridge = "br0"

// Net is a bridge in a namespace of its own, with nodes on it.
type Net struct {
	NS *netns.NS // where the bridge is, "br0"; capture there sees all traffic between nodes

	t     testing.TB
	nodes []*Node
}

// New makes an empty Net.
func New(t testing.TB) *Net {
	t.Helper()
	ns, _ := NewNS(t, "fabric")
	n := &Net{NS: ns, t: t}
	snoop := false // without a querier, snooping only delays neighbour discovery
	n.in(ns, func(h *netlink.Handle) error {
		br := &netlink.Bridge{LinkAttrs: attrs(bridge), MulticastSnooping: &snoop}
		return errors.Join(h.LinkAdd(br), h.LinkSetUp(br))
	})
	return n
}

// Node is a namespace on the bridge that routes to its pods.
type Node struct {
	Name     string
	NS       *netns.NS
	Path     string     // a file that the namespace is bound to
	IP4, IP6 netip.Addr // on the bridge: 10.99.0.N and fd99::N

	net   *Net
	index byte
	pods  byte
}

// Node adds a node, at most 200 of them. Every node has routes to every other's
// pods.
func (n *Net) Node(name string) *Node {
	n.t.Helper()
	if len(n.nodes) >= 200 {
		n.t.Fatal("nstest: too many nodes")
	}
	ns, path := NewNS(n.t, name)
	i := byte(len(n.nodes) + 1)
	node := &Node{Name: name, NS: ns, Path: path, IP4: addr4(0, i), IP6: addr6(0, i), net: n, index: i}
	n.in(n.NS, func(h *netlink.Handle) error {
		br, err := h.LinkByName(bridge)
		if err != nil {
			return err
		}
		port := fmt.Sprintf("node%d", i)
		return errors.Join(addVeth(h, port, "eth0", ns), master(h, port, br))
	})
	n.in(ns, func(h *netlink.Handle) error {
		return errors.Join(
			sysctl("ipv4/ip_forward", "1"), sysctl("ipv6/conf/all/forwarding", "1"),
			addAddr(h, "eth0", netip.PrefixFrom(node.IP4, 24)), addAddr(h, "eth0", netip.PrefixFrom(node.IP6, 64)))
	})
	for _, other := range n.nodes {
		n.in(ns, func(h *netlink.Handle) error { return routePods(h, other) })
		n.in(other.NS, func(h *netlink.Handle) error { return routePods(h, node) })
	}
	n.nodes = append(n.nodes, node)
	return node
}

// Pod is a namespace with eth0 routed to its node.
type Pod struct {
	Name     string
	NS       *netns.NS
	Path     string     // a file that the namespace is bound to
	IP4, IP6 netip.Addr // 10.99.N.M and fd99:0:0:N::M; zero where the pod has none
	Node     *Node
}

// PodOption changes how a pod is made.
type PodOption func(*podConfig)

type podConfig struct{ no4, no6 bool }

// NoIPv4 makes a pod without an IPv4 address.
func NoIPv4() PodOption { return func(c *podConfig) { c.no4 = true } }

// NoIPv6 makes a pod in which IPv6 is disabled.
func NoIPv6() PodOption { return func(c *podConfig) { c.no6 = true } }

// Pod adds a pod to the node, at most 200 of them.
func (n *Node) Pod(name string, opts ...PodOption) *Pod {
	t := n.net.t
	t.Helper()
	var c podConfig
	for _, o := range opts {
		o(&c)
	}
	if n.pods >= 200 {
		t.Fatal("nstest: too many pods")
	}
	ns, path := NewNS(t, n.Name+"-"+name)
	n.pods++
	m := n.pods + 1 // .1 is the node's
	p := &Pod{Name: name, NS: ns, Path: path, Node: n}
	port := fmt.Sprintf("pod%d", m)
	n.net.in(n.NS, func(h *netlink.Handle) error {
		return errors.Join(addVeth(h, port, "eth0", ns),
			addAddr(h, port, host(addr4(n.index, 1))), addAddr(h, port, host(addr6(n.index, 1))))
	})
	n.net.in(ns, func(*netlink.Handle) error {
		if c.no6 {
			return errors.Join(sysctl("ipv6/conf/all/disable_ipv6", "1"), sysctl("ipv6/conf/default/disable_ipv6", "1"))
		}
		return nil
	})
	if !c.no4 {
		p.IP4 = addr4(n.index, m)
		n.attach(p, port, p.IP4, addr4(n.index, 1))
	}
	if !c.no6 {
		p.IP6 = addr6(n.index, m)
		n.attach(p, port, p.IP6, addr6(n.index, 1))
	}
	return p
}

// attach gives the pod an address and the routes between it and the node.
func (n *Node) attach(p *Pod, port string, ip, gateway netip.Addr) {
	n.net.t.Helper()
	n.net.in(n.NS, func(h *netlink.Handle) error {
		return addRoute(h, port, host(ip), netip.Addr{})
	})
	n.net.in(p.NS, func(h *netlink.Handle) error {
		all := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		if ip.Is4() {
			all = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		return errors.Join(addAddr(h, "eth0", host(ip)),
			addRoute(h, "eth0", host(gateway), netip.Addr{}), addRoute(h, "eth0", all, gateway))
	})
}

// Listen listens in the pod's namespace, as its application would.
func (p *Pod) Listen(network, addr string) (l net.Listener, err error) {
	err = p.NS.Do(func() (err error) {
		l, err = net.Listen(network, addr)
		return err
	})
	return l, err
}

// ListenPacket opens a packet socket in the pod's namespace.
func (p *Pod) ListenPacket(network, addr string) (c net.PacketConn, err error) {
	err = p.NS.Do(func() (err error) {
		c, err = net.ListenPacket(network, addr)
		return err
	})
	return c, err
}

// Dial connects from the pod's namespace, as its application would. Only the
// socket is made inside, so any number may be waiting.
func (p *Pod) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{ControlContext: func(_ context.Context, _, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = p.swap(int(fd)) }), err)
	}}
	return d.DialContext(ctx, network, addr)
}

// swap puts a socket of the pod in the place of one of the test's namespace.
func (p *Pod) swap(fd int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return os.NewSyscallError("getsockopt SO_DOMAIN", err)
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return os.NewSyscallError("getsockopt SO_TYPE", err)
	}
	inside, err := p.NS.Socket(domain, kind, 0)
	if err != nil {
		return err
	}
	defer unix.Close(inside)
	return os.NewSyscallError("dup3", unix.Dup3(inside, fd, unix.O_CLOEXEC))
}
