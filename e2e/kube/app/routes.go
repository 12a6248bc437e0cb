package app

import (
	"errors"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What Istio's agent does to a pod's routes: packets with its mark go to the pod
// itself, whatever their address.
const (
	istioMark, istioMask = 0x111, 0xfff
	istioTable           = 100
	istioPriority        = 32764
)

// istioRoutes makes the routes and the rule that Istio's agent makes.
func istioRoutes() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	mask := uint32(istioMask)
	var errs []error
	for family, all := range map[int]string{netlink.FAMILY_V4: "0.0.0.0/0", netlink.FAMILY_V6: "::/0"} {
		if family == netlink.FAMILY_V6 && noIPv6() {
			continue
		}
		_, dst, err := net.ParseCIDR(all)
		if err != nil {
			return err
		}
		scope := netlink.SCOPE_HOST
		if family == netlink.FAMILY_V6 {
			scope = netlink.SCOPE_UNIVERSE
		}
		errs = append(errs, netlink.RouteReplace(&netlink.Route{
			Family: family, LinkIndex: lo.Attrs().Index, Dst: dst, Table: istioTable, Type: unix.RTN_LOCAL, Scope: scope,
		}))
		rule := netlink.NewRule()
		rule.Family, rule.Mark, rule.Mask, rule.Table, rule.Priority = family, istioMark, &mask, istioTable, istioPriority
		if err := netlink.RuleAdd(rule); !errors.Is(err, os.ErrExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func noIPv6() bool {
	b, err := os.ReadFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
	return err != nil || len(b) > 0 && b[0] == '1'
}
