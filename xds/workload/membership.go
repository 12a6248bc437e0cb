package workload

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// Membership is a service that a workload is an endpoint of.
type Membership struct {
	Service NamespacedHostname
	Ports   PortMap // that differ from the service's own
}

// Memberships are a workload's, in the order of Compare, each service at most once. Most
// workloads have one or none. Workloads share them: they are never changed in place.
type Memberships []Membership

// NewMemberships puts services in order.
func NewMemberships(services map[NamespacedHostname]PortMap) Memberships {
	if len(services) == 0 {
		return nil
	}
	m := make(Memberships, 0, len(services))
	for _, key := range slices.SortedFunc(maps.Keys(services), NamespacedHostname.Compare) {
		m = append(m, Membership{Service: key, Ports: services[key]})
	}
	return m
}

// Has says whether a service is among them.
func (m Memberships) Has(service NamespacedHostname) bool {
	_, ok := m.find(service)
	return ok
}

// Ports are those of a service; nil also for one that is not there.
func (m Memberships) Ports(service NamespacedHostname) PortMap {
	if i, ok := m.find(service); ok {
		return m[i].Ports
	}
	return nil
}

func (m Memberships) find(service NamespacedHostname) (at int, ok bool) {
	if len(m) == 1 { // as nearly always
		return 0, m[0].Service == service
	}
	return slices.BinarySearchFunc(m, service, func(e Membership, s NamespacedHostname) int { return e.Service.Compare(s) })
}

// inOrder puts m in order, in place; ok is false if a service is there twice.
func (m Memberships) inOrder() (ok bool) {
	if len(m) < 2 {
		return true
	}
	slices.SortFunc(m, func(a, b Membership) int { return a.Service.Compare(b.Service) })
	for i := range m[1:] {
		if m[i].Service == m[i+1].Service {
			return false
		}
	}
	return true
}

// Compare orders by namespace, then hostname.
func (n NamespacedHostname) Compare(o NamespacedHostname) int {
	return cmp.Or(strings.Compare(n.Namespace, o.Namespace), strings.Compare(n.Hostname, o.Hostname))
}
