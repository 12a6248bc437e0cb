package client

import (
	"context"
	"maps"
	"slices"
	"time"
)

// leaving are policies that are gone, but named by workloads of the node, and until when
// each may be. Istio's control plane pushes policies and workloads each by themselves, so
// that a removal may come before the workloads without the name. These would refuse
// everything meanwhile, since of a policy that is not there nobody knows what it says:
// what was in force stays so for that moment. The ledger has them until they are gone.
type leaving map[string]time.Time

// keep takes out of a change of policies what is to leave later. What comes again, or is
// refused so that its earlier version stays, leaves no more.
func (s *session) keep(c *change) {
	for name := range c.set {
		delete(s.leaving, name)
		delete(s.awaited, name)
	}
	for _, name := range c.refusals.names {
		delete(s.leaving, name)
	}
	if len(c.gone) == 0 {
		return
	}
	named := s.named()
	for name := range c.set {
		delete(named, name)
	}
	for _, name := range c.refusals.names {
		delete(named, name)
	}
	maps.DeleteFunc(c.gone, func(name string, _ struct{}) bool {
		if _, is := named[name]; !is {
			return false
		}
		if _, was := s.leaving[name]; !was {
			s.leaving[name] = time.Now().Add(s.c.times.leave)
		}
		return true
	})
	c.batch.RemovedPolicies = slices.Collect(maps.Keys(c.gone))
}

// named are the policies that workloads of the node name, and workloads on their way to the
// store, wherever they are.
func (s *session) named() map[string]struct{} {
	names := s.c.store.View().PoliciesHere()
	coming := s.pending.Workloads
	if s.held != nil {
		coming = slices.Concat(coming, s.held.batch.Workloads)
	}
	for _, w := range coming {
		for _, name := range w.Policies {
			names[name] = struct{}{}
		}
	}
	return names
}

// depart removes the policies that nobody names any more, or whose time is over.
func (s *session) depart(ctx context.Context) error {
	s.departure = nil
	if len(s.leaving) == 0 {
		return nil
	}
	c := &change{kind: policies, answered: true, gone: map[string]struct{}{}}
	named, now, next, missed := s.named(), time.Now(), time.Duration(0), 0
	for name, until := range s.leaving {
		_, is := named[name]
		if left := until.Sub(now); is && left > 0 {
			if next == 0 || left < next {
				next = left
			}
			continue
		}
		if is {
			missed++
		}
		delete(s.leaving, name)
		c.gone[name] = struct{}{}
		c.batch.RemovedPolicies = append(c.batch.RemovedPolicies, name)
	}
	if next > 0 {
		s.departure = time.After(next)
	}
	if len(c.gone) == 0 {
		return nil
	}
	if missed > 0 {
		s.c.cfg.Log.Warn("workloads of this node still name policies that are gone; they refuse everything while they do", "policies", missed)
	}
	s.add(c)
	return s.flush(ctx)
}
