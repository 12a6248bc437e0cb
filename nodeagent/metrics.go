package nodeagent

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/warren-mesh/warren/nodeagent/enroll"
	"github.com/warren-mesh/warren/nodeagent/zds"
)

// metrics are those of the agent, under the names of Istio's where it has them.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	events   *prometheus.CounterVec
	took     *prometheus.HistogramVec
}

func newMetrics(proxies *zds.Server, pods func() []enroll.Report) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "istio_cni_plugin_requests_total", Help: "Requests of Istio's CNI plugin, by the answer's HTTP status."}, []string{"response_code"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nodeagent_reconcile_events_total", Help: "Changes of pods, by kind and whether they worked."}, []string{"type", "result"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "warren_agent_change_seconds", Help: "Time that a change of a pod took.", Buckets: prometheus.ExponentialBuckets(0.005, 2.5, 9)}, []string{"type"}),
	}
	m.registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.requests, m.events, m.took, podCollector(pods),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "ztunnel_connected", Help: "Proxies that are connected and have all pods."},
			func() float64 { return float64(proxies.Connected()) }))
	return m
}

func (m *metrics) observe(what string, took time.Duration, err error) {
	result := "ok"
	if err != nil {
		result = "failed"
	}
	m.events.WithLabelValues(what, result).Inc()
	m.took.WithLabelValues(what).Observe(took.Seconds())
}

func (m *metrics) plugin(code int) { m.requests.WithLabelValues(strconv.Itoa(code)).Inc() }

func (m *metrics) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 20 * time.Second}))
	return mux
}

// podCollector counts pods when it is asked.
type podCollector func() []enroll.Report

// Describe sends nothing: the metrics are those that Collect makes.
func (podCollector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (pods podCollector) Collect(to chan<- prometheus.Metric) {
	count := map[enroll.Phase]int{enroll.PhaseLeft: 0, enroll.PhaseEnrolled: 0}
	proofs := make(map[enroll.Proof]int)
	wanted := 0
	for _, r := range pods() {
		count[r.Phase]++
		proofs[r.Proof]++
		if r.Eligible && r.Phase != enroll.PhaseEnrolled {
			wanted++
		}
	}
	desc := prometheus.NewDesc("warren_agent_pods", "Pods of this node, by where they stand; absent ones are to be in the mesh and have no sandbox.", []string{"phase"}, nil)
	for phase, n := range count {
		name := string(phase)
		if phase == enroll.PhaseAbsent {
			name = "absent"
		}
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n), name)
	}
	desc = prometheus.NewDesc("warren_agent_mesh_membership",
		"Pods that are to be in the mesh, by what the audit found: proven (rules, listeners and an answer are there), unproven (not looked at yet), "+
			"silent (the proxy listens and does not answer), listeners (some are missing), rules (they differ), outside (the pod is not in the mesh).", []string{"state"}, nil)
	for _, proof := range enroll.Proofs() {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(proofs[proof]), string(proof))
	}
	to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(wanted), "outside")
}
