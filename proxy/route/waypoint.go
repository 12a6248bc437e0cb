package route

import (
	"slices"

	"github.com/warren-mesh/warren/xds/workload"
)

// waypointOf is the waypoint that a connection to an address of s goes through,
// one of several by weight; nil when there is none, or when the client is one of
// them: what a waypoint sends on is not sent back.
func (q *query) waypointOf(s *workload.Service) *workload.GatewayAddress {
	g := q.weighed(s)
	if g != nil && q.servesWaypoint(s) {
		return nil
	}
	return g
}

// weighed draws among the weighted waypoints. Where all weights are 0 there are none.
func (q *query) weighed(s *workload.Service) *workload.GatewayAddress {
	if g := q.draw(s.WeightedWaypoints); g != nil {
		return g
	}
	return s.Waypoint
}

func (q *query) draw(list []workload.WeightedWaypoint) *workload.GatewayAddress {
	total := uint64(0)
	for i := range list {
		total += uint64(list[i].Weight)
	}
	if total == 0 {
		return nil
	}
	n := q.random(total)
	for i := range list {
		if n < uint64(list[i].Weight) {
			return &list[i].Destination
		}
		n -= uint64(list[i].Weight)
	}
	return nil // not reached: n was below total
}

// toOneOf is toWaypoint for what was drawn among the waypoints of s. A connection that has
// been to endpoints already goes to another waypoint, by weight, where that one has no
// further endpoint.
func (q *query) toOneOf(g *workload.GatewayAddress, s *workload.Service) (Decision, error) {
	d, err := q.toWaypoint(g, s)
	if err == nil || len(q.opts.Tried) == 0 {
		return d, err
	}
	left := slices.Clone(s.WeightedWaypoints)
	for {
		left = slices.DeleteFunc(left, func(w workload.WeightedWaypoint) bool { return w.Destination == *g })
		next := q.draw(left)
		if next == nil {
			return d, err
		}
		if other, otherErr := q.toWaypoint(next, s); otherErr == nil {
			return other, nil
		}
		drawn := *next // which moves in left
		g = &drawn
	}
}

// servesWaypoint says whether the client is a waypoint of s, of whatever weight.
func (q *query) servesWaypoint(s *workload.Service) bool {
	if q.isGateway(s.Waypoint) {
		return true
	}
	for i := range s.WeightedWaypoints {
		if q.isGateway(&s.WeightedWaypoints[i].Destination) {
			return true
		}
	}
	return false
}

// isGateway says whether the client is, or is one endpoint of, what g names.
func (q *query) isGateway(g *workload.GatewayAddress) bool {
	if g == nil {
		return false
	}
	s, w := Lookup(q.v, g, q.self.Namespace)
	if s == nil {
		return w != nil && q.isSelf(w)
	}
	if q.self.UID != "" {
		_, ok := q.v.Endpoints(s).Get(q.self.UID)
		return ok
	}
	for _, e := range q.v.Endpoints(s).All() {
		if q.isSelf(e.Workload) {
			return true
		}
	}
	return false
}

// toWaypoint is a connection to what has waypoint g. s is the service that the
// client addressed, or nil. The waypoint is told where the client connected to;
// its own waypoints, if it has any, are not for what it is sent: there is no
// going in circles.
func (q *query) toWaypoint(g *workload.GatewayAddress, s *workload.Service) (Decision, error) {
	f, err := q.find(g, asWaypoint)
	if err != nil {
		return Decision{}, err
	}
	if f.workload.Network != q.self.Network {
		return q.throughGateway(f.workload, f.service, s, f.endpoint)
	}
	return Decision{
		Protocol: HBONE, Dial: f.dial, Hostname: f.hostname, Authority: Authority{Addr: q.to.Addr(), Port: q.to.Port()},
		Expected: expected(f.workload, f.service), Destination: f.workload, Service: s, ServiceAddressed: s != nil,
		Waypoint: true, Endpoint: f.endpoint, Reason: reasonWaypoint,
	}, nil
}
