package workload

import (
	"hash/maphash"
	"iter"
	"maps"
)

// fan is how many parts a level of a map has. There are two levels, so 4096 shards: a
// hundred thousand entries make some 25 a shard, and to change one of them copies that
// and two lists of pointers, about 2 KB. What is copied becomes garbage, and to find
// garbage costs in proportion to the whole mesh.
const fan = 64

// cowMap is an immutable map in shards. An editor copies only the shards that it
// writes to. The zero value is an empty map.
type cowMap[K comparable, V any] struct {
	seed   maphash.Seed
	groups *[fan]*cowGroup[K, V] // nil, or some of them nil
	size   int
}

type cowGroup[K comparable, V any] [fan]map[K]V

func (m *cowMap[K, V]) get(k K) (V, bool) {
	var zero V
	if m.groups == nil {
		return zero, false
	}
	g, s := m.place(k)
	if m.groups[g] == nil {
		return zero, false
	}
	v, ok := m.groups[g][s][k]
	return v, ok
}

// place is a key's group and its shard therein.
func (m *cowMap[K, V]) place(k K) (group, shard int) {
	h := maphash.Comparable(m.seed, k)
	return int(h % fan), int(h / fan % fan)
}

func (m *cowMap[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		if m.groups == nil {
			return
		}
		for _, g := range m.groups {
			if g == nil {
				continue
			}
			for _, shard := range g {
				for k, v := range shard {
					if !yield(k, v) {
						return
					}
				}
			}
		}
	}
}

// cowEditor changes a copy of a map.
type cowEditor[K comparable, V any] struct {
	m      cowMap[K, V]
	own    bool        // whether the list of groups is our own copy
	groups uint64      // which groups are
	shards [fan]uint64 // which shards are
}

func editMap[K comparable, V any](m cowMap[K, V]) *cowEditor[K, V] {
	return &cowEditor[K, V]{m: m}
}

func (e *cowEditor[K, V]) get(k K) (V, bool) { return e.m.get(k) }

// part returns the shard of a key as a map of our own.
func (e *cowEditor[K, V]) part(k K) map[K]V {
	if !e.own {
		groups := new([fan]*cowGroup[K, V])
		if e.m.groups == nil {
			e.m.seed = maphash.MakeSeed()
		} else {
			*groups = *e.m.groups
		}
		e.m.groups, e.own = groups, true
	}
	g, s := e.m.place(k)
	if e.groups&(1<<g) == 0 {
		group := new(cowGroup[K, V])
		if old := e.m.groups[g]; old != nil {
			*group = *old
		}
		e.m.groups[g] = group
		e.groups |= 1 << g
	}
	group := e.m.groups[g]
	if e.shards[g]&(1<<s) == 0 {
		e.shards[g] |= 1 << s
		if group[s] == nil {
			group[s] = make(map[K]V)
		} else {
			group[s] = maps.Clone(group[s])
		}
	}
	return group[s]
}

func (e *cowEditor[K, V]) set(k K, v V) {
	p := e.part(k)
	n := len(p)
	p[k] = v
	e.m.size += len(p) - n
}

func (e *cowEditor[K, V]) delete(k K) {
	if _, ok := e.get(k); !ok {
		return
	}
	delete(e.part(k), k)
	e.m.size--
}
