package workload

import (
	"hash/maphash"
	"iter"
	"slices"
	"sync/atomic"
)

// The maps of a view are immutable tries of three levels above shards. Sixteen ways each
// make 4096 shards: a hundred thousand entries are some 25 a shard, and to change one of
// them copies that and three short lists, about 1 KB. What is copied becomes garbage, and
// to find garbage costs in proportion to the whole mesh.
const (
	way     = 16
	wayBits = 4
	shards  = way * way * way
)

// edits numbers the edits of all tries.
var edits atomic.Uint64

// node is one list of a trie. It may be written by the edit that made it; zero is none.
type node[T any] struct {
	edit uint64
	kids [way]*T
}

type (
	low[S any]  = node[S]
	mid[S any]  = node[low[S]]
	root[S any] = node[mid[S]]
)

// trie finds the shard of a hash.
type trie[S any] struct{ top *root[S] }

func (t trie[S]) shard(h uint64) *S {
	if t.top == nil {
		return nil
	}
	m := t.top.kids[h%way]
	if m == nil {
		return nil
	}
	l := m.kids[h>>wayBits%way]
	if l == nil {
		return nil
	}
	return l.kids[h>>(2*wayBits)%way]
}

// place is where a hash's shard is, in lists that belong to an edit.
func (t *trie[S]) place(h, edit uint64) **S {
	m := own(own(&t.top, edit).at(h), edit).at(h >> wayBits)
	return own(m, edit).at(h >> (2 * wayBits))
}

func (n *node[T]) at(h uint64) **T { return &n.kids[h%way] }

// own puts a copy of a list that is somebody else's in its place.
func own[T any](at **node[T], edit uint64) *node[T] {
	switch n := *at; {
	case n == nil:
		*at = &node[T]{edit: edit}
	case n.edit != edit:
		*at = &node[T]{edit: edit, kids: n.kids}
	}
	return *at
}

func (t trie[S]) all() iter.Seq[*S] {
	return func(yield func(*S) bool) {
		if t.top == nil {
			return
		}
		for _, m := range t.top.kids {
			if m == nil {
				continue
			}
			for _, l := range m.kids {
				if l == nil {
					continue
				}
				for _, s := range l.kids {
					if s != nil && !yield(s) {
						return
					}
				}
			}
		}
	}
}

// cowMap is an immutable map. The zero value is an empty one.
type cowMap[K comparable, V any] struct {
	seed maphash.Seed
	trie trie[mapShard[K, V]]
	size int
}

// mapShard has its entries in lists: there are few, a map's smallest piece has room for
// eight, and to copy it costs accordingly.
type mapShard[K comparable, V any] struct {
	edit    uint64
	hashes  []uint32
	entries []mapEntry[K, V]
}

type mapEntry[K comparable, V any] struct {
	key   K
	value V
}

// find is where a key is, -1 for nowhere.
func (s *mapShard[K, V]) find(k K, hash uint64) int {
	if s == nil {
		return -1
	}
	for i, sum := range s.hashes {
		if sum == uint32(hash>>32) && s.entries[i].key == k {
			return i
		}
	}
	return -1
}

// lookup is where a key is, or would be: its shard, which may be nil, and its place there.
func (m *cowMap[K, V]) lookup(k K) (s *mapShard[K, V], at int, hash uint64) {
	if m.trie.top == nil {
		return nil, -1, 0
	}
	hash = maphash.Comparable(m.seed, k)
	s = m.trie.shard(hash)
	return s, s.find(k, hash), hash
}

func (m *cowMap[K, V]) get(k K) (V, bool) {
	s, at, _ := m.lookup(k)
	if at < 0 {
		var zero V
		return zero, false
	}
	return s.entries[at].value, true
}

func (m *cowMap[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for s := range m.trie.all() {
			for _, e := range s.entries {
				if !yield(e.key, e.value) {
					return
				}
			}
		}
	}
}

// cowEditor changes a copy of a map.
type cowEditor[K comparable, V any] struct {
	m    cowMap[K, V]
	edit uint64
}

func editMap[K comparable, V any](m cowMap[K, V], edit uint64) cowEditor[K, V] {
	return cowEditor[K, V]{m: m, edit: edit}
}

func (e *cowEditor[K, V]) get(k K) (V, bool) { return e.m.get(k) }

// shard returns the shard of a hash as one of our own.
func (e *cowEditor[K, V]) shard(hash uint64) *mapShard[K, V] {
	at := e.m.trie.place(hash, e.edit)
	switch s := *at; {
	case s == nil:
		*at = &mapShard[K, V]{edit: e.edit}
	case s.edit != e.edit:
		*at = &mapShard[K, V]{edit: e.edit, hashes: slices.Clone(s.hashes), entries: slices.Clone(s.entries)}
	}
	return *at
}

func (e *cowEditor[K, V]) set(k K, v V) {
	if e.m.trie.top == nil {
		e.m.seed = maphash.MakeSeed()
	}
	hash := maphash.Comparable(e.m.seed, k)
	s := e.shard(hash)
	if at := s.find(k, hash); at >= 0 {
		s.entries[at].value = v
		return
	}
	s.hashes, s.entries = append(s.hashes, uint32(hash>>32)), append(s.entries, mapEntry[K, V]{k, v})
	e.m.size++
}

func (e *cowEditor[K, V]) delete(k K) {
	_, at, hash := e.m.lookup(k)
	if at < 0 {
		return
	}
	s := e.shard(hash)
	s.hashes, s.entries = slices.Delete(s.hashes, at, at+1), slices.Delete(s.entries, at, at+1)
	e.m.size--
}
