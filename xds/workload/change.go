package workload

import "slices"

// change is that of one thing in a list.
type change[X any] struct {
	item X
	gone bool // it is taken away; else it comes, in the place of one with its key
}

// rebuild brings a map's values up to date with the changes gathered for them. with
// returns what is left of a value, ok false if nothing is.
func rebuild[K comparable, V, X any](m *cowEditor[K, V], p *pile[K, change[X]], rest func(), with func(k K, old V, changes []change[X]) (v V, ok bool)) {
	p.each(func(k K, changes []change[X]) {
		rest()
		old, _ := m.get(k)
		if v, ok := with(k, old, changes); ok {
			m.set(k, v)
		} else {
			m.delete(k)
		}
	})
}

// relisted is merged for a list of the things themselves.
func relisted[X any](old []X, changes []change[X], compare func(a, b X) int) []X {
	itself := func(x X) X { return x }
	return merged(old, changes, compare, itself, itself)
}

// merged is a list, ordered by the keys that compare compares, after changes, which it
// puts in order. The last change of a key counts. Few changes to a long list cost little
// more than copying it, and many no more than sorting them. A list is never changed in
// place: views share it.
func merged[T, X any](old []T, changes []change[X], compare func(a, b X) int, of func(T) X, made func(X) T) []T {
	changes = settled(changes, compare)
	n := len(old)
	for _, c := range changes {
		if !c.gone {
			n++ // or less, where it replaces another
		}
	}
	list := make([]T, 0, n)
	for _, c := range changes {
		at, found := slices.BinarySearchFunc(old, c.item, func(t T, x X) int { return compare(of(t), x) })
		list = append(list, old[:at]...)
		if found {
			at++
		}
		old = old[at:]
		if !c.gone {
			list = append(list, made(c.item))
		}
	}
	return append(list, old...)
}

// settled are the changes in order, of each key the last. It works in their memory.
func settled[X any](changes []change[X], compare func(a, b X) int) []change[X] {
	inOrder := true // as they mostly come
	for i := 1; i < len(changes) && inOrder; i++ {
		inOrder = compare(changes[i-1].item, changes[i].item) < 0
	}
	if inOrder {
		return changes
	}
	slices.SortStableFunc(changes, func(a, b change[X]) int { return compare(a.item, b.item) })
	kept := changes[:0]
	for i, c := range changes {
		if i+1 == len(changes) || compare(c.item, changes[i+1].item) != 0 {
			kept = append(kept, c)
		}
	}
	return kept
}
