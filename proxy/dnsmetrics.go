package proxy

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warren-mesh/warren/proxy/dns"
)

// dnsMetrics are the DNS proxy's, by the names that ztunnel has.
type dnsMetrics struct {
	requests, upstream, failures *prometheus.CounterVec
	took                         *prometheus.HistogramVec
	results                      *prometheus.CounterVec

	askers askers
}

func newDNSMetrics(r *prometheus.Registry) *dnsMetrics {
	labels := []string{"request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision"}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &dnsMetrics{
		requests: vec("istio_dns_requests_total", "DNS queries of pods (unstable).", labels...),
		upstream: vec("istio_dns_upstream_requests_total", "DNS queries that resolvers were asked (unstable).", labels...),
		failures: vec("istio_dns_upstream_failures_total", "DNS queries that no resolver answered (unstable).", labels...),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "istio_dns_upstream_request_duration_seconds", Help: "How long resolvers took (unstable).",
			Buckets: []float64{0.0005, 0.001, 0.01, 0.1, 1, 5},
		}, labels),
		results: vec("warren_dns_results_total", "What became of DNS queries (unstable).", "result"),
	}
	r.MustRegister(m.requests, m.upstream, m.failures, m.took, m.results)
	return m
}

// drop takes all series of an asker away.
func (m *dnsMetrics) drop(a asker) {
	l := prometheus.Labels{"source_canonical_service": a.service, "source_canonical_revision": a.revision}
	for _, vec := range []*prometheus.CounterVec{m.requests, m.upstream, m.failures} {
		vec.DeletePartialMatch(l)
	}
	m.took.DeletePartialMatch(l)
}

// podQueries are a pod's.
type podQueries struct{ p *pod }

func (q podQueries) labels(t dns.Transport, qtype uint16) []string {
	s := q.p.s
	a := s.metrics.dns.askers.of(askerOf(q.p), s.askers, s.metrics.dns.drop)
	return []string{dns.TypeName(qtype), t.String(), a.service, a.revision}
}

// askers are those that the pods of the node are now.
func (s *Server) askers() map[asker]bool {
	now := make(map[asker]bool)
	for _, p := range s.pods.list() {
		now[askerOf(p)] = true
	}
	return now
}

func (q podQueries) Query(t dns.Transport, qtype uint16, o dns.Outcome) {
	m := q.p.s.metrics.dns
	m.requests.WithLabelValues(q.labels(t, qtype)...).Inc()
	m.results.WithLabelValues(o.String()).Inc()
}

func (q podQueries) Upstream(t dns.Transport, qtype uint16, took time.Duration, failed bool) {
	m, l := q.p.s.metrics.dns, q.labels(t, qtype)
	m.upstream.WithLabelValues(l...).Inc()
	m.took.WithLabelValues(l...).Observe(took.Seconds())
	if failed {
		m.failures.WithLabelValues(l...).Inc()
	}
}
