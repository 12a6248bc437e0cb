package proxy

import (
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/warren-mesh/warren/xds/workload"
)

// maxLackingNamed bounds how many policies of a pod one line of the log names.
const maxLackingNamed = 10

// lacks tells of policies that pods of this node are to have and that are not there. It is
// of use to whoever wonders why nobody reaches a pod, or who has to have an identity to.
type lacks struct {
	log   *slog.Logger
	often rate.Sometimes // a control plane may change its mind more often than a log can take
	gauge prometheus.Gauge
}

func newLacks(log *slog.Logger, gauge prometheus.Gauge) *lacks {
	return &lacks{log: log, often: rate.Sometimes{First: 20, Interval: time.Second}, gauge: gauge}
}

// tell names those of one pod, when they are others than before.
func (l *lacks) tell(pod string, now, before []string) {
	if len(now) == 0 || slices.Equal(now, before) {
		return
	}
	refused := "plaintext"
	if slices.ContainsFunc(now, func(name string) bool { return !workload.StrictOnly(name) }) {
		refused = "everything"
	}
	l.often.Do(func() {
		l.log.Warn("the control plane names policies for a pod and has not sent them; until it does, they refuse what they might", "uid", pod,
			"refused", refused, "count", len(now), "policies", strings.Join(now[:min(len(now), maxLackingNamed)], " "))
	})
}

// count is by name: one that many pods are to have is one.
func (l *lacks) count(judged map[*pod]guarded) {
	names := make(map[string]struct{})
	for _, g := range judged {
		for _, name := range g.set.Missing {
			names[name] = struct{}{}
		}
	}
	l.gauge.Set(float64(len(names)))
}
