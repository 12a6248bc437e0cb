package proxy

import (
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Each rollout has a revision of its own, for years: of those that are gone only so many have
// series, and those that are there always have theirs.
func TestDNSAskers(t *testing.T) {
	r := prometheus.NewRegistry()
	m := newDNSMetrics(r)
	here := asker{"web", "here"}
	now := map[asker]bool{here: true}
	ask := func(a asker) asker {
		a = m.askers.of(a, func() map[asker]bool { return now }, m.drop)
		l := []string{"a", "udp", a.service, a.revision}
		m.requests.WithLabelValues(l...).Inc()
		m.upstream.WithLabelValues(l...).Inc()
		m.failures.WithLabelValues(l...).Inc()
		m.took.WithLabelValues(l...).Observe(1)
		return a
	}
	series := func() map[string]int {
		families, err := r.Gather()
		if err != nil {
			t.Fatal(err)
		}
		n := map[string]int{}
		for _, f := range families {
			n[f.GetName()] = len(f.GetMetric())
		}
		return n
	}
	ask(here)
	for i := range 3 * maxAskers {
		a := asker{"web", fmt.Sprint(i)}
		if got := ask(a); got != a {
			t.Fatalf("%v is counted as %v, though others are gone", a, got)
		}
	}
	for name, n := range series() {
		if n != maxAskers {
			t.Errorf("%s: %d series", name, n)
		}
	}
	if _, ok := m.askers.seen[here]; !ok {
		t.Error("one that is there lost its series")
	}

	for a := range m.askers.seen {
		now[a] = true
	}
	if got := ask(asker{"web", "another"}); got != someAsker {
		t.Errorf("where all are there, one more is counted as %v", got)
	}

	now = map[asker]bool{here: true}
	for a := range m.askers.seen {
		m.askers.seen[a] = time.Now().Add(-2 * toldTime)
	}
	m.askers.swept = time.Now().Add(-2 * sweepTime)
	ask(here)
	for name, n := range series() {
		if n != 2 { // and nobody in particular
			t.Errorf("%s: %d series, when all but one have been gone for long", name, n)
		}
	}
}
