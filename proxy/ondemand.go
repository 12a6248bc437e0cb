package proxy

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/warren-mesh/warren/proxy/route"
	"github.com/warren-mesh/warren/xds/workload"
)

// askRounds bounds how far one answer may lead to the next question: an address is a
// service's, which has a waypoint, whose endpoints are behind a network's gateway.
const askRounds = 4

// known returns a view in which everything that a connection of self to dst depends on
// has been looked for. With XDS_ON_DEMAND that may mean to ask the control plane, for a
// while; what is unknown then is not decided about: it might be in the mesh.
//
// The services on the way, waypoints' and gateways' too, are asked for anew now and then:
// Istio's control plane does not tell of endpoints that come to them.
func (p *pod) known(ctx context.Context, view *workload.View, self *workload.Workload, dst netip.Addr) (*workload.View, error) {
	var last missing // empty unless on demand
	view, err := p.look(ctx, view, func(v *workload.View) missing {
		last = missingOnPath(v, self, dst)
		return last
	})
	if err == nil {
		for _, s := range last.used {
			p.s.xds.Renew(s.ResourceName())
		}
		for _, name := range last.gates {
			p.s.xds.Renew(name)
		}
	}
	return view, err
}

// knownInbound is known for a CONNECT to self, which arrived at dst: what the authority
// needs. For the pod's own address that is nothing, its waypoint included, so that no
// connection waits for the control plane to say what it does not depend on. What a peer
// has made up is asked for so many times.
func (p *pod) knownInbound(ctx context.Context, view *workload.View, self *workload.Workload, dst netip.Addr, authority string) (*workload.View, error) {
	a, err := route.ParseAuthority(authority)
	if err != nil {
		return view, nil // which will be said
	}
	mayAsk := sync.OnceValue(func() bool { return p.peerAsks.take(time.Now()) })
	return p.look(ctx, view, func(v *workload.View) missing {
		u := missing{view: v, self: self}
		if name := u.authority(a, dst.Unmap()); name != "" && mayAsk() {
			u.names = append(u.names, name)
		}
		u.stale = nil // where it would go on is not decided here
		return u
	})
}

// look asks for what is missing, again and again, since answers lead to questions.
func (p *pod) look(ctx context.Context, view *workload.View, path func(*workload.View) missing) (*workload.View, error) {
	if p.s.xds == nil || !p.s.cfg.OnDemand {
		return view, nil
	}
	var asked []string
	for range askRounds {
		u := path(view)
		before := func(n string) bool { return slices.Contains(asked, n) }
		names, stale := slices.DeleteFunc(u.names, before), slices.DeleteFunc(u.stale, before)
		if len(names)+len(stale) == 0 {
			return view, nil
		}
		if err := p.ask(ctx, names, stale); err != nil {
			return nil, err
		}
		asked = append(append(asked, names...), stale...)
		view = p.s.store.View()
	}
	return view, nil
}

// ask waits for what is unknown; what is stale would be good to know.
func (p *pod) ask(ctx context.Context, names, stale []string) error {
	long, cancel := context.WithTimeout(ctx, localWait)
	defer cancel()
	if err := p.s.xds.Ask(long, names...); err != nil {
		return err
	}
	short, cancel := context.WithTimeout(ctx, refreshWait)
	defer cancel()
	p.s.xds.Refresh(short, stale...)
	return nil
}

// missingOnPath is what a view lacks of what a connection depends on.
func missingOnPath(v *workload.View, self *workload.Workload, dst netip.Addr) missing {
	u := missing{view: v, self: self}
	addr := workload.NetworkAddr{Network: self.Network, Addr: dst.Unmap()}
	s, w := v.ServiceByExactVIP(addr, self.Namespace), v.WorkloadByAddr(addr)
	if s == nil && w == nil {
		u.names = append(u.names, addr.String())
		s = v.ServiceByRange(addr, self.Namespace) // whose addresses may be others'
	}
	if w != nil {
		u.waypoint(w.Waypoint)
		u.gateway(w.NetworkGateway)
	}
	if s != nil {
		u.waypoints(s)
		u.endpoints(s)
		u.uses(s)
	}
	return u
}

// anyUsable says whether a service has an endpoint to choose.
func anyUsable(s *workload.Service, set *workload.EndpointSet) bool {
	return slices.ContainsFunc(set.All(), func(e workload.Endpoint) bool { return s.Usable(e.Workload.Status) })
}

// missing gathers what is to be asked for. What leads further is followed once, never in
// a circle.
type missing struct {
	view *workload.View
	self *workload.Workload // the client
	// names are unknown; stale are those of services that are known, but have nothing to
	// choose: somebody may have come. gates are unknown gateways that only some endpoints
	// are behind: nobody waits for them.
	names, stale, gates []string
	used                []*workload.Service
}

// waypoints adds those of a service which a connection may go through, and those that the
// client may be itself: a waypoint of no weight is not to be sent to another one either.
func (u *missing) waypoints(s *workload.Service) {
	weighted := slices.ContainsFunc(s.WeightedWaypoints, func(w workload.WeightedWaypoint) bool { return w.Weight > 0 })
	if !weighted || u.mayBe(s.Waypoint) {
		u.waypoint(s.Waypoint)
	}
	for i := range s.WeightedWaypoints {
		if w := &s.WeightedWaypoints[i]; w.Weight > 0 || u.mayBe(&w.Destination) {
			u.waypoint(&w.Destination)
		}
	}
}

