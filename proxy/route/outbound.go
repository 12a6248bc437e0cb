package route

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/warren-mesh/warren/xds/workload"
)

// Reasons of decisions. Constant, so that deciding does not build strings.
const (
	reasonPassthrough = "unknown destination, passed through"
	reasonServicePass = "service passes connections through"
	reasonService     = "endpoint of a service"
	reasonWorkload    = "workload addressed directly"
	reasonWaypoint    = "to be judged by a waypoint"
	reasonGateway     = "in another network, by its gateway"
)

// Outbound decides about a connection that an application of self made: client is
// the application's address, origDst where it connected to.
//
// A service's address goes to one of its endpoints, a workload's to that workload,
// and anything else where it was going; what has a waypoint goes to that, and what
// is in another network to its gateway. A service of exactly that address is looked
// for before a workload, one of a range around it after.
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
	q := query{v: v, self: self, opts: opts, client: client, random: opts.Rand}
	q.to = netip.AddrPortFrom(origDst.Addr().Unmap(), origDst.Port())
	if q.random == nil {
		q.random = rand.Uint64N
	}
	s, w := byAddress(v, workload.NetworkAddr{Network: self.Network, Addr: q.to.Addr()}, self.Namespace)
	switch {
	case s != nil:
		return q.toService(s)
	case w != nil:
		return q.toWorkload(w)
	}
	return Decision{Protocol: TCP, Dial: q.to, Reason: reasonPassthrough}, nil
}

// toWorkload decides about a connection to a workload's own address.
func (q *query) toWorkload(w *workload.Workload) (Decision, error) {
	if w.Waypoint != nil && !q.isGateway(w.Waypoint) {
		return q.toWaypoint(w.Waypoint, nil)
	}
	return direct(w, nil, q.to.Addr(), q.to.Port(), reasonWorkload), nil
}

// toService decides about a connection to one of a service's own addresses. The
// waypoints of its endpoints are for those who address these.
func (q *query) toService(s *workload.Service) (Decision, error) {
	if g := q.waypointOf(s); g != nil {
		return q.toOneOf(g, s)
	}
	if s.Mode() == workload.LBPassthrough {
		return Decision{Protocol: TCP, Dial: q.to, Service: s, ServiceAddressed: true, Reason: reasonServicePass}, nil
	}
	b := q.balancer(s, q.to.Port(), asEndpoint)
	e, ok := b.pick(q.v.Endpoints(s))
	if !ok {
		if w := b.cutOff(q.v.Endpoints(s)); w != nil {
			return q.throughGateway(w, s, s, Endpoint{}) // which says what is wrong with the gateway
		}
		return Decision{}, fmt.Errorf("%w: %s: %s", ErrNoHealthyUpstream, q.to, b.why(q.v.Endpoints(s)))
	}
	if e.Workload.Network != q.self.Network {
		return q.throughGateway(e.Workload, s, s, endpoint(e.Workload, b.target(e)))
	}
	ip, ok := chooseIP(e.Workload, s.IPFamilies, q.to.Addr())
	d := direct(e.Workload, s, ip, b.target(e), reasonService)
	if !ok {
		if d.Hostname = e.Workload.Hostname; d.Hostname == "" {
			return Decision{}, fmt.Errorf("%w: %s has no address of the families of service %s", ErrNoRoute, e.Workload.UID, s.ResourceName())
		}
	}
	d.Endpoint = endpoint(e.Workload, b.target(e))
	return d, nil
}

// direct is a connection straight to a workload.
func direct(w *workload.Workload, s *workload.Service, ip netip.Addr, port uint16, reason string) Decision {
	to := netip.AddrPortFrom(ip, port)
	d := Decision{Protocol: TCP, Dial: to, Destination: w, Service: s, ServiceAddressed: s != nil, Reason: reason}
	if w.Protocol == workload.HBONE {
		d.Protocol = HBONE
		d.Dial = netip.AddrPortFrom(ip, HBONEPort)
		d.Authority = Authority{Addr: ip, Port: port}
		d.Expected = expected(w, s)
	}
	return d
}

// expected are the identities that a workload may present.
func expected(w *workload.Workload, s *workload.Service) Identities {
	i := Identities{Own: w.Identities()}
	if s != nil {
		i.SANs = s.SANs()
	}
	return i
}

// chooseIP chooses among a workload's addresses: the one that was asked for, else
// one of the families, rather of the family that was asked for.
func chooseIP(w *workload.Workload, families workload.IPFamilies, asked netip.Addr) (netip.Addr, bool) {
	if w.HasAddr(asked) {
		return asked, true
	}
	var first netip.Addr
	for _, a := range w.Addresses {
		if !families.Has(a) {
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
