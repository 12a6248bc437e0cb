package onehost

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"

	"github.com/warren-mesh/warren/internal/netns"
)

// netnsDir is where iproute2 keeps named namespaces, so that `ip netns exec`
// works on everything that a kept demo leaves running.
const netnsDir = "/var/run/netns"

const (
	fabricBridge = "br0"
	noDAD        = 0x02 // IFA_F_NODAD: a fresh, private link has no duplicates to look for
)

// fabric is the wire between the nodes: a bridge in a namespace of its own,
// which also carries the control plane.
type fabric struct {
	prefix string
	ns     *netns.NS
	nl     *netlink.Handle
}

func nsName(prefix, name string) string { return prefix + "-" + name }

// createNS makes a named namespace. The thread that makes it is in it
// afterwards and dies with the goroutine, since it is never unlocked.
func createNS(name string) (*netns.NS, error) {
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		h, err := vnetns.NewNamed(name)
		if err == nil {
			err = h.Close()
		}
		failed <- err
	}()
	if err := <-failed; err != nil {
		return nil, fmt.Errorf("create namespace %s: %w", name, err)
	}
	return netns.Open(filepath.Join(netnsDir, name))
}

func deleteNS(name string) error {
	err := vnetns.DeleteNamed(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func handleIn(ns *netns.NS) (*netlink.Handle, error) {
	h, err := netlink.NewHandleAt(vnetns.NsHandle(ns.File().Fd()), 0)
	runtime.KeepAlive(ns)
	return h, err
}

func setUp(nl *netlink.Handle, name string) error {
	l, err := nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	return nl.LinkSetUp(l)
}

// sysctl writes one value under /proc/sys/net inside ns, where the kernel
// resolves it for the thread that opens the file.
func sysctl(ns *netns.NS, key, value string) error {
	path := "/proc/sys/net/" + key
	return ns.Do(func() error {
		err := os.WriteFile(path, []byte(value), 0)
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(key, "ipv6/") {
			return nil // a kernel without IPv6
		}
		return err
	})
}

func newFabric(prefix string) (_ *fabric, err error) {
	f := &fabric{prefix: prefix}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	if f.ns, err = createNS(nsName(prefix, "fabric")); err != nil {
		return nil, err
	}
	if f.nl, err = handleIn(f.ns); err != nil {
		return nil, err
	}
	if err := setUp(f.nl, "lo"); err != nil {
		return nil, err
	}
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: fabricBridge}}
	if err := f.nl.LinkAdd(br); err != nil {
		return nil, fmt.Errorf("bridge %s: %w", fabricBridge, err)
	}
	for _, a := range controlPlaneAddrs() {
		if err := addAddr(f.nl, fabricBridge, a); err != nil {
			return nil, err
		}
	}
	return f, setUp(f.nl, fabricBridge)
}

func (f *fabric) close() error {
	if f.nl != nil {
		f.nl.Close()
	}
	var err error
	if f.ns != nil {
		err = f.ns.Close()
	}
	return errors.Join(err, deleteNS(nsName(f.prefix, "fabric")))
}

// plug connects ns to the bridge: port is the bridge's end, eth0 the other.
func (f *fabric) plug(port string, ns *netns.NS, addrs ...netip.Prefix) error {
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: port},
		PeerName:      "eth0",
		PeerNamespace: netlink.NsFd(int(ns.File().Fd())),
	}
	if err := f.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth %s: %w", port, err)
	}
	br, err := f.nl.LinkByName(fabricBridge)
	if err != nil {
		return err
	}
	if err := f.nl.LinkSetMaster(veth, br); err != nil {
		return fmt.Errorf("veth %s into %s: %w", port, fabricBridge, err)
	}
	if err := setUp(f.nl, port); err != nil {
		return err
	}
	nl, err := handleIn(ns)
	if err != nil {
		return err
	}
	defer nl.Close()
	for _, a := range addrs {
		if err := addAddr(nl, "eth0", a); err != nil {
			return err
		}
	}
	return errors.Join(setUp(nl, "lo"), setUp(nl, "eth0"))
}

func addAddr(nl *netlink.Handle, link string, p netip.Prefix) error {
	l, err := nl.LinkByName(link)
	if err != nil {
		return fmt.Errorf("link %s: %w", link, err)
	}
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = noDAD
	}
	if err := nl.AddrAdd(l, addr); err != nil {
		return fmt.Errorf("address %s on %s: %w", p, link, err)
	}
	return nil
}

// route sends dst through via; both are of one family.
func route(ns *netns.NS, dst netip.Prefix, via netip.Addr) error {
	nl, err := handleIn(ns)
	if err != nil {
		return err
	}
	defer nl.Close()
	r := &netlink.Route{Dst: ipNet(dst), Gw: via.AsSlice()}
	if err := nl.RouteAdd(r); err != nil {
		return fmt.Errorf("route %s via %s: %w", dst, via, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// The addresses of a mesh. All are private to its namespaces, so several
// meshes can run beside each other.

func controlPlaneAddrs() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("10.99.0.254/24"), netip.MustParsePrefix("fd99::254/64")}
}

func nodeAddrs(n int) []netip.Prefix {
	s := strconv.Itoa(n)
	return []netip.Prefix{netip.MustParsePrefix("10.99.0." + s + "/24"), netip.MustParsePrefix("fd99::" + s + "/64")}
}

func podSubnets(n int) []netip.Prefix {
	s := strconv.Itoa(n)
	return []netip.Prefix{netip.MustParsePrefix("10.244." + s + ".0/24"), netip.MustParsePrefix("fd10:244:" + s + "::/64")}
}
