package workload

import (
	"hash/maphash"
	"iter"
	"slices"
)

// index finds workloads by something that they say of themselves. It holds no keys: who
// has the hash is asked. That makes 12 bytes an entry, where a map has some 80. It is
// immutable, as cowMap is; the zero value is empty.
type index[K comparable] struct {
	seed maphash.Seed
	trie trie[bucket]
	size int // entries
}

// bucket holds a shard's workloads in the order in which they came.
type bucket struct {
	edit   uint64
	hashes []uint32
	items  []*Workload
}

// under are the workloads whose key has k's hash: those of k, and with bad luck others.
// They come in the order of arrival.
func (x *index[K]) under(k K) iter.Seq[*Workload] {
	return func(yield func(*Workload) bool) {
		if x.trie.top == nil {
			return
		}
		h := maphash.Comparable(x.seed, k)
		b := x.trie.shard(h)
		if b == nil {
			return
		}
		for i, sum := range b.hashes {
			if sum == uint32(h>>32) && !yield(b.items[i]) {
				return
			}
		}
	}
}

// bucket is where a key's workloads are, with the sum that they have there; nil: nowhere.
func (x *index[K]) bucket(k K) (*bucket, uint32) {
	if x.trie.top == nil {
		return nil, 0
	}
	h := maphash.Comparable(x.seed, k)
	return x.trie.shard(h), uint32(h >> 32)
}

func (x *index[K]) all() iter.Seq[*Workload] {
	return func(yield func(*Workload) bool) {
		for b := range x.trie.all() {
			for _, w := range b.items {
				if !yield(w) {
					return
				}
			}
		}
	}
}

// indexEditor changes a copy of an index.
type indexEditor[K comparable] struct {
	x    index[K]
	edit uint64
	room int // for how many entries at least a new bucket is made

	// gone are those that removeLater has left in crowded buckets, by any of a bucket's
	// hashes: how many entries of each are to go.
	gone map[uint64]map[*Workload]int
}

// crowded is how many entries a bucket has that is not looked through for each that
// leaves: many workloads claim one address, or one name. Those of one key are a crowd.
const crowded = 256

// expect tells how many entries there will be.
func (e *indexEditor[K]) expect(n int) { e.room = n/shards + n/shards/2 }

func editIndex[K comparable](x index[K], edit uint64) indexEditor[K] {
	return indexEditor[K]{x: x, edit: edit}
}

// bucket returns the place of a hash, for writing, with room for one more.
func (e *indexEditor[K]) bucket(h uint64) *bucket {
	at := e.x.trie.place(h, e.edit)
	switch b := *at; {
	case b == nil:
		*at = &bucket{edit: e.edit, hashes: make([]uint32, 0, e.room), items: make([]*Workload, 0, e.room)}
	case b.edit != e.edit:
		n := max(len(b.items)+1, e.room)
		c := &bucket{edit: e.edit, hashes: make([]uint32, 0, n), items: make([]*Workload, 0, n)}
		c.hashes, c.items = append(c.hashes, b.hashes...), append(c.items, b.items...)
		*at = c
	}
	return *at
}

// add puts a workload behind those that are there under its key. It returns how many the
// bucket has.
func (e *indexEditor[K]) add(k K, w *Workload) int {
	if e.x.trie.top == nil {
		e.x.seed = maphash.MakeSeed()
	}
	h := maphash.Comparable(e.x.seed, k)
	b := e.bucket(h)
	b.hashes, b.items = append(b.hashes, uint32(h>>32)), append(b.items, w)
	e.x.size++
	return len(b.items)
}

// replace puts a workload in the place of the one with its name, if there is one, else
// behind the others of its key. It returns the one that was there.
func (e *indexEditor[K]) replace(k K, w *Workload, name func(*Workload) string) (old *Workload) {
	if e.x.trie.top == nil {
		e.x.seed = maphash.MakeSeed()
	}
	h := maphash.Comparable(e.x.seed, k)
	b := e.bucket(h)
	for i, sum := range b.hashes {
		if sum == uint32(h>>32) && name(b.items[i]) == name(w) {
			old, b.items[i] = b.items[i], w
			return old
		}
	}
	b.hashes, b.items = append(b.hashes, uint32(h>>32)), append(b.items, w)
	e.x.size++
	return nil
}

// remove takes out a workload that was added under the key.
func (e *indexEditor[K]) remove(k K, w *Workload) {
	h := maphash.Comparable(e.x.seed, k)
	b := e.bucket(h)
	for i, sum := range b.hashes {
		if sum == uint32(h>>32) && b.items[i] == w {
			b.hashes, b.items = slices.Delete(b.hashes, i, i+1), slices.Delete(b.items, i, i+1)
			e.x.size--
			return
		}
	}
}

// removeLater is remove, but where there is a crowd what was removed is there until sweep.
func (e *indexEditor[K]) removeLater(k K, w *Workload) {
	h := maphash.Comparable(e.x.seed, k)
	if b := e.x.trie.shard(h); b == nil || len(b.items) < crowded {
		e.remove(k, w)
		return
	}
	if e.gone == nil {
		e.gone = make(map[uint64]map[*Workload]int)
	}
	if e.gone[h%shards] == nil {
		e.gone[h%shards] = make(map[*Workload]int)
	}
	e.gone[h%shards][w]++
}

// sweep takes out what removeLater has left, those that came first.
func (e *indexEditor[K]) sweep(rest func()) {
	for h, gone := range e.gone {
		rest()
		b := e.bucket(h)
		n := 0
		for i, w := range b.items {
			if gone[w] > 0 {
				gone[w]--
				continue
			}
			b.hashes[n], b.items[n] = b.hashes[i], w
			n++
		}
		e.x.size -= len(b.items) - n
		clear(b.items[n:])
		b.hashes, b.items = b.hashes[:n], b.items[:n]
	}
	e.gone = nil
}

// take takes those out that claim a key, in the order of arrival.
func (e *indexEditor[K]) take(k K, claims func(*Workload) bool) []*Workload {
	h := maphash.Comparable(e.x.seed, k)
	b := e.bucket(h)
	var out, items []*Workload
	var hashes []uint32
	for i, w := range b.items {
		if b.hashes[i] == uint32(h>>32) && claims(w) {
			out = append(out, w)
		} else {
			hashes, items = append(hashes, b.hashes[i]), append(items, w)
		}
	}
	b.hashes, b.items = hashes, items // and not in their memory, which is the crowd's
	e.x.size -= len(out)
	return out
}
