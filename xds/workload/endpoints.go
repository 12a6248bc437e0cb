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

// rebuildEndpoints brings the lists of services up to date.
func (e *viewEditor) rebuildEndpoints(rest func()) {
	rebuild(&e.endpoints, &e.changes, rest, func(key NamespacedHostname, old *EndpointSet, changes []change[*Workload]) (*EndpointSet, bool) {
		set := old.with(key, changes)
		return set, set != nil
	})
}

// with returns the set after changes of its service, key; nil if nothing is left.
func (s *EndpointSet) with(key NamespacedHostname, changes []change[*Workload]) *EndpointSet {
	list := merged(s.All(), changes, compareWorkloads, func(e Endpoint) *Workload { return e.Workload },
		func(w *Workload) Endpoint { return Endpoint{Workload: w, Ports: w.Services.Ports(key)} })
	if len(list) == 0 {
		return nil
	}
	out := &EndpointSet{list: list}
	out.uniform = out.isUniform(s, changes)
	return out
}

// isUniform looks at all endpoints only if it must.
func (s *EndpointSet) isUniform(old *EndpointSet, changes []change[*Workload]) bool {
	first := s.list[0].Workload.Weight()
	if first == 0 {
		return false
	}
	differs := func(c change[*Workload]) bool { return !c.gone && c.item.Weight() != first }
	if old.Uniform() && old.list[0].Workload.Weight() == first && !slices.ContainsFunc(changes, differs) {
		return true
	}
	for _, e := range s.list {
		if e.Workload.Weight() != first {
			return false
		}
	}
	return true
}
