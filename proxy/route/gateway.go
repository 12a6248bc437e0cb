package route

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/xds/workload"
)

// purpose is what an endpoint is wanted for.
type purpose uint8

const (
	asEndpoint purpose = iota
	asWaypoint
	asGateway // of a network
)

func (p purpose) String() string {
	return [...]string{"service", "waypoint", "network gateway"}[p]
}

// Lookup finds what a gateway's address names: a service, else a workload.
func Lookup(v *workload.View, g *workload.GatewayAddress, namespace string) (*workload.Service, *workload.Workload) {
	if g.Address.Addr.IsValid() {
		return byAddress(v, g.Address, namespace)
	}
	if s := v.Service(g.Hostname); s != nil {
		return s, nil
	}
	return nil, v.WorkloadByHostname(g.Hostname)
}

// byAddress finds what clients of a namespace mean by an address: the service of
// exactly that address, else the workload, else the service of a range around it.
func byAddress(v *workload.View, a workload.NetworkAddr, namespace string) (*workload.Service, *workload.Workload) {
	if s := v.ServiceByExactVIP(a, namespace); s != nil {
		return s, nil
	}
	if w := v.WorkloadByAddr(a); w != nil {
		return nil, w
	}
	return v.ServiceByRange(a, namespace), nil
}

// found is where a waypoint or a network's gateway is reached.
type found struct {
	workload *workload.Workload
	service  *workload.Service // of which it is an endpoint, or nil
	dial     netip.AddrPort    // without address where it is in another network, or hostname is set
	hostname string            // to be resolved
	endpoint Endpoint          // of service, if there was a choice, or the gateway
}

// find chooses the workload behind a gateway's address. One that cannot be found
// is an error: what it is to guard is not reached without it.
func (q *query) find(g *workload.GatewayAddress, p purpose) (found, error) {
	port := gatewayPort(g)
	asked := q.to.Addr()
	if g.Address.Addr.IsValid() {
		asked = g.Address.Addr
	}
	s, w := Lookup(q.v, g, q.self.Namespace)
	f := found{service: s, workload: w}
	families := workload.Automatic
	switch {
	case s != nil:
		b := q.balancer(s, port, p)
		e, ok := b.pick(q.v.Endpoints(s))
		if !ok {
			return found{}, fmt.Errorf("%w: %s %s: %s", ErrNoHealthyUpstream, p, g, b.why(q.v.Endpoints(s)))
		}
		f.workload, port, families = e.Workload, b.target(e), s.IPFamilies
		f.endpoint = endpoint(f.workload, port)
	case w == nil:
		return found{}, fmt.Errorf("%w: %s: no service and no workload has this address; is its Gateway there and ready?", unknownOf(p), g)
	case p == asGateway:
		if f.endpoint = endpoint(w, port); slices.Contains(q.opts.Tried, f.endpoint) {
			return found{}, fmt.Errorf("%w: %s %s: tried already", ErrNoHealthyUpstream, p, g)
		}
	}
	if p == asWaypoint && f.workload.Network != q.self.Network {
		return f, nil
	}
	ip, ok := chooseIP(f.workload, families, asked)
	if !ok {
		if f.hostname = f.workload.Hostname; f.hostname == "" {
			return found{}, fmt.Errorf("%w: %s: workload %s has no address that could be used", unknownOf(p), g, f.workload.UID)
		}
	}
	f.dial = netip.AddrPortFrom(ip, port)
	return f, nil
}

// opening is what a network's gateway is good for.
type opening uint8

const (
	openNot     opening = iota // it does not exist, or was in vain for this connection
	openResting                // it failed a moment ago
	openWide
)

// gateway says whether a network's gateway can be asked to take the connection.
func (q *query) gateway(g *workload.GatewayAddress) opening {
	port := gatewayPort(g)
	s, w := Lookup(q.v, g, q.self.Namespace)
	switch {
	case s != nil:
		b := q.balancer(s, port, asGateway)
		return b.open(q.v.Endpoints(s).All())
	case w == nil || !hasPlace(w):
		return openNot
	}
	e := endpoint(w, port)
	switch {
	case slices.Contains(q.opts.Tried, e):
		return openNot
	case q.opts.Resting != nil && q.opts.Resting(e):
		return openResting
	}
	return openWide
}

// open is the best of a gateway's endpoints.
func (b *balancer) open(list []workload.Endpoint) opening {
	best := openNot
	if _, ok := b.service.Ports.Target(b.port); !ok {
		return best
	}
	for i := range list {
		switch r := b.place(&list[i]); {
		case r >= awake:
			return openWide
		case r >= 0:
			best = openResting
		}
	}
	return best
}

func gatewayPort(g *workload.GatewayAddress) uint16 {
	if g.HBONEPort != 0 {
		return g.HBONEPort
	}
	return HBONEPort
}

func unknownOf(p purpose) error {
	if p == asGateway {
		return ErrUnknownGateway
	}
	return ErrUnknownWaypoint
}

// throughGateway is a connection to a workload of another network: a tunnel to it
// within a tunnel to that network's gateway. w is the endpoint, or the waypoint,
// that was chosen, of is the service in which it was found; s is what the client
// addressed: a gateway knows services only, and by name. Another attempt is made with
// another gateway, or with an endpoint to which the way does not lead through this one.
func (q *query) throughGateway(w *workload.Workload, of, s *workload.Service, chosen Endpoint) (Decision, error) {
	switch {
	case s == nil:
		return Decision{}, fmt.Errorf("%w: no service for target address: %s: in network %q only services can be reached", ErrNoRoute, q.to, w.Network)
	case w.NetworkGateway == nil:
		return Decision{}, fmt.Errorf("%w: %s is in network %q, for which no gateway is known", ErrNoRoute, w.UID, w.Network)
	}
	gw, err := q.find(w.NetworkGateway, asGateway)
	if err != nil {
		return Decision{}, fmt.Errorf("%w (on the way to %s in network %q)", err, s.ResourceName(), w.Network)
	}
	inner := q.behindGateway(w, of)
	if len(inner) == 0 {
		return Decision{}, fmt.Errorf("%w: no identity is known of %s in network %q", ErrNoRoute, w.UID, w.Network)
	}
	a := Authority{Host: s.Hostname, Port: q.to.Port()}
	return Decision{
		Protocol: DoubleHBONE, Dial: gw.dial, Hostname: gw.hostname, Authority: a, Expected: expected(gw.workload, gw.service),
		InnerAuthority: a, InnerExpected: inner, Destination: w, Service: s, Endpoint: chosen, Gateway: gw.endpoint, ServiceAddressed: true, Reason: reasonGateway,
	}, nil
}

// behindGateway are the identities that the far end may have. It is one of many that the
// gateway chooses from, so those that the service lists are what counts; where it lists
// none, those of all its endpoints in that network.
func (q *query) behindGateway(w *workload.Workload, of *workload.Service) []spiffeid.ID {
	ids := w.Identities()
	if of == nil {
		return ids
	}
	if listed := of.SANs(); len(listed) > 0 {
		return listed
	}
	var known map[spiffeid.ID]bool // with most services there is one, and no map
	list := q.v.Endpoints(of).All()
	for i := range list {
		if list[i].Workload.Network != w.Network {
			continue
		}
		for _, id := range list[i].Workload.Identities() {
			switch {
			case len(ids) > 0 && id == ids[0] || known[id]:
				continue
			case known == nil:
				known, ids = make(map[spiffeid.ID]bool), slices.Clip(ids)
			}
			known[id] = true
			ids = append(ids, id)
		}
	}
	return ids
}
