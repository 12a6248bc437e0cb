package workload

import (
	"hash/maphash"
	"iter"
	"maps"
)

// shards of a map. A hundred thousand entries make some 200 a shard, which are
// copied in a few microseconds; an empty map costs one 4 KiB list on first write.
const shards = 512

// cowMap is an immutable map in shards. An editor copies only the shards that it
// writes to. The zero value is an empty map.
type cowMap[K comparable, V any] struct {
	seed  maphash.Seed
	parts []map[K]V // nil, or of length shards
	size  int
}

func (m *cowMap[K, V]) get(k K) (V, bool) {
	if m.parts == nil {
		var zero V
		return zero, false
	}
	v, ok := m.parts[m.shard(k)][k]
	return v, ok
}

func (m *cowMap[K, V]) shard(k K) uint64 { return maphash.Comparable(m.seed, k) % shards }

func (m *cowMap[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for _, p := range m.parts {
			for k, v := range p {
				if !yield(k, v) {
					return
				}
			}
		}
	}
}

// cowEditor changes a copy of a map.
type cowEditor[K comparable, V any] struct {
	m     cowMap[K, V]
	fresh [shards / 64]uint64 // which parts are our own copies
	own   bool                // whether the list of parts is
}

func editMap[K comparable, V any](m cowMap[K, V]) *cowEditor[K, V] {
	return &cowEditor[K, V]{m: m}
}

func (e *cowEditor[K, V]) get(k K) (V, bool) { return e.m.get(k) }

// part returns the shard of a key as a map of our own.
func (e *cowEditor[K, V]) part(k K) map[K]V {
	if !e.own {
		parts := make([]map[K]V, shards)
		copy(parts, e.m.parts)
		if e.m.parts == nil {
			e.m.seed = maphash.MakeSeed()
		}
		e.m.parts, e.own = parts, true
	}
	i := e.m.shard(k)
	if e.fresh[i/64]&(1<<(i%64)) == 0 {
		e.fresh[i/64] |= 1 << (i % 64)
		if e.m.parts[i] == nil {
			e.m.parts[i] = make(map[K]V)
		} else {
			e.m.parts[i] = maps.Clone(e.m.parts[i])
		}
	}
	return e.m.parts[i]
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
