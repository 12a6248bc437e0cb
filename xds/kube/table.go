package kube

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

// key is an object's identity within its kind. Its strings are those of the object.
type key struct{ namespace, name string }

func (k key) String() string {
	if k.namespace == "" {
		return k.name
	}
	return k.namespace + "/" + k.name
}

func (k key) compare(o key) int {
	return cmp.Or(cmp.Compare(k.namespace, o.namespace), cmp.Compare(k.name, o.name))
}

func keyOf(o metav1.Object) key { return key{o.GetNamespace(), o.GetName()} }

// table keeps the objects of one kind: a reflector writes into it, as into a
// cache.Store, and the feeder reads lists of it. What changed in an object counts only
// if it is in what is kept: a node's heartbeat changes nothing.
type table[T metav1.Object] struct {
	// keep makes what is kept of an object; an error is about the object alone. Both can
	// be: an object of which some part is not understood. Keeping twice is keeping once.
	keep func(raw metav1.Object) (T, error)
	// standIn makes what is kept of an object that cannot be read at all, and says what
	// that is: of what it was before, which is none for one that never could be read. Nil
	// for a kind whose objects stay as they were then, or are not there.
	standIn func(raw metav1.Object, before T) (T, string)
	same    func(a, b T) bool
	changed func() // called after a change, without locks

	mu      sync.Mutex
	objects map[key]T
	bad     map[key]complaint
	list    []T // of objects; nil when it is out of date
	synced  bool
}

// complaint is what is wrong with an object.
type complaint struct {
	reason     string
	apiVersion string
	uid        types.UID
	unread     bool // nothing of it is understood
	never      bool // and never was: a stand-in is all that there is
}

// Add implements cache.ReflectorStore.
func (t *table[T]) Add(obj any) error { return t.Update(obj) }

// Update implements cache.ReflectorStore.
func (t *table[T]) Update(obj any) error {
	raw, ok := obj.(metav1.Object)
	if !ok {
		return fmt.Errorf("kube: %T has no metadata", obj)
	}
	kept, err := t.keep(raw)
	t.mu.Lock()
	changed := t.putLocked(raw, kept, err)
	t.mu.Unlock()
	if changed {
		t.changed()
	}
	return nil
}

// putLocked takes what keep made of an object. Of one that cannot be read at all, what
// it was when it last could stays: a policy with a mistake is still a policy. One that
// never could be is not as if it were not there, either, where that allows more.
func (t *table[T]) putLocked(raw metav1.Object, kept T, err error) (changed bool) {
	k := keyOf(raw)
	var none T
	if any(kept) != any(none) || err == nil {
		return t.setLocked(k, kept, complaintOf(raw, err))
	}
	c := complaintOf(raw, err)
	c.unread = true
	before, had := t.objects[k]
	if !had || t.bad[k].never || before.GetUID() != raw.GetUID() {
		before, c.never = none, true
	}
	if t.standIn != nil {
		var what string
		kept, what = t.standIn(raw, before)
		c.reason += ": " + what
	}
	return t.setLocked(k, kept, c)
}

func (t *table[T]) setLocked(k key, kept T, c complaint) (changed bool) {
	changed = t.noteLocked(k, c)
	var none T
	if any(kept) == any(none) {
		return changed
	}
	if before, ok := t.objects[k]; ok && t.same(before, kept) {
		return changed
	}
	t.objects[keyOf(kept)] = kept
	t.list = nil
	return true
}

func complaintOf(raw metav1.Object, err error) (c complaint) {
	if err == nil {
		return complaint{}
	}
	if typed, ok := raw.(runtime.Object); ok {
		c.apiVersion = typed.GetObjectKind().GroupVersionKind().GroupVersion().String()
	}
	c.reason, c.uid = err.Error(), raw.GetUID()
	return c
}

// noteLocked remembers what is wrong with an object; the zero complaint is nothing.
func (t *table[T]) noteLocked(k key, c complaint) (changed bool) {
	before := t.bad[k]
	if c == (complaint{}) {
		delete(t.bad, k)
	} else {
		t.bad[k] = c
	}
	return before != c
}

// Delete implements cache.ReflectorStore.
func (t *table[T]) Delete(obj any) error {
	raw, ok := obj.(metav1.Object)
	if !ok {
		return fmt.Errorf("kube: %T has no metadata", obj)
	}
	k := keyOf(raw)
	t.mu.Lock()
	_, had := t.objects[k]
	delete(t.objects, k)
	_, bad := t.bad[k]
	delete(t.bad, k)
	if had {
		t.list = nil
	}
	t.mu.Unlock()
	if had || bad {
		t.changed()
	}
	return nil
}

// Replace implements cache.ReflectorStore: items is everything that there is.
func (t *table[T]) Replace(items []any, _ string) error {
	type entry struct {
		raw  metav1.Object
		kept T
		err  error
	}
	var none T
	entries := make([]entry, 0, len(items))
	there := make(map[key]bool, len(items))
	for i, item := range items {
		raw, ok := item.(metav1.Object)
		if !ok {
			return fmt.Errorf("kube: %T has no metadata", item)
		}
		kept, err := t.keep(raw)
		e := entry{nil, kept, err}
		if err != nil || any(kept) == any(none) {
			e.raw = raw
		} else {
			e.raw = kept // much smaller
		}
		entries = append(entries, e)
		there[keyOf(raw)] = true
		items[i] = nil // ours
	}
	t.mu.Lock()
	changed := !t.synced
	t.synced = true
	for _, e := range entries {
		changed = t.putLocked(e.raw, e.kept, e.err) || changed
	}
	before := len(t.objects) + len(t.bad)
	maps.DeleteFunc(t.objects, func(k key, _ T) bool { return !there[k] })
	maps.DeleteFunc(t.bad, func(k key, _ complaint) bool { return !there[k] })
	if len(t.objects)+len(t.bad) != before {
		t.list, changed = nil, true
	}
	t.mu.Unlock()
	if changed {
		t.changed()
	}
	return nil
}

// Resync implements cache.ReflectorStore; there is nothing to do again.
func (t *table[T]) Resync() error { return nil }

func newTable[T metav1.Object](keep func(metav1.Object) (T, error), same func(a, b T) bool, changed func()) *table[T] {
	return &table[T]{keep: keep, same: same, changed: changed, objects: make(map[key]T), bad: make(map[key]complaint)}
}

// all returns the objects, which nobody may change, in no order.
func (t *table[T]) all() []T {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.list == nil {
		t.list = slices.AppendSeq(make([]T, 0, len(t.objects)), maps.Values(t.objects))
	}
	return t.list
}

// count says how many objects there are, and whether they are known at all.
func (t *table[T]) count() (n int, synced bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.objects), t.synced
}

// complaints returns what is wrong with objects, sorted.
func (t *table[T]) complaints(kind string) []Problem {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Problem
	for _, k := range slices.SortedFunc(maps.Keys(t.bad), key.compare) {
		c := t.bad[k]
		out = append(out, Problem{Kind: kind, Namespace: k.namespace, Name: k.name, Reason: c.reason, APIVersion: c.apiVersion, UID: c.uid, Unread: c.unread})
	}
	return out
}
