package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
)

const trialTimeout = 10 * time.Second

// errNoTrial: whether rules by cgroup work could not be tried.
var errNoTrial = errors.New("there is no cgroup to try it with")

// tryCgroups tries rules by cgroup out, in a namespace of our own: they let our
// own cgroup through, and a connection of ours must come from the right source.
// Kernels differ in where they count paths and levels from, and a rule that
// matches nothing would break all probes.
func (p *Probe) tryCgroups() error {
	own, err := p.ownCgroup()
	if err != nil {
		return fmt.Errorf("%w: %w", errNoTrial, err)
	}
	ns, err := p.newTrialNS()
	if err != nil {
		return fmt.Errorf("%w: %w", errNoTrial, err)
	}
	defer ns.Close()
	pl := p.place.in(ns)
	b, _, err := backends(p.b.name(), pl)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), trialTimeout)
	defer cancel()
	r := rules{limit: Limit{Kind: ByCgroup, Cgroups: []Cgroup{own}}, ip4: p.cfg.IP4, ip6: p.cfg.IP6}
	if err := b.apply(ctx, r); err != nil {
		return err
	}
	if err := b.edit(ctx, map[netip.Addr]string{trialIP(): "trial"}, nil); err != nil {
		return err
	}
	from, err := meet(ctx, ns, ns, netip.AddrPortFrom(trialIP(), 0), nil)
	switch {
	case err != nil:
		return err
	case from != p.cfg.IP4:
		return fmt.Errorf("a connection out of cgroup %s came from %s, not %s", own.Path, from, p.cfg.IP4)
	}
	return nil
}

// trialIP is an address of the trial's namespace.
func trialIP() netip.Addr { return netip.AddrFrom4([4]byte{169, 254, 7, 126}) }

// ownCgroup is the agent's.
func (p *Probe) ownCgroup() (own Cgroup, err error) {
	var text []byte
	err = p.place.do(func() error {
		text, err = os.ReadFile("/proc/thread-self/cgroup")
		return err
	})
	if err != nil {
		return own, err
	}
	path, ok := unified(string(text))
	if !ok {
		return own, errors.New("the agent is in no cgroup of version 2")
	}
	return p.place.cgroup(path)
}

// newTrialNS makes a namespace with trialIP on loopback, and a way for answers
// to the source that connections to it are given.
func (p *Probe) newTrialNS() (*netns.NS, error) {
	return newNS(func(h *netlink.Handle, lo netlink.Link) error {
		return errors.Join(
			h.AddrAdd(lo, &netlink.Addr{IPNet: hostNet(trialIP())}),
			h.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: hostNet(p.cfg.IP4), Scope: netlink.SCOPE_LINK}))
	})
}

// newNS makes a namespace with loopback up, and what fn adds to it.
func newNS(fn func(h *netlink.Handle, lo netlink.Link) error) (ns *netns.NS, err error) {
	home, err := netns.Current()
	if err != nil {
		return nil, err
	}
	defer home.Close()
	err = home.Do(func() (err error) { // Do also brings the thread back
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if ns, err = netns.Current(); err != nil {
			return err
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		return errors.Join(h.LinkSetUp(lo), fn(h, lo))
	})
	if err != nil && ns != nil {
		ns.Close()
	}
	return ns, err
}

func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
