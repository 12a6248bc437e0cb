package workload

import (
	"slices"
	"strings"
)

// serviceSet are the services that share a hostname, an address or a range. It is
// immutable. To choose among very many costs no more than among few.
type serviceSet struct {
	list   []*Service // by namespace, then hostname
	public *Service   // what clients of namespaces without one of their own get; nil: nothing
}

// forClient is the service that clients of a namespace mean: the first of their own, else
// of those that they may see the canonical one, else the first.
func (s serviceSet) forClient(namespace string) *Service {
	i, own := slices.BinarySearchFunc(s.list, namespace, func(x *Service, ns string) int { return strings.Compare(x.Namespace, ns) })
	if own {
		return s.list[i]
	}
	return s.public
}

// with returns the set after changes; ok is false if nothing is left.
func (s serviceSet) with(changes []change[*Service]) (_ serviceSet, ok bool) {
	list := relisted(s.list, changes, compareServices)
	return serviceSet{list: list, public: publicOf(list)}, len(list) > 0
}

func publicOf(list []*Service) *Service {
	var best *Service
	for _, s := range list {
		if s.Visibility == NamespacePrivate {
			continue
		}
		if s.Canonical {
			return s
		}
		if best == nil {
			best = s
		}
	}
	return best
}

func compareServices(a, b *Service) int {
	return a.Key().Compare(b.Key())
}

// serviceSets are the sets of an index, and what changes of them in an edit.
type serviceSets[K comparable] struct {
	cowEditor[K, serviceSet]
	changes pile[K, change[*Service]]
}

func editSets[K comparable](m cowMap[K, serviceSet], edit uint64) serviceSets[K] {
	return serviceSets[K]{cowEditor: editMap(m, edit)}
}

// rebuild brings the sets up to date. counted is told of each that comes, 1, or goes, -1.
func (e *serviceSets[K]) rebuild(rest func(), counted func(k K, delta int)) {
	rebuild(&e.cowEditor, &e.changes, rest, func(k K, old serviceSet, changes []change[*Service]) (serviceSet, bool) {
		set, ok := old.with(changes)
		switch had := len(old.list) > 0; {
		case ok && !had:
			counted(k, 1)
		case had && !ok:
			counted(k, -1)
		}
		return set, ok
	})
}
