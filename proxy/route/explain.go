package route

import (
	"fmt"
	"slices"
	"strings"

	"github.com/warren-mesh/warren/xds/workload"
)

// cutOff is a workload that lacks nothing but a gateway that could be asked, where pick
// found nothing.
func (b *balancer) cutOff(set *workload.EndpointSet) *workload.Workload {
	if _, ok := b.service.Ports.Target(b.port); !ok {
		return nil
	}
	for _, e := range set.All() {
		if w := e.Workload; b.service.Usable(w.Status) && b.abroad(w) && w.NetworkGateway != nil && b.way(w) == openNot {
			return w
		}
	}
	return nil
}

// why says, for who has to mend it, why pick found nothing. It looks at all
// endpoints: it is for the way that ends in an error.
func (b *balancer) why(set *workload.EndpointSet) string {
	name, list := b.service.ResourceName(), set.All()
	if _, ok := b.service.Ports.Target(b.port); !ok && b.purpose != asWaypoint {
		return fmt.Sprintf("service %s has no port %d", name, b.port)
	}
	if len(list) == 0 {
		return fmt.Sprintf("service %s has no endpoints", name)
	}
	var sick, far, nowhere, portless, weightless, tried, elsewhere int
	for i := range list {
		w := list[i].Workload
		switch {
		case !b.service.Usable(w.Status):
			sick++
		case !b.reachable(w) && w.Network != b.client.Network && b.purpose != asGateway:
			far++
		case !b.reachable(w):
			nowhere++
		case b.target(list[i]) == 0:
			portless++
		case w.Weight() == 0:
			weightless++
		case slices.Contains(b.tried, endpoint(w, b.target(list[i]))):
			tried++
		default:
			elsewhere++
		}
	}
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{
		{sick, "not healthy"}, {far, "in a network without a gateway"}, {nowhere, "without an address"},
		{tried, "tried already"}, {portless, fmt.Sprintf("without port %d", b.port)}, {weightless, "of weight 0"}, {elsewhere, "not near enough for its routing preference, which is strict"},
	} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	return fmt.Sprintf("service %s has no endpoint that could be used: %s", name, strings.Join(parts, ", "))
}
