package proxy

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warren-mesh/warren/proxy/resolve"
	"github.com/warren-mesh/warren/proxy/route"
	"github.com/warren-mesh/warren/xds/workload"
)

// withAddress finds the address that a decision lacks because its destination, or
// the gateway on the way to it, has a hostname instead. dst is where the client
// connected to. It is one that was not tried, rather one that does not rest.
func (p *pod) withAddress(ctx context.Context, d route.Decision, self *workload.Workload, dst netip.AddrPort, tried []route.Endpoint) (route.Decision, error) {
	if d.Hostname == "" {
		return d, nil
	}
	families := p.families(d, self, dst)
	list, err := p.s.names.Resolve(ctx, d.Hostname, families)
	if err == nil || ctx.Err() == nil { // else it will be asked for anew by who can wait
		p.s.metrics.lookedUp(self, d.Hostname)
	}
	if err != nil {
		return d, fmt.Errorf("no ip addresses were resolved for workload: %s: %w", d.Destination.UID, err)
	}
	with, err := p.drawn(d, list, tried)
	if err != nil { // those of the family that was not preferred are left
		if list[0].Is4() {
			families.IPv4 = false
		} else {
			families.IPv6 = false
		}
		if list, lerr := p.s.names.Resolve(ctx, d.Hostname, families); lerr == nil {
			with, err = p.drawn(d, list, tried)
		}
	}
	if err != nil {
		return d, err
	}
	d = with
	if route.Recursive(d.Dial) {
		return d, errRecursive
	}
	return d, nil
}

// drawn is the decision with one of the addresses of its hostname.
func (p *pod) drawn(d route.Decision, list []netip.Addr, tried []route.Endpoint) (route.Decision, error) {
	if d.Attempt() == (route.Endpoint{}) {
		return d.Resolved(list[rand.IntN(len(list))]), nil
	}
	rests := p.s.resting.reports(p.account())
	var fresh, left []netip.Addr
	for _, a := range list {
		e := d.Resolved(a).Attempt()
		if slices.Contains(tried, e) {
			continue
		}
		left = append(left, a)
		if rests == nil || !rests(e) {
			fresh = append(fresh, a)
		}
	}
	if len(fresh) > 0 {
		left = fresh
	}
	if len(left) == 0 {
		return d, fmt.Errorf("%w: all %d addresses of %s were tried", route.ErrNoHealthyUpstream, len(list), d.Hostname)
	}
	return d.Resolved(left[rand.IntN(len(left))]), nil
}

// families are those that the pod has, as far as that is known, and that the
// service allows of its endpoints.
func (p *pod) families(d route.Decision, self *workload.Workload, dst netip.AddrPort) resolve.Families {
	f := resolve.Families{IPv4: true, IPv6: p.s.cfg.IPv6, Prefer4: dst.Addr().Is4()}
	if len(self.Addresses) > 0 {
		f.IPv4 = slices.ContainsFunc(self.Addresses, netip.Addr.Is4)
		f.IPv6 = f.IPv6 && slices.ContainsFunc(self.Addresses, netip.Addr.Is6)
	}
	if s := d.Service; s != nil && !d.Waypoint && d.Protocol != route.DoubleHBONE {
		f.IPv4 = f.IPv4 && s.IPFamilies != workload.IPv6Only
		f.IPv6 = f.IPv6 && s.IPFamilies != workload.IPv4Only
	}
	return f
}

// maxLookupSeries bounds the metric of lookups.
const maxLookupSeries = 4096

// lookups counts who had which hostname looked up.
type lookups struct {
	vec  *prometheus.CounterVec
	mu   sync.Mutex
	seen map[[2]string]struct{} // UID and hostname
}

func newLookups() *lookups {
	names := append(slices.Clone(labelNames[1:9]), "hostname")
	return &lookups{
		vec: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "istio_on_demand_dns_total", Help: "Connections for which a workload's hostname was looked up, cached answers included (unstable).",
		}, names),
		seen: make(map[[2]string]struct{}),
	}
}

// lookedUp counts a lookup, beyond a number of series without saying whose.
func (m *metrics) lookedUp(self *workload.Workload, hostname string) {
	l := m.lookups
	k := [2]string{self.UID, hostname}
	l.mu.Lock()
	_, ok := l.seen[k]
	if !ok && len(l.seen) < maxLookupSeries {
		l.seen[k], ok = struct{}{}, true
	}
	l.mu.Unlock()
	src := partyOf(self)
	src.principal = principal(self.Identity())
	if !ok {
		src, hostname = party{}, unknown
	}
	values := append(src.appendTo(nil), hostname)
	for i := range values {
		if values[i] == "" {
			values[i] = unknown
		}
	}
	l.vec.WithLabelValues(values...).Inc()
}
