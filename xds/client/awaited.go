package client

import (
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/warren-mesh/warren/xds/workload"
)

// maxAwaited bounds how many policies are remembered as waited for.
const maxAwaited = 4096

// lacking is how long a change should wait for policies that it needs: not at all if none,
// or none that could be on its way. A policy is waited for once, from the first change on
// that names it until it comes: Istio's control plane names some that it never sends, and
// others that it leaves out, in each workload that comes.
func (s *session) lacking(c *change) (wait time.Duration) {
	if len(c.batch.Workloads) == 0 {
		return 0
	}
	if !s.seen[policies] {
		return s.c.times.first
	}
	now := time.Now()
	for name := range s.missing(c) {
		until, was := s.awaited[name]
		if !was {
			until = now.Add(s.c.times.policy)
			if len(s.awaited) < maxAwaited {
				s.awaited[strings.Clone(name)] = until // it may be a part of what it came in
			}
		}
		wait = max(wait, until.Sub(now))
	}
	return wait
}

// missing are the policies that workloads of the node are to have by a change, and did not
// have before it, and that are not there; nobody asks this node what guards those of others.
// One that was missing before is not made worse by it.
func (s *session) missing(c *change) iter.Seq[string] {
	return func(yield func(string) bool) {
		view, refused := s.c.store.View(), s.c.ledgers[policies].refused
		for _, w := range c.batch.Workloads {
			if !view.MayBeHere(w) {
				continue
			}
			var before map[string]struct{} // made when it is needed, which is rare
			for _, name := range w.Policies {
				if _, no := refused[name]; no || len(name) > maxName || view.Policy(name) != nil {
					continue // one of a longer name would be refused
				}
				if before == nil {
					before = policiesOf(view.WorkloadByUID(w.UID))
				}
				if _, was := before[name]; !was && !yield(name) {
					return
				}
			}
		}
	}
}

// policiesOf are the policies of a workload, which may be nil.
func policiesOf(w *workload.Workload) map[string]struct{} {
	set := map[string]struct{}{}
	if w != nil {
		for _, name := range w.Policies {
			set[name] = struct{}{}
		}
	}
	return set
}

// complain says what a change was held for in vain.
func (s *session) complain(c *change) {
	s.c.complaints.Do(func() {
		var names []string
		for name := range s.missing(c) {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
			if len(names) == maxNamed {
				break
			}
		}
		s.c.cfg.Log.Warn("policies have not come in time; until they do, workloads that name them refuse everything, or plaintext where they can be about mTLS only",
			"policies", clip(strings.Join(names, " "), maxLastError))
	})
}
