package proxy

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warren-mesh/warren/proxy/rbac"
)

// maxDryRunNames bounds how many policies in dry run are counted by name. Those
// beyond are counted together, without one.
const maxDryRunNames = 1000

// policyMetrics say what policies would do, and which could not be taken.
type policyMetrics struct {
	refused *prometheus.CounterVec
	closed  prometheus.Gauge
	missing prometheus.Gauge
	dryRun  *prometheus.CounterVec
	names   *nameSet
}

func newPolicyMetrics() policyMetrics {
	return policyMetrics{
		refused: counters("warren_xds_refused_total", "Resources of the control plane that were refused: their earlier versions stay (unstable).", "url"),
		closed:  gauge("warren_policies_refused", "Refused policies of which there is no earlier version: what they guard is closed (unstable)."),
		missing: gauge("warren_policies_missing", "Policies that pods of this node are to have and the control plane has not sent: those pods are closed, or, where the policy can be about mTLS only, closed to plaintext (unstable)."),
		dryRun: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "warren_policy_dry_run_total", Help: "Connections that a policy in dry run would have decided about, by what it would have said (unstable).",
		}, []string{"policy", "verdict"}),
		names: &nameSet{max: maxDryRunNames, m: make(map[string]struct{})},
	}
}

// dryRunVerdicts are the values of the label verdict.
var dryRunVerdicts = map[string]string{
	rbac.MessageDryDeny: "deny", rbac.MessageDryAllow: "allow", rbac.MessageDryNoneAllow: "none_allowed",
}

// wouldHave counts what policies in dry run say of one connection.
func (m *policyMetrics) wouldHave(list []rbac.DryRun) {
	for _, d := range list {
		m.dryRun.WithLabelValues(m.names.bounded(d.Policy), dryRunVerdicts[d.Message]).Inc()
	}
}

// nameSet is a set of names that does not grow without end.
type nameSet struct {
	max int
	mu  sync.Mutex
	m   map[string]struct{}
}

// bounded is name, or nothing if there are too many already.
func (s *nameSet) bounded(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.m[name]; !ok {
		if len(s.m) >= s.max {
			return ""
		}
		s.m[name] = struct{}{}
	}
	return name
}
