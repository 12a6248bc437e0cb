package proxy

import (
	"context"
	"net/netip"
	"slices"

	"github.com/warren-mesh/warren/xds/workload"
)

// askRounds bounds how far one answer may lead to the next question: an address is a
// service's, which has a waypoint, whose endpoints are behind a network's gateway.
const askRounds = 4

// known returns a view in which everything that a connection of self to dst depends on
// has been looked for. With XDS_ON_DEMAND that may mean to ask the control plane, for a
// while; what is unknown then is not decided about: it might be in the mesh.
func (p *pod) known(ctx context.Context, view *workload.View, self *workload.Workload, dst netip.Addr) (*workload.View, error) {
	view, err := p.look(ctx, view, func(v *workload.View) []string { return unknownOnPath(v, self, dst) })
	if err == nil && p.s.xds != nil && p.s.cfg.OnDemand {
		if s := view.ServiceByVIP(workload.NetworkAddr{Network: self.Network, Addr: dst.Unmap()}, self.Namespace); s != nil {
			p.s.xds.Renew(s.ResourceName())
		}
	}
	return view, err
}

// knownWaypoint is known for a connection that comes to self: who its waypoint is.
func (p *pod) knownWaypoint(ctx context.Context, view *workload.View, self *workload.Workload) (*workload.View, error) {
	return p.look(ctx, view, func(v *workload.View) []string {
		u := missing{view: v, network: self.Network}
		u.gateway(self.Waypoint)
		return u.names
	})
}

// look asks for what is missing, again and again, since answers lead to questions.
func (p *pod) look(ctx context.Context, view *workload.View, missing func(*workload.View) []string) (*workload.View, error) {
	if p.s.xds == nil || !p.s.cfg.OnDemand {
		return view, nil
	}
	var asked []string
	for range askRounds {
		names := missing(view)
		names = slices.DeleteFunc(names, func(n string) bool { return slices.Contains(asked, n) })
		if len(names) == 0 {
			return view, nil
		}
		ctx, cancel := context.WithTimeout(ctx, localWait)
		err := p.s.xds.Ask(ctx, names...)
		cancel()
		if err != nil {
			return nil, err
		}
		asked = append(asked, names...)
		view = p.s.store.View()
	}
	return view, nil
}

// unknownOnPath are the names that a view lacks of what a connection depends on.
func unknownOnPath(v *workload.View, self *workload.Workload, dst netip.Addr) []string {
	addr := workload.NetworkAddr{Network: self.Network, Addr: dst.Unmap()}
	s, w := v.ServiceByVIP(addr, self.Namespace), v.WorkloadByAddr(addr)
	if s == nil && w == nil {
		return []string{addr.String()}
	}
	u := missing{view: v, network: self.Network}
	if w != nil {
		u.waypoint(w.Waypoint)
		u.gateway(w.NetworkGateway)
	}
	if s != nil {
		u.waypoint(s.Waypoint)
		for i := range s.WeightedWaypoints {
			u.waypoint(&s.WeightedWaypoints[i].Destination)
		}
		u.endpoints(v.Endpoints(s))
		if s.Mode() != workload.LBPassthrough && !anyUsable(s, v.Endpoints(s)) {
			// All that were known have gone. Istio's control plane does not tell of those
			// that have come in their place.
			u.names = append(u.names, s.ResourceName())
		}
	}
	return u.names
}

// anyUsable says whether a service has an endpoint to choose.
func anyUsable(s *workload.Service, set *workload.EndpointSet) bool {
	return slices.ContainsFunc(set.All(), func(e workload.Endpoint) bool { return s.Usable(e.Workload.Status) })
}

// missing gathers names. What leads further is followed once, never in a circle.
type missing struct {
	view    *workload.View
	network string // of the client
	names   []string
}

// waypoint adds a waypoint, which may be nil, or the gateways on the way to it.
func (u *missing) waypoint(g *workload.GatewayAddress) {
	u.gateway(g)
	if g == nil || g.Address.Addr.IsValid() {
		return
	}
	if s := u.view.Service(g.Hostname); s != nil {
		u.endpoints(u.view.Endpoints(s))
	}
}

// endpoints adds the gateways of endpoints in other networks.
func (u *missing) endpoints(set *workload.EndpointSet) {
	for _, e := range set.All() {
		if e.Workload.Network != u.network {
			u.gateway(e.Workload.NetworkGateway)
		}
	}
}

func (u *missing) gateway(g *workload.GatewayAddress) {
	if g == nil {
		return
	}
	if a := g.Address; a.Addr.IsValid() {
		if u.view.WorkloadByAddr(a) != nil || u.view.ServiceByVIP(a, "") != nil {
			return
		}
	} else if u.view.Service(g.Hostname) != nil {
		return
	}
	if name := g.String(); !slices.Contains(u.names, name) {
		u.names = append(u.names, name)
	}
}
