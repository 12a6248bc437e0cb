package dns

import (
	"net/netip"
	"slices"

	"github.com/miekg/dns"

	"github.com/warren-mesh/warren/xds/workload"
)

// answer is the addresses of a service, of the family that was asked for.
func (q question) answer(s *workload.Service, alias string) Decision {
	d := Decision{Verdict: Local, Service: s, Alias: alias}
	if len(s.VIPs) == 0 {
		set := q.v.Endpoints(s)
		if set == nil || len(set.All()) == 0 {
			// The cluster's own DNS says what there is to say of a headless
			// service that the mesh knows no endpoint of.
			return Decision{}
		}
		if q.wanted(s) {
			d.Addrs = q.endpoints(s, set)
		}
		return d
	}
	if !q.wanted(s) {
		return d
	}
	for _, a := range s.VIPs {
		if a.Network == q.c.Network && q.family(a.Addr) {
			d.Addrs = append(d.Addrs, a.Addr)
		}
	}
	return d
}

// wanted says whether the service has addresses of the family at all.
func (q question) wanted(s *workload.Service) bool {
	if q.qtype == dns.TypeAAAA {
		return q.z.IPv6 && s.IPFamilies != workload.IPv4Only
	}
	return s.IPFamilies != workload.IPv6Only
}

func (q question) family(a netip.Addr) bool { return a.Is4() == (q.qtype == dns.TypeA) }

// endpoints are the addresses of a headless service, one of each endpoint: those
// of the client's network, for it can connect to no other; only where there is
// none, the others'.
func (q question) endpoints(s *workload.Service, set *workload.EndpointSet) []netip.Addr {
	near := q.addrs(s, set, func(network string) bool { return network == q.c.Network })
	if len(near) > 0 {
		return near
	}
	return q.addrs(s, set, func(string) bool { return true })
}

func (q question) addrs(s *workload.Service, set *workload.EndpointSet, in func(network string) bool) []netip.Addr {
	out := make([]netip.Addr, 0, len(set.All())) // some twice: pods on the host's network share its address
	for _, ep := range set.All() {
		w := ep.Workload
		if !s.Usable(w.Status) || !in(w.Network) {
			continue
		}
		if i := slices.IndexFunc(w.Addresses, q.family); i >= 0 {
			out = append(out, w.Addresses[i])
		}
	}
	return out
}
