package server

import (
	"cmp"
	"iter"
	"maps"
	"slices"
)

// holding is what a client has of one type: a version under every name.
type holding interface {
	version(name string) (string, bool)
	names() iter.Seq[string]
}

// told is what a client said it has when it connected.
type told map[string]string

func (t told) version(name string) (string, bool) {
	v, ok := t[name]
	return v, ok
}

func (t told) names() iter.Seq[string] { return maps.Keys(t) }

// diff returns what a client that has one holding needs to have another, sorted by name.
func diff(have holding, want *resources) step {
	var s step
	for name, r := range want.byName {
		if v, ok := have.version(name); !ok || v != r.version {
			s.send = append(s.send, r)
		}
	}
	for name := range have.names() {
		if _, ok := want.byName[name]; !ok {
			s.gone = append(s.gone, name)
		}
	}
	slices.SortFunc(s.send, func(a, b *resource) int { return cmp.Compare(a.name, b.name) })
	slices.Sort(s.gone)
	return s
}