// mayBe says whether the client may be an endpoint of a waypoint.
func (u *missing) mayBe(g *workload.GatewayAddress) bool {
	return g != nil && slices.ContainsFunc(u.self.Services, func(m workload.Membership) bool {
		return g.Address.Addr.IsValid() || m.Service == g.Hostname
	})
}

// waypoint adds a waypoint, which may be nil, or the gateways on the way to it.
func (u *missing) waypoint(g *workload.GatewayAddress) {
	if s := u.gateway(g); s != nil {
		u.endpoints(s)
	}
}

// endpoints adds the gateways of endpoints in other networks. Where there are endpoints
// without, these do not wait for them: one gateway of which nobody says what it is, or
// which cannot be used, must not take the service away.
func (u *missing) endpoints(s *workload.Service) {
	var unknown []string
	others := false
	for _, e := range u.view.Endpoints(s).All() {
		w, name := e.Workload, ""
		place := len(w.Addresses) > 0 || w.Hostname != ""
		if w.Network != u.self.Network {
			place = w.NetworkGateway != nil
			_, name = u.find(w.NetworkGateway)
		}
		if name == "" {
			others = others || place && s.Usable(w.Status)
		} else {
			note(&unknown, name)
		}
	}
	list := &u.names
	if others {
		list = &u.gates
	}
	for _, name := range unknown {
		note(list, name)
	}
}

// gateway adds a waypoint or a network's gateway; it returns the service that it is, if
// that is known.
func (u *missing) gateway(g *workload.GatewayAddress) *workload.Service {
	s, unknown := u.find(g)
	if unknown != "" {
		note(&u.names, unknown)
	}
	return s
}

// find is the service that a gateway is, if it is one, and its name if that is unknown.
func (u *missing) find(g *workload.GatewayAddress) (s *workload.Service, unknown string) {
	if g == nil {
		return nil, ""
	}
	s, w := route.Lookup(u.view, g, u.self.Namespace)
	known := s != nil
	if g.Address.Addr.IsValid() {
		known = w != nil || s != nil && slices.Contains(s.VIPs, g.Address) // not in a range of it
	}
	if s != nil {
		u.uses(s)
	}
	if known {
		return s, ""
	}
	return s, g.String()
}

// note adds a name to a list, once.
func note(list *[]string, name string) {
	if !slices.Contains(*list, name) {
		*list = append(*list, name)
	}
}

// uses notes a service that the connection may go through. All its endpoints that were
// known may have gone, as when a waypoint is rolled out.
func (u *missing) uses(s *workload.Service) {
	if slices.Contains(u.used, s) {
		return
	}
	u.used = append(u.used, s)
	if s.Mode() != workload.LBPassthrough && !anyUsable(s, u.view.Endpoints(s)) {
		u.stale = append(u.stale, s.ResourceName())
	}
}

// authority adds what is unknown of what a CONNECT to the client's own address asks for.
// chosen is a name that the peer has made up, if that is what is unknown: only a pod that
// may be a waypoint is asked for what is not its own.
func (u *missing) authority(a route.Authority, pod netip.Addr) (chosen string) {
	switch {
	case a.Host != "":
		return u.host(a.Host)
	case a.Addr == pod, u.self.ApplicationTunnel != nil, len(u.self.Services) == 0:
		return "" // there is nothing to look up, or nobody's waypoint
	}
	addr := workload.NetworkAddr{Network: u.self.Network, Addr: a.Addr}
	w := u.view.WorkloadByAddr(addr)
	known := w != nil
	if w != nil {
		u.gateway(w.Waypoint)
	}
	for s := range u.view.ServicesAt(addr) {
		known = known || slices.Contains(s.VIPs, addr)
		u.gateway(s.Waypoint)
		for i := range s.WeightedWaypoints {
			u.gateway(&s.WeightedWaypoints[i].Destination)
		}
	}
	if known {
		return ""
	}
	return addr.String()
}

// host is authority for a hostname: one of a service of the client's own, else, where an
// application takes what is tunnelled, of one in its namespace.
func (u *missing) host(host string) (chosen string) {
	own := false
	for _, m := range u.self.Services {
		if m.Service.Hostname != host {
			continue
		}
		own = true
		if name := m.Service.String(); u.view.Service(m.Service) == nil && !slices.Contains(u.names, name) {
			u.names = append(u.names, name)
		}
	}
	if own || u.self.ApplicationTunnel == nil || u.view.ServiceByHost(host, u.self.Namespace) != nil {
		return ""
	}
	return workload.NamespacedHostname{Namespace: u.self.Namespace, Hostname: host}.String()
}

// quota bounds how many names the peers of one pod make it ask the control plane for: each
// takes the place of one that somebody needs.
type quota struct {
	mu    sync.Mutex
	since time.Time
	taken int
}

func (q *quota) take(now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if now.Sub(q.since) >= peerAsksWithin {
		q.since, q.taken = now, 0
	}
	if q.taken >= maxPeerAsks {
		return false
	}
	q.taken++
	return true
}
