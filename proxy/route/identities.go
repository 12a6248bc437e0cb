package route

import (
	"iter"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Identities are those of which a peer must present one, as two lists that belong to the
// view: a decision makes none of its own.
type Identities struct {
	SANs []spiffeid.ID // the service's
	Own  []spiffeid.ID // the workload's
}

// Contains says whether id is one of them.
func (i Identities) Contains(id spiffeid.ID) bool {
	return slices.Contains(i.SANs, id) || slices.Contains(i.Own, id)
}

// All yields each, the service's first.
func (i Identities) All() iter.Seq[spiffeid.ID] {
	return func(yield func(spiffeid.ID) bool) {
		for _, list := range [][]spiffeid.ID{i.SANs, i.Own} {
			for _, id := range list {
				if !yield(id) {
					return
				}
			}
		}
	}
}
