package workload

// pile gathers things by key, in one piece of memory however many keys there are. It
// keeps their order. A batch gathers in it what it changes of a list, so that each list
// is made anew once.
type pile[K comparable, T any] struct {
	items []piled[T]
	ends  map[K]ends
}

type piled[T any] struct {
	item T
	next int32 // of the key; 0: none
}

// ends are the places of a key's first and last item, counted from 1.
type ends struct{ first, last int32 }

// grow makes room for n items.
func (p *pile[K, T]) grow(n int) { p.items = make([]piled[T], 0, n) }

func (p *pile[K, T]) add(k K, item T) {
	if p.ends == nil {
		p.ends = make(map[K]ends)
	}
	p.items = append(p.items, piled[T]{item: item})
	at := int32(len(p.items))
	e, ok := p.ends[k]
	if !ok {
		e.first = at
	} else {
		p.items[e.last-1].next = at
	}
	e.last = at
	p.ends[k] = e
}

// each calls f with the items of each key. The list is good for that call.
func (p *pile[K, T]) each(f func(K, []T)) {
	var list []T
	for k, e := range p.ends {
		list = list[:0]
		for at := e.first; at != 0; at = p.items[at-1].next {
			list = append(list, p.items[at-1].item)
		}
		f(k, list)
	}
}
