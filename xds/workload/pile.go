package workload

// pile gathers things by key, in one piece of memory however many keys there are. It
// keeps their order. A batch gathers in it what it changes of a list, so that each list
// is made anew once.
type pile[K comparable, T any] struct {
	items []piled[T]
	keys  []piledKey[K]
	at    map[K]int32 // in keys
}

type piled[T any] struct {
	item T
	next int32 // of the key, counted from 1; 0: none
}

// piledKey has the places of a key's first and last item, counted from 1.
type piledKey[K comparable] struct {
	key         K
	first, last int32
}

// grow makes room for n items.
func (p *pile[K, T]) grow(n int) { p.items = make([]piled[T], 0, n) }

func (p *pile[K, T]) add(k K, item T) {
	p.items = append(p.items, piled[T]{item: item})
	at := int32(len(p.items))
	key := p.place(k)
	if key.first == 0 {
		key.first = at
	} else {
		p.items[key.last-1].next = at
	}
	key.last = at
}

// place is that of a key. What is alike mostly comes one after the other.
func (p *pile[K, T]) place(k K) *piledKey[K] {
	if n := len(p.keys); n > 0 && p.keys[n-1].key == k {
		return &p.keys[n-1]
	}
	at, ok := p.at[k]
	if !ok {
		if p.at == nil {
			p.at = make(map[K]int32)
		}
		at = int32(len(p.keys))
		p.at[k] = at
		p.keys = append(p.keys, piledKey[K]{key: k})
	}
	return &p.keys[at]
}

// each calls f with the items of each key. The list is good for that call.
func (p *pile[K, T]) each(f func(K, []T)) {
	var list []T
	for _, k := range p.keys {
		list = list[:0]
		for at := k.first; at != 0; at = p.items[at-1].next {
			list = append(list, p.items[at-1].item)
		}
		f(k.key, list)
	}
}
