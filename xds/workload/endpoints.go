package workload

import (
	"slices"
	"strings"
)

// Endpoint is a workload behind a service.
type Endpoint struct {
	Workload *Workload
	Ports    PortMap // where they differ from the service's own
}

// EndpointSet are the endpoints of one service, by UID. It is immutable.
type EndpointSet struct {
	list []Endpoint
	// uniform: all weights are equal and above 0, so that any endpoint can be
	// drawn without summing weights.
	uniform bool
}

// All are the endpoints by UID, healthy or not.
func (s *EndpointSet) All() []Endpoint {
	if s == nil {
		return nil
	}
	return s.list
}

// Uniform reports whether all endpoints have the same weight above zero.
func (s *EndpointSet) Uniform() bool { return s != nil && s.uniform }

// Get finds the endpoint of a workload.
func (s *EndpointSet) Get(uid string) (Endpoint, bool) {
	if s == nil {
		return Endpoint{}, false
	}
	i, ok := slices.BinarySearchFunc(s.list, uid, compareEndpoint)
	if !ok {
		return Endpoint{}, false
	}
	return s.list[i], true
}

func compareEndpoint(e Endpoint, uid string) int { return strings.Compare(e.Workload.UID, uid) }

// endpointChanges are the changes of one service within a batch; a nil workload
// takes the endpoint away. They are gathered so that a batch rebuilds each
// service's list once, however many of its endpoints change.
type endpointChanges map[string]Endpoint

// with returns the set after the changes, nil if nothing is left.
func (s *EndpointSet) with(changes endpointChanges) *EndpointSet {
	old := s.All()
	out := &EndpointSet{list: make([]Endpoint, 0, len(old)+len(changes))}
	for _, e := range old {
		if _, changed := changes[e.Workload.UID]; !changed {
			out.list = append(out.list, e)
		}
	}
	kept := len(out.list)
	for _, e := range changes {
		if e.Workload != nil {
			out.list = append(out.list, e)
		}
	}
	if len(out.list) == 0 {
		return nil
	}
	out.list = mergeSorted(out.list, kept)
	out.uniform = uniform(out.list)
	return out
}

// mergeSorted orders a list whose first kept entries are in order already.
func mergeSorted(list []Endpoint, kept int) []Endpoint {
	order := func(a, b Endpoint) int { return strings.Compare(a.Workload.UID, b.Workload.UID) }
	added := slices.Clone(list[kept:])
	if len(added) == 0 {
		return list
	}
	slices.SortFunc(added, order)
	i, j := kept-1, len(added)-1
	for k := len(list) - 1; j >= 0; k-- {
		if i >= 0 && order(list[i], added[j]) > 0 {
			list[k] = list[i]
			i--
		} else {
			list[k] = added[j]
			j--
		}
	}
	return list
}

func uniform(list []Endpoint) bool {
	first := list[0].Workload.Weight()
	for _, e := range list {
		if e.Workload.Weight() != first {
			return false
		}
	}
	return first > 0
}
