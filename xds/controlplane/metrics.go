package controlplane

import (
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/codes"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/rotation"
	"github.com/warren-mesh/warren/xds/server"
)

// metrics are those of the control plane, under istiod's names where it has them. It
// is the CA's Observer.
type metrics struct {
	registry                       *prometheus.Registry
	requests, signed, unauthorized prometheus.Counter
	failed                         *prometheus.CounterVec
	took                           prometheus.Histogram
}

// VersionText is what `controlplane --version` says: the version, and what does the cryptography.
func VersionText(version string) string { return version + " " + mtls.CryptoProvider() }

func newMetrics(p *ControlPlane) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	out := &metrics{
		registry:     prometheus.NewRegistry(),
		requests:     counter("citadel_server_csr_count", "Certificate requests received."),
		signed:       counter("citadel_server_success_cert_issuance_count", "Certificates signed."),
		unauthorized: counter("citadel_server_authentication_failure_count", "Certificate requests refused for who asked, or for whom."),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "citadel_server_csr_sign_err_count", Help: "Certificate requests that failed for another reason, by gRPC code."}, []string{"error"}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "warren_ca_request_seconds", Help: "Time to answer a certificate request.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 7)}),
	}
	crypto := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "warren_crypto", Help: "What does the cryptography: Go's own, or Go's FIPS 140-3 module.",
		ConstLabels: prometheus.Labels{"provider": mtls.CryptoProvider()},
	})
	crypto.Set(1)
	out.registry.MustRegister(
		crypto, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		out.requests, out.signed, out.unauthorized, out.failed, out.took,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "citadel_server_root_cert_expiry_timestamp", Help: "When the CA's certificate expires, in Unix time."},
			func() float64 {
				if ca := p.keeper.Authority(); ca != nil {
					return float64(ca.NotAfter().Unix())
				}
				return 0
			}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "warren_ca_ends_soon", Help: "Whether the CA's certificate ends within 30 days, or a tenth of its life."},
			func() float64 { return number(p.keeper.Ending(time.Now()) != "") }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "warren_ca_secret_differs", Help: "Whether another CA is kept than this replica signs with."},
			func() float64 { return number(p.keeper.Differs() != "") }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "warren_ca_rotation", Help: "Whether a rotation or a replacement of the CA is under way."},
			func() float64 { return number(p.keeper.Phase() != rotation.Settled) }),
		&adsCollector{ads: p.ads}, &modelCollector{model: p.model})
	if feed, ok := p.feed.(kubeFeed); ok {
		out.registry.MustRegister(&kubeCollector{feed: feed, cluster: p.cluster})
	}
	return out
}

// Answered counts an answer of the CA.
func (m *metrics) Answered(code codes.Code, took time.Duration) {
	m.requests.Inc()
	m.took.Observe(took.Seconds())
	switch code {
	case codes.OK:
		m.signed.Inc()
	case codes.Unauthenticated, codes.PermissionDenied:
		m.unauthorized.Inc()
	default:
		m.failed.WithLabelValues(code.String()).Inc()
	}
}

func (m *metrics) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 20 * time.Second}))
	return mux
}

// adsCollector reads the ADS server's counters when it is asked.
type adsCollector struct{ ads *server.Server }

// Describe sends nothing: the metrics are those that Collect makes.
func (c *adsCollector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *adsCollector) Collect(to chan<- prometheus.Metric) {
	stats := c.ads.Stats()
	send := func(kind prometheus.ValueType, name, help string, v float64, labels ...string) {
		var names []string
		if len(labels) > 0 {
			names = []string{"type"}
		}
		to <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), kind, v, labels...)
	}
	send(prometheus.GaugeValue, "pilot_xds", "Streams of proxies that are open.", float64(stats.Streams))
	send(prometheus.CounterValue, "warren_xds_cut_off_total", "Streams ended because the proxy was too slow.", float64(stats.CutOff))
	send(prometheus.CounterValue, "warren_xds_refused_total", "Streams that were not let in.", float64(stats.Refused))
	for url, n := range stats.Sent {
		send(prometheus.CounterValue, "pilot_xds_pushes", "Responses sent, by type.", float64(n), shortType(url))
	}
	for url, n := range stats.Rejected {
		send(prometheus.CounterValue, "pilot_total_xds_rejects", "Responses that a proxy did not take, by type.", float64(n), shortType(url))
	}
}

func shortType(url string) string { return url[strings.LastIndexByte(url, '/')+1:] }

// modelCollector counts what is in the model.
type modelCollector struct{ model *model }

// Describe sends nothing: the metrics are those that Collect makes.
func (c *modelCollector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *modelCollector) Collect(to chan<- prometheus.Metric) {
	result, _, _ := c.model.current()
	desc := prometheus.NewDesc("warren_model_resources", "What is in the model, by kind; problems are objects, or parts of them, that are not.", []string{"kind"}, nil)
	for kind, n := range map[string]int{
		"workload": len(result.Workloads), "service": len(result.Services), "policy": len(result.Policies), "problem": len(result.Problems),
	} {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n), kind)
	}
}
