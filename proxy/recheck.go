package proxy

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/warren-mesh/warren/proxy/rbac"
	"github.com/warren-mesh/warren/proxy/track"
	"github.com/warren-mesh/warren/xds/workload"
)

// prefetchEvery spaces the searches for new local workloads, which look at all.
const prefetchEvery = time.Second

// watch follows the world until ctx ends: after each change it judges live
// connections anew and sees to certificates.
func (s *Server) watch(ctx context.Context) { s.follow(ctx, s.known()) }

// follow is watch. known is closed when all of the mesh is known.
func (s *Server) follow(ctx context.Context, known <-chan struct{}) {
	var judged = make(map[*pod]guarded)
	var searched time.Time
	percent := gcPercentFor(unknownMesh)
	for {
		v := s.store.View()
		if n, _, _ := v.Len(); s.program && known == nil && percent != gcPercentFor(n) {
			percent = gcPercentFor(n)
			setGCPercent(percent)
			s.log.Debug("garbage collection", "workloads", n, "percent", percent)
		}
		s.recheck(v, judged)
		s.judged.Store(v)
		pause := time.Until(searched.Add(prefetchEvery))
		if pause <= 0 {
			s.prefetch(v)
			searched, pause = time.Now(), time.Hour
		}
		timer := time.NewTimer(pause)
		select {
		case <-v.Superseded():
		case <-known:
			known = nil
		case <-timer.C:
		case <-s.podsChanged:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// podChange has watch look at the pods that are served: a new one wants its certificate,
// and of one that has left nothing is counted.
func (s *Server) podChange() {
	select {
	case s.podsChanged <- struct{}{}:
	default:
	}
}

// guarded is what a pod's connections were judged by.
type guarded struct {
	self *workload.Workload
	set  workload.PolicySet
}

func (g guarded) equal(o guarded) bool {
	return g.self == o.self && slices.Equal(g.set.Global, o.set.Global) && slices.Equal(g.set.Namespace, o.set.Namespace) &&
		slices.Equal(g.set.Selected, o.set.Selected) && slices.Equal(g.set.Missing, o.set.Missing)
}

// recheck cuts the connections that v does not allow any more. Pods for which
// nothing has changed are passed over.
func (s *Server) recheck(v *workload.View, judged map[*pod]guarded) {
	changed := make(map[string]guarded)
	pods, were := s.pods.list(), len(judged)
	for _, p := range pods {
		self := p.current(v)
		if self == nil {
			continue
		}
		_, _ = p.hold(self) // an identity that is none is reported by those that need it
		now := guarded{self: self, set: v.PoliciesFor(self)}
		if !now.equal(judged[p]) {
			s.lacks.tell(p.uid, now.set.Missing, judged[p].set.Missing)
			changed[p.uid] = now
			judged[p] = now
		}
	}
	for p := range judged {
		if !slices.Contains(pods, p) {
			delete(judged, p)
		}
	}
	if len(changed) > 0 || len(judged) < were {
		s.lacks.count(judged)
	}
	if len(changed) == 0 {
		return
	}
	s.tracked.Recheck(track.Inbound, func(f track.Facts) error {
		g, ok := changed[f.Pod]
		if !ok {
			return nil
		}
		verdict := rbac.Evaluate(v, g.self, rbac.Connection{Src: f.Src, Dst: f.Dst, Peer: f.Peer})
		if verdict.Allowed {
			return nil
		}
		s.rbacLog.Info("connection closed because it's no longer allowed after a policy update", "conn", connText(f), "uid", f.Pod, "policy", verdict.Policy)
		return errPolicyChange
	})
}

// prefetch asks for the certificates of the workloads of this node before
// anybody needs them, and lets go of those that have left. Those of other clusters, whose
// nodes may have this one's name, are none of ours.
func (s *Server) prefetch(v *workload.View) {
	if s.cfg.NodeName == "" || s.cfg.Dedicated || s.cfg.DNSOnly {
		return
	}
	here, ours := make(map[string]bool), s.clusterIsHere(v)
	for _, w := range v.Here() {
		if ours && w.ClusterID != "" && w.ClusterID != s.cfg.ClusterID {
			continue
		}
		if w.Protocol != workload.HBONE && !w.NativeTunnel {
			continue
		}
		id := w.Identity()
		if id.IsZero() {
			continue
		}
		holder := "xds:" + w.UID + "=" + id.String()
		here[holder] = true
		if !s.fetched[holder] {
			s.certs.Prefetch(id, holder)
		}
	}
	for holder := range s.fetched {
		if !here[holder] {
			s.certs.Forget(holder)
		}
	}
	s.fetched = here
}

// connText is a connection in one word: who from where to where.
func connText(f track.Facts) string {
	id := ""
	if !f.Peer.IsZero() {
		id = "(" + f.Peer.String() + ")"
	}
	return f.Src.String() + id + "->" + f.Dst.String()
}

// logVerdict says how policies decided, and counts what those in dry run would have
// done.
func (s *Server) logVerdict(f track.Facts, v rbac.Verdict) {
	s.metrics.policies.wouldHave(v.DryRun)
	level := slog.LevelDebug
	if s.cfg.PolicyInfoLog {
		level = slog.LevelInfo
	}
	if !v.Allowed {
		// In one piece, as operators search for it.
		s.rbacLog.Info("RBAC rejected conn="+connText(f), "policy", v.Policy, "reason", v.Reason)
	}
	if !s.rbacLog.Enabled(context.Background(), level) {
		return
	}
	for _, d := range v.DryRun {
		s.rbacLog.Log(context.Background(), level, d.Message, "conn", connText(f), "policy", d.Policy)
	}
	s.rbacLog.Log(context.Background(), level, v.Message, "conn", connText(f), "policy", v.Policy)
}
