package workload

import (
	"slices"
	"strings"
)

// change is that of one workload in a list; nil takes it away.
type change struct {
	uid      string
	workload *Workload
}

// last reports whether no later change is of the same workload. Changes are ordered.
func last(changes []change, i int) bool {
	return i+1 == len(changes) || changes[i+1].uid != changes[i].uid
}

// merged is a list, ordered by UID, after changes, which it puts in order. Few changes to
// a long list cost little more than copying it.
func merged[T any](old []T, changes []change, workload func(T) *Workload, made func(*Workload) T) []T {
	byUID := func(a, b change) int { return strings.Compare(a.uid, b.uid) }
	if !slices.IsSortedFunc(changes, byUID) {
		slices.SortStableFunc(changes, byUID)
	}
	n := len(old)
	for i, c := range changes {
		if c.workload != nil && last(changes, i) {
			n++ // or less, where it replaces another
		}
	}
	list := make([]T, 0, n)
	for i, c := range changes {
		if !last(changes, i) {
			continue
		}
		at, found := slices.BinarySearchFunc(old, c.uid, func(x T, uid string) int { return strings.Compare(workload(x).UID, uid) })
		list = append(list, old[:at]...)
		if found {
			at++
		}
		old = old[at:]
		if c.workload != nil {
			list = append(list, made(c.workload))
		}
	}
	return append(list, old...)
}
