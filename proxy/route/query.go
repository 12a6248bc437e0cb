package route

import (
	"net/netip"

	"github.com/warren-mesh/warren/xds/workload"
)

// query is one connection to decide about. It stays on the stack.
type query struct {
	v      *workload.View
	self   *workload.Workload
	opts   Options
	client netip.AddrPort
	to     netip.AddrPort
	random func(n uint64) uint64
}

// balancer chooses among the endpoints of a service.
func (q *query) balancer(s *workload.Service, port uint16, p purpose) balancer {
	return balancer{
		client: q.self, service: s, port: port, random: q.random, purpose: p, tried: q.opts.Tried, resting: q.opts.Resting, query: q,
	}
}

// isSelf says whether a workload is the one that asks. While the control plane
// does not know that, its address decides among those of its identity.
func (q *query) isSelf(w *workload.Workload) bool {
	if q.self.UID != "" {
		return w.UID == q.self.UID
	}
	return w.HasAddr(q.client.Addr().Unmap()) && w.Identity() == q.self.Identity()
}
