package workload

// claimsEditor changes a copy of claims.
type claimsEditor[K, C comparable] struct {
	claim   *claim[K, C]
	few     indexEditor[K]
	crowds  cowEditor[K, *crowd[C]]
	changes pile[K, change[*Workload]] // of crowds
	full    []K                        // keys of buckets of few that may hold a crowd
}

func editClaims[K, C comparable](c *claim[K, C], x claims[K, C], edit uint64) claimsEditor[K, C] {
	return claimsEditor[K, C]{claim: c, few: editIndex(x.few, edit), crowds: editMap(x.crowds, edit)}
}

func (e *claimsEditor[K, C]) done() claims[K, C] {
	return claims[K, C]{few: e.few.x, crowds: e.crowds.m}
}

func (e *claimsEditor[K, C]) isCrowd(k K) bool {
	if e.crowds.m.size == 0 {
		return false
	}
	_, is := e.crowds.get(k)
	return is
}

// add puts a workload behind those that are there under its key.
func (e *claimsEditor[K, C]) add(k K, w *Workload) {
	if e.isCrowd(k) {
		e.changes.add(k, change[*Workload]{item: w})
		return
	}
	// To look now and then is enough: a bucket does not grow far beyond.
	if n := e.few.add(k, w); n >= 2*crowded && n%crowded == 0 {
		e.full = append(e.full, k)
	}
}

// remove takes out a workload that was added under the key, where there is a crowd only
// when settle is called.
func (e *claimsEditor[K, C]) remove(k K, w *Workload) {
	if e.isCrowd(k) {
		e.changes.add(k, change[*Workload]{item: w, gone: true})
		return
	}
	e.few.removeLater(k, w)
}

// settle brings the crowds up to date.
func (e *claimsEditor[K, C]) settle(rest func()) {
	e.few.sweep(rest)
	rebuild(&e.crowds, &e.changes, rest, func(_ K, old *crowd[C], changes []change[*Workload]) (*crowd[C], bool) {
		c := e.after(old, changes, rest)
		return c, len(c.list) > 0
	})
	for _, k := range e.full {
		e.gather(k, rest)
	}
}

// gather makes crowds of what is crowded in the bucket of a key.
func (e *claimsEditor[K, C]) gather(k K, rest func()) {
	b, _ := e.few.x.bucket(k)
	if b == nil || len(b.items) < 2*crowded {
		return // as it was, or gathered for another key
	}
	type sameHash struct {
		first *Workload
		n     int
	}
	by := make(map[uint32]sameHash)
	for i, sum := range b.hashes {
		rest()
		s := by[sum]
		if s.n++; s.first == nil {
			s.first = b.items[i]
		}
		by[sum] = s
	}
	for sum, s := range by {
		if s.n < crowded {
			continue
		}
		for _, k := range e.claim.keys(s.first) {
			if at, own := e.few.x.bucket(k); at == b && own == sum {
				e.move(k, rest)
			}
		}
	}
}

// move makes a crowd of those of few that claim a key.
func (e *claimsEditor[K, C]) move(k K, rest func()) {
	list := e.few.take(k, func(w *Workload) bool {
		rest()
		return e.claim.claims(w, k)
	})
	if len(list) == 0 {
		return
	}
	come := make([]change[*Workload], len(list))
	for i, w := range list {
		come[i].item = w
	}
	e.crowds.set(k, e.after(nil, come, rest))
}

// after is a crowd after changes.
func (e *claimsEditor[K, C]) after(old *crowd[C], changes []change[*Workload], rest func()) *crowd[C] {
	if old == nil {
		old = &crowd[C]{}
	}
	list, kept, gone := arrived(old.list, changes)
	m := meantEditor[C]{cowEditor: editMap(old.meant, e.crowds.edit), meets: e.claim.meets, goesFirst: e.claim.goesFirst, best: make(map[C]*Workload)}
	for _, w := range list[kept:] {
		rest()
		m.offer(w, nil)
	}
	if stale := m.stale(gone); len(stale) > 0 {
		for _, w := range list {
			rest()
			m.offer(w, stale)
		}
	}
	for c, w := range m.best {
		rest()
		m.put(c, w)
	}
	return &crowd[C]{list: list, meant: m.m}
}

// arrived is a list after changes, those that came first going first; kept is how many of
// old it has, and gone are those that were taken away, though they may have come again.
func arrived(old []*Workload, changes []change[*Workload]) (list []*Workload, kept int, gone map[*Workload]int) {
	gone = make(map[*Workload]int)
	left := 0 // to be taken away
	for _, c := range changes {
		if c.gone {
			gone[c.item]++
			left++
		}
	}
	list = make([]*Workload, 0, len(old)+len(changes)-left)
	add := func(w *Workload) {
		if left > 0 && gone[w] > 0 {
			gone[w]--
			left--
			return
		}
		list = append(list, w)
	}
	for _, w := range old {
		add(w)
	}
	kept = len(list)
	for _, c := range changes {
		if !c.gone {
			add(c.item)
		}
	}
	return list, kept, gone
}

// meantEditor chooses who is meant in a crowd.
type meantEditor[C comparable] struct {
	cowEditor[C, *Workload]
	meets     func([]C, *Workload) []C
	goesFirst func(w, o *Workload) bool

	best map[C]*Workload // what is to be put; nil: nobody
	met  []C
}

// now is who is meant so far. One who has gone is a measure for those that come: who goes
// before it goes before all that are left.
func (m *meantEditor[C]) now(c C) *Workload {
	if w, changed := m.best[c]; changed {
		return w
	}
	w, _ := m.get(c)
	return w
}

// offer has w chosen where it goes first, if only is not nil only there.
func (m *meantEditor[C]) offer(w *Workload, only map[C]bool) {
	m.met = m.meets(m.met[:0], w)
	for _, c := range m.met {
		if only != nil && !only[c] {
			continue
		}
		if o := m.now(c); o == nil || m.goesFirst(w, o) {
			m.best[c] = w
		}
	}
}

// stale is what those were meant by that have gone, in whose place none has come. Nobody
// is meant by it then.
func (m *meantEditor[C]) stale(gone map[*Workload]int) map[C]bool {
	stale := make(map[C]bool)
	for w := range gone {
		m.met = m.meets(m.met[:0], w)
		for _, c := range m.met {
			if m.now(c) == w {
				stale[c] = true
			}
		}
	}
	for c := range stale {
		m.best[c] = nil
	}
	return stale
}

func (m *meantEditor[C]) put(c C, w *Workload) {
	if w == nil {
		m.delete(c)
		return
	}
	m.set(c, w)
}
