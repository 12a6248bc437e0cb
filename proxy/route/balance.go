package route

import (
	"net/netip"
	"slices"

	"github.com/warren-mesh/warren/xds/workload"
)

// Endpoint names one port of a workload behind a service, over views: a workload
// that comes back under its name has another address.
type Endpoint struct {
	UID  string
	Addr netip.Addr // the workload's first; the zero one if it has none
	Port uint16     // that it listens on
}

func endpoint(w *workload.Workload, port uint16) Endpoint {
	e := Endpoint{UID: w.UID, Port: port}
	if len(w.Addresses) > 0 {
		e.Addr = w.Addresses[0]
	}
	return e
}

// balancer picks an endpoint of a service for one connection. It does not
// allocate.
type balancer struct {
	client  *workload.Workload
	service *workload.Service
	port    uint16 // of the service
	random  func(n uint64) uint64
	purpose purpose
	tried   []Endpoint          // not to be chosen
	resting func(Endpoint) bool // to be chosen if nothing else is left; nil: none

	query    *query // for the ways to other networks
	gate     *workload.GatewayAddress
	gateOpen opening // of gate, which is most often the next endpoint's, too
}

// Draws before a scan. With half of the endpoints unusable, 8 draws fail once in
// 256 connections.
const draws = 8

// pick chooses at random by weight among the usable endpoints that meet most of
// the service's preferences; ok is false when there is none.
func (b *balancer) pick(set *workload.EndpointSet) (workload.Endpoint, bool) {
	list := set.All()
	// A waypoint's application may take tunnels at a port that its service lacks.
	if _, ok := b.service.Ports.Target(b.port); !ok && b.purpose != asWaypoint || len(list) == 0 {
		return workload.Endpoint{}, false
	}
	if set.Uniform() && !b.ranked() {
		// Drawing and rejecting is as fair as a scan, and does not grow with
		// the number of endpoints.
		for range draws {
			if e := &list[b.random(uint64(len(list)))]; b.usable(e) && !b.rests(e) {
				return *e, true
			}
		}
	}
	return b.scan(list)
}

// scan finds the best place and its total weight, then the one a random number
// falls on.
func (b *balancer) scan(list []workload.Endpoint) (workload.Endpoint, bool) {
	best, total := -1, uint64(0)
	for i := range list {
		switch r := b.place(&list[i]); {
		case r < 0 || r < best:
		case r > best:
			best, total = r, uint64(list[i].Workload.Weight())
		default:
			total += uint64(list[i].Workload.Weight())
		}
	}
	if best < 0 {
		return workload.Endpoint{}, false
	}
	n := b.random(total)
	for i := range list {
		if b.place(&list[i]) != best {
			continue
		}
		w := uint64(list[i].Workload.Weight())
		if n < w {
			return list[i], true
		}
		n -= w
	}
	return workload.Endpoint{}, false
}

// awake is above every rank: one that rests comes after all that do not.
const awake = 1 << 16

// place orders endpoints, -1 is not among them: one without weight takes no
// connections, so that those of a worse rank are not kept from taking them.
func (b *balancer) place(e *workload.Endpoint) int {
	r := b.rank(e)
	if r < 0 || e.Workload.Weight() == 0 {
		return -1
	}
	if !b.rests(e) {
		r += awake
	}
	return r
}

func (b *balancer) rests(e *workload.Endpoint) bool {
	if b.resting == nil {
		return false
	}
	return b.resting(endpoint(e.Workload, b.target(*e))) || b.abroad(e.Workload) && b.way(e.Workload) == openResting
}

func (b *balancer) ranked() bool {
	mode := b.service.Mode()
	return (mode == workload.LBFailover || mode == workload.LBStrict) && len(b.service.LoadBalancing.Preferences) > 0
}

// rank is how many preferences an endpoint meets in a row, -1 if it is not to be
// used.
//
// Network as the first preference is a wish rather than the first step: an endpoint
// of another network is still ranked by the rest, one of our own above all those.
// Strict takes only endpoints that meet everything.
func (b *balancer) rank(e *workload.Endpoint) int {
	if !b.usable(e) {
		return -1
	}
	if !b.ranked() {
		return 0
	}
	prefs, rank, all := b.service.LoadBalancing.Preferences, 0, true
	if prefs[0] == workload.Network {
		prefs = prefs[1:]
		if all = b.meets(workload.Network, e.Workload); all {
			rank = len(prefs) + 1
		}
	}
	for _, p := range prefs {
		if !b.meets(p, e.Workload) {
			all = false
			break
		}
		rank++
	}
	if b.service.Mode() == workload.LBStrict && !all {
		return -1
	}
	return rank
}

func (b *balancer) meets(p workload.Scope, w *workload.Workload) bool {
	c := b.client
	switch p {
	case workload.Region:
		return c.Locality.Region == w.Locality.Region
	case workload.Zone:
		return c.Locality.Zone == w.Locality.Zone
	case workload.Subzone:
		return c.Locality.Subzone == w.Locality.Subzone
	case workload.Node:
		return c.Node == w.Node
	case workload.Cluster:
		return c.ClusterID == w.ClusterID
	case workload.Network:
		return c.Network == w.Network
	default:
		return false
	}
}

// usable: healthy enough, reachable, it has the port, and it has not been tried.
func (b *balancer) usable(e *workload.Endpoint) bool {
	w := e.Workload
	if !b.service.Usable(w.Status) {
		return false
	}
	if !b.reachable(w) {
		return false
	}
	port := b.target(*e)
	return port != 0 && (len(b.tried) == 0 || !slices.Contains(b.tried, endpoint(w, port)))
}

// reachable: it has an address, or its network a gateway that can be asked.
func (b *balancer) reachable(w *workload.Workload) bool {
	if b.abroad(w) {
		return w.NetworkGateway != nil && b.way(w) != openNot
	}
	return hasPlace(w)
}

func hasPlace(w *workload.Workload) bool { return len(w.Addresses) > 0 || w.Hostname != "" }

// abroad: it is in another network than the client. Gateways themselves are dialed
// whatever network they are in.
func (b *balancer) abroad(w *workload.Workload) bool {
	return b.purpose != asGateway && w.Network != b.client.Network
}

// way is how open the gateway to a workload's network is.
func (b *balancer) way(w *workload.Workload) opening {
	g := w.NetworkGateway
	if b.gate == nil || g != b.gate && *g != *b.gate {
		b.gate, b.gateOpen = g, b.query.gateway(g)
	}
	return b.gateOpen
}

// target is the port that the endpoint listens on, 0 if it has none.
func (b *balancer) target(e workload.Endpoint) uint16 {
	if t, ok := e.Ports.Target(b.port); ok && t != 0 {
		return t
	}
	if t, _ := b.service.Ports.Target(b.port); t != 0 {
		return t
	}
	if t := e.Workload.ApplicationTunnel; t != nil && t.Port != 0 {
		return b.port
	}
	return 0
}
