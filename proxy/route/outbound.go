package route

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/xds/workload"
)

// Reasons of decisions. Constant, so that deciding does not build strings.
const (
	reasonPassthrough = "unknown destination, passed through"
	reasonServicePass = "service passes connections through"
	reasonService     = "endpoint of a service"
	reasonWorkload    = "workload addressed directly"
)

// Outbound decides about a connection that an application of self made: client is
// the application's address, origDst where it connected to.
//
// A service's address goes to one of its endpoints, a workload's to that workload,
// and anything else where it was going. A service is looked for before a workload:
// an address that is both is the service's.
func Outbound(v *workload.View, self *workload.Workload, opts Options, client, origDst netip.AddrPort) (Decision, error) {
	if self == nil {
		return Decision{}, fmt.Errorf("route: %w: the client's own workload is not known", ErrNoRoute)
	}
	if !origDst.IsValid() || origDst.Port() == 0 {
		return Decision{}, fmt.Errorf("route: %w: original destination %s", ErrNoRoute, origDst)
	}
	if Recursive(origDst) {
		return Decision{}, ErrRecursive
	}
	to := netip.AddrPortFrom(origDst.Addr().Unmap(), origDst.Port())
	addr := workload.NetworkAddr{Network: self.Network, Addr: to.Addr()}
	if s := v.ServiceByVIP(addr, self.Namespace); s != nil {
		return toService(v, self, s, opts, to)
	}
	if w := v.WorkloadByAddr(addr); w != nil {
		if w.Waypoint != nil {
			return Decision{}, unsupported("workload", w.UID, "waypoint", w.Waypoint)
		}
		return direct(w, nil, to.Addr(), to.Port(), reasonWorkload), nil
	}
	return Decision{Protocol: TCP, Dial: to, Reason: reasonPassthrough}, nil
}

// toService decides about a connection to one of a service's own addresses.
func toService(v *workload.View, self *workload.Workload, s *workload.Service, opts Options, to netip.AddrPort) (Decision, error) {
	if s.Waypoint != nil {
		return Decision{}, unsupported("service", s.ResourceName(), "waypoint", s.Waypoint)
	}
	for i := range s.WeightedWaypoints {
		if w := &s.WeightedWaypoints[i]; w.Weight > 0 {
			return Decision{}, unsupported("service", s.ResourceName(), "waypoint", &w.Destination)
		}
	}
	if s.Mode() == workload.LBPassthrough {
		return Decision{Protocol: TCP, Dial: to, Service: s, ServiceAddressed: true, Reason: reasonServicePass}, nil
	}
	random := opts.Rand
	if random == nil {
		random = rand.Uint64N
	}
	b := balancer{client: self, service: s, port: to.Port(), random: random}
	e, ok := b.pick(v.Endpoints(s))
	if !ok {
		return Decision{}, fmt.Errorf("%w: %s", ErrNoHealthyUpstream, to)
	}
	if e.Workload.Network != self.Network {
		return Decision{}, unsupported("workload", e.Workload.UID, "network gateway", e.Workload.NetworkGateway)
	}
	ip, ok := endpointIP(e.Workload, s, to.Addr())
	switch {
	case ok:
	case e.Workload.Hostname != "":
		return Decision{}, fmt.Errorf("%w: workload %s is reached by hostname %q", ErrUnsupported, e.Workload.UID, e.Workload.Hostname)
	default:
		return Decision{}, fmt.Errorf("%w: %s", ErrNoRoute, e.Workload.UID)
	}
	return direct(e.Workload, s, ip, b.target(e), reasonService), nil
}

// direct is a connection straight to a workload.
func direct(w *workload.Workload, s *workload.Service, ip netip.Addr, port uint16, reason string) Decision {
	to := netip.AddrPortFrom(ip, port)
	d := Decision{Protocol: TCP, Dial: to, Destination: w, Service: s, ServiceAddressed: s != nil, Reason: reason}
	if w.Protocol == workload.HBONE {
		d.Protocol = HBONE
		d.Dial = netip.AddrPortFrom(ip, HBONEPort)
		d.Authority = to.String()
		d.Expected = expected(w, s)
	}
	return d
}

// expected are the identities that a workload may present: the service's, then
// its own.
func expected(w *workload.Workload, s *workload.Service) []spiffeid.ID {
	own := w.Identities()
	if s == nil || len(s.SANs()) == 0 {
		return own
	}
	return slices.Concat(s.SANs(), own)
}

// endpointIP chooses among an endpoint's addresses: the one that was asked for,
// else one of the service's families, rather of the family that was asked for.
func endpointIP(w *workload.Workload, s *workload.Service, asked netip.Addr) (netip.Addr, bool) {
	if w.HasAddr(asked) {
		return asked, true
	}
	var first netip.Addr
	for _, a := range w.Addresses {
		if a.Is4() && s.IPFamilies == workload.IPv6Only || a.Is6() && s.IPFamilies == workload.IPv4Only {
			continue
		}
		if a.Is4() == asked.Is4() {
			return a, true
		}
		if !first.IsValid() {
			first = a
		}
	}
	return first, first.IsValid()
}

func unsupported(kind, name, what string, g *workload.GatewayAddress) error {
	if g == nil {
		return fmt.Errorf("%w: %s is in another network and has no gateway", ErrNoRoute, name)
	}
	return fmt.Errorf("%w: %s %s is behind %s %s", ErrUnsupported, kind, name, what, g)
}
