package workload

import (
	"maps"
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

// with returns the set after the changes, nil if nothing is left. Few changes to
// a long list cost little more than copying it.
func (s *EndpointSet) with(changes endpointChanges) *EndpointSet {
	old := s.All()
	out := &EndpointSet{list: make([]Endpoint, 0, len(old)+len(changes))}
	for _, uid := range slices.Sorted(maps.Keys(changes)) {
		i, found := slices.BinarySearchFunc(old, uid, compareEndpoint)
		out.list = append(out.list, old[:i]...)
		if found {
			i++
		}
		old = old[i:]
		if e := changes[uid]; e.Workload != nil {
			out.list = append(out.list, e)
		}
	}
	out.list = append(out.list, old...)
	if len(out.list) == 0 {
		return nil
	}
	out.uniform = out.isUniform(s, changes)
	return out
}

// isUniform looks at all endpoints only if it must.
func (s *EndpointSet) isUniform(old *EndpointSet, changes endpointChanges) bool {
	first := s.list[0].Workload.Weight()
	if first == 0 {
		return false
	}
	if old.Uniform() && old.list[0].Workload.Weight() == first {
		for _, e := range changes {
			if e.Workload != nil && e.Workload.Weight() != first {
				return false
			}
		}
		return true
	}
	for _, e := range s.list {
		if e.Workload.Weight() != first {
			return false
		}
	}
	return true
}
