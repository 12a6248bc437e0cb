package redirect

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
)

const (
	netlinkTimeout = 2 * time.Second
	ipv6Sysctls    = "/proc/sys/net/ipv6/conf/"
	// inet6Addresses lists the namespace's IPv6 addresses.
	inet6Addresses = "/proc/thread-self/net/if_inet6"
)

// routes is the policy that brings marked packets back to the proxy:
//
//	ip rule add fwmark 0x111/0xfff lookup 100 pref 32764
//	ip route add local 0.0.0.0/0 dev lo table 100
//
// over a netlink socket that was made in the namespace.
type routes struct {
	h  *netlink.Handle
	v6 ipv6
}

func openRoutes(ns *netns.NS) (r *routes, err error) {
	r = &routes{}
	err = ns.Do(func() (err error) {
		r.h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err == nil {
		err = r.h.SetSocketTimeout(netlinkTimeout)
	}
	if err == nil {
		r.v6, err = lookIPv6(ns)
	}
	if err != nil {
		if r.h != nil {
			r.h.Close()
		}
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return r, nil
}

func (r *routes) close() { r.h.Close() }

// families leaves IPv6 out where it is disabled: the kernel takes no route then.
func (r *routes) families(c Config) []Family {
	c.IPv6 = c.IPv6 && r.v6.enabled
	return c.families()
}

// raiseLoopback sees to it that the loopback is up, which the routes need. The
// runtime does that too, but containerd does it beside the conflist that we are
// in, not before.
func (r *routes) raiseLoopback() error {
	lo, err := r.h.LinkByName("lo")
	if err == nil && lo.Attrs().Flags&net.FlagUp == 0 {
		err = r.h.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

func (r *routes) add(c Config) error {
	if err := r.raiseLoopback(); err != nil {
		return err
	}
	for _, f := range r.families(c) {
		if err := r.h.RouteReplace(localRoute(f)); err != nil {
			return fmt.Errorf("route table %d of %s: %w", RouteTable, f, err)
		}
		if err := r.h.RuleAdd(markRule(f)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%s rule fwmark %#x: %w", f, MarkConn, err)
		}
	}
	return nil
}

// remove tolerates what is not there, and families that the kernel has not.
func (r *routes) remove() error {
	var errs error
	for _, f := range []Family{IPv4, IPv6} {
		err := r.h.RuleDel(markRule(f))
		if err != nil && !absent(err) {
			errs = errors.Join(errs, fmt.Errorf("%s rule: %w", f, err))
		}
		err = r.h.RouteDel(localRoute(f))
		if err != nil && !absent(err) {
			errs = errors.Join(errs, fmt.Errorf("%s route: %w", f, err))
		}
	}
	return errs
}

func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EAFNOSUPPORT) ||
		errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENETUNREACH)
}

func (r *routes) diff(c Config) (diffs []string, err error) {
	for _, f := range r.families(c) {
		rules, err := r.h.RuleList(f.af())
		if err != nil {
			return diffs, fmt.Errorf("list %s rules: %w", f, err)
		}
		if !containsRule(rules, markRule(f)) {
			diffs = append(diffs, fmt.Sprintf("%s rule: missing: fwmark %#x/%#x lookup %d pref %d", f, MarkConn, MarkMask, RouteTable, RulePriority))
		}
		found, err := r.hasRoute(f)
		if err != nil {
			return diffs, fmt.Errorf("list %s routes: %w", f, err)
		}
		if !found {
			diffs = append(diffs, fmt.Sprintf("%s route: missing in table %d: local default dev lo", f, RouteTable))
		}
	}
	return diffs, nil
}

func containsRule(rules []netlink.Rule, want *netlink.Rule) bool {
	for _, r := range rules {
		if r.Priority == want.Priority && r.Table == want.Table && r.Mark == want.Mark && r.Mask != nil && *r.Mask == *want.Mask {
			return true
		}
	}
	return false
}

// hasRoute looks for localRoute. It keeps none of the others: the pod may have
// hundreds of thousands.
func (r *routes) hasRoute(f Family) (found bool, err error) {
	want := localRoute(f)
	filter := &netlink.Route{Table: RouteTable, Type: want.Type, LinkIndex: want.LinkIndex}
	err = r.h.RouteListFilteredIter(f.af(), filter, netlink.RT_FILTER_TABLE, func(got netlink.Route) (more bool) {
		all := got.Dst == nil || got.Dst.String() == want.Dst.String()
		found = all && got.Type == want.Type && got.LinkIndex == want.LinkIndex
		return !found
	})
	if found {
		return true, nil
	}
	return false, err
}

func (f Family) af() int {
	if f == IPv4 {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func markRule(f Family) *netlink.Rule {
	mask := uint32(MarkMask)
	r := netlink.NewRule()
	r.Family, r.Priority, r.Table, r.Mark, r.Mask = f.af(), RulePriority, RouteTable, MarkConn, &mask
	return r
}

// localRoute delivers everything to this host. lo is interface 1 of every
// namespace.
func localRoute(f Family) *netlink.Route {
	all := net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	if f == IPv4 {
		all = net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	}
	return &netlink.Route{
		LinkIndex: 1, Table: RouteTable, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Dst: &all,
		Family: f.af(),
	}
}

// ipv6 is what a namespace has of IPv6.
type ipv6 struct {
	kernel  bool   // the kernel has it at all
	enabled bool   // on lo, so that routes can be made
	address string // the first that others can reach; "" is none
}

// lookIPv6 looks at a namespace.
func lookIPv6(ns *netns.NS) (v ipv6, err error) {
	err = ns.Do(func() error {
		disabled, err := os.ReadFile(ipv6Sysctls + "lo/disable_ipv6")
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		v.kernel, v.enabled = true, strings.TrimSpace(string(disabled)) == "0"
		addresses, err := os.ReadFile(inet6Addresses)
		v.address = reachable6(string(addresses))
		return err
	})
	return v, err
}

// reachable6 finds the first address in if_inet6's text (address, interface,
// prefix length, scope, …) that is neither loopback nor link-local.
func reachable6(text string) string {
	const global, site = "00", "40"
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= 4 && (f[3] == global || f[3] == site) {
			return f[0]
		}
	}
	return ""
}
