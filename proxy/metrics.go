package proxy

import (
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/proxy/track"
	"github.com/warren-mesh/warren/xds/client"
)

// maxSeries bounds how many different sets of labels are kept; connections
// beyond are counted together, under labels that are all unknown.
const maxSeries = 100_000

// series counts the connections of one set of labels.
type series struct {
	labels                 labels
	opened                 atomic.Int64
	closed                 [flagCount]atomic.Int64
	fromClient, fromServer atomic.Int64  // bytes; see metrics.collectBytes
	told                   *atomic.Int64 // when one began or ended last, in Unix nanoseconds; nil where peers have no say
}

// metrics are the proxy's own. Bytes of live connections are read when somebody
// asks, so that carrying them costs nothing.
type metrics struct {
	registry *prometheus.Registry
	tracked  *track.Registry
	sockets  [2]atomic.Int64 // accepted and open, by direction

	started, stopped prometheus.Counter
	active, pending  prometheus.Gauge

	certs, certFailures prometheus.Counter
	svids               *svidMetrics
	tokenExpires        prometheus.Gauge
	sameNode            prometheus.Counter
	retries             *prometheus.CounterVec // by reason
	lookups             *lookups
	dns                 *dnsMetrics

	xdsEnds, xdsMessages, xdsBytes *prometheus.CounterVec

	policies policyMetrics

	mu     sync.Mutex
	series map[labels]*series
	told   toldSeries // of series
	rest   map[track.Direction]*series
}

func newMetrics(tracked *track.Registry, lost func() int, version string) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(), tracked: tracked, series: make(map[labels]*series), told: toldSeries{most: maxTold},
		rest:    make(map[track.Direction]*series),
		started: counter("workload_manager_proxies_started_total", "Pods that were served (unstable)."),
		stopped: counter("workload_manager_proxies_stopped_total", "Pods that are not served any more (unstable)."),
		active:  gauge("workload_manager_active_proxy_count", "Pods served now (unstable)."),
		pending: gauge("workload_manager_pending_proxy_count", "Pods whose listeners could not be opened yet (unstable)."),

		certs:        counter("warren_svid_issued_total", "Certificates that the CA issued (unstable)."),
		certFailures: counter("warren_svid_failures_total", "Certificate requests that failed (unstable)."),

		sameNode: counter("warren_same_node_connections_total", "Connections whose bytes went from socket to socket on this node (unstable)."),
		retries:  counters("warren_connect_retries_total", "Times that a connection left an endpoint of a service, which had not accepted it, for another one (unstable).", "reason"),

		lookups: newLookups(),

		xdsEnds:     counters("istio_xds_connection_terminations_total", "Ends of connections to the control plane (unstable).", "reason"),
		xdsMessages: counters("istio_xds_message_total", "Responses of the control plane (unstable).", "url"),
		xdsBytes:    counters("istio_xds_message_bytes_total", "Bytes of resources in them (unstable).", "url"),
		policies:    newPolicyMetrics(),
	}
	for _, d := range []track.Direction{track.Inbound, track.Outbound} {
		m.rest[d] = &series{labels: labels{direction: d}}
	}
	for _, reason := range leftReasons {
		m.retries.WithLabelValues(reason) // 0 is a statement, too
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "istio_build", Help: "The component's version.",
		ConstLabels: prometheus.Labels{"component": "ztunnel", "tag": version},
	})
	build.Set(1)
	crypto := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "warren_crypto", Help: "What does the cryptography: Go's own, or Go's FIPS 140-3 module (unstable).",
		ConstLabels: prometheus.Labels{"provider": mtls.CryptoProvider()},
	})
	crypto.Set(1)
	dropped := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "warren_log_lines_dropped_total", Help: "Log lines that were dropped because the log was not read fast enough (unstable).",
	}, func() float64 { return float64(lost()) })
	m.registry.MustRegister(build, crypto, dropped, m.started, m.stopped, m.active, m.pending, m.certs, m.certFailures, m.sameNode, m.lookups.vec, m.retries,
		m.xdsEnds, m.xdsMessages, m.xdsBytes, m.policies.refused, m.policies.closed, m.policies.missing, m.policies.dryRun, connectionCollector{m},
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewGoCollector())
	m.dns = newDNSMetrics(m.registry)
	m.svids = newSVIDMetrics(m.registry)
	m.tokenExpires = gauge("warren_token_expires_timestamp_seconds", "When the token for the control plane expires; 0 where it does not say (unstable).")
	m.registry.MustRegister(m.tokenExpires)
	return m
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

func counters(name, help, label string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
}

func gauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
}

// of returns the series of these labels.
func (m *metrics) of(l labels) *series {
	l.forget(unknown) // or two series would be written the same, and spoil the whole answer
	told := l.told
	l.told = ""
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.series[l]
	if s == nil && told != "" && !m.mayTell(told) {
		told = ""
		l.untell()
		s = m.series[l]
	}
	if rest := m.rest[l.direction]; l == rest.labels {
		return rest
	}
	if s == nil {
		if len(m.series) >= maxSeries {
			return m.rest[l.direction]
		}
		s = &series{labels: l}
		m.series[l] = s
		if told != "" {
			m.told.add(told, s)
		}
	}
	s.used()
	return s
}

// mayTell says whether peers of a pod may have a say in one more series.
func (m *metrics) mayTell(pod string) bool {
	if m.told.full(pod) {
		m.sweep()
	}
	return !m.told.full(pod)
}

func (m *metrics) sweep() { m.told.sweep(func(s *series) { delete(m.series, s.labels) }) }

// all returns every series that has counted anything.
func (m *metrics) all() []*series {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sweep()
	out := make([]*series, 0, len(m.series)+len(m.rest))
	for _, s := range m.series {
		out = append(out, s)
	}
	for _, s := range m.rest {
		if s.opened.Load() > 0 {
			out = append(out, s)
		}
	}
	return out
}

// handler answers in OpenMetrics' text or the older one, compressed when asked. How many at
// a time is the port's to say.
func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
}

// family is one metric of connections, with and without the labels of places.
type family struct {
	plain, located *prometheus.Desc
}

func newFamily(name, help string) family {
	full := append(append([]string(nil), labelNames...), localityNames...)
	return family{
		plain:   prometheus.NewDesc(name, help, labelNames, nil),
		located: prometheus.NewDesc(name, help, full, nil),
	}
}

func (f family) metric(s *series, flag flag, v int64) prometheus.Metric {
	desc := f.plain
	if s.labels.located() {
		desc = f.located
	}
	return prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(v), s.labels.values(flag)...)
}

// connectionCollector makes metrics of the series. It describes nothing: the
// labels of one name differ.
type connectionCollector struct{ m *metrics }

func (connectionCollector) Describe(chan<- *prometheus.Desc) {}

func (c connectionCollector) Collect(ch chan<- prometheus.Metric) {
	var (
		opened   = newFamily("istio_tcp_connections_opened_total", "Connections opened.")
		closed   = newFamily("istio_tcp_connections_closed_total", "Connections closed.")
		failed   = newFamily("istio_tcp_connections_failed_total", "Connections that ended with an error (unstable).")
		received = newFamily("istio_tcp_received_bytes_total", "Bytes from client to server.")
		sent     = newFamily("istio_tcp_sent_bytes_total", "Bytes from server to client.")
		open     = prometheus.NewDesc("istio_tcp_sockets_open", "Accepted sockets that are open (unstable).", []string{"reporter"}, nil)
	)
	c.m.collectBytes()
	for _, s := range c.m.all() {
		ch <- opened.metric(s, flagNone, s.opened.Load())
		ch <- received.metric(s, flagNone, s.fromClient.Load())
		ch <- sent.metric(s, flagNone, s.fromServer.Load())
		for f := range flagCount {
			n := s.closed[f].Load()
			if n == 0 {
				continue
			}
			ch <- closed.metric(s, f, n)
			if f != flagNone {
				ch <- failed.metric(s, f, n)
			}
		}
	}
	for _, d := range []track.Direction{track.Inbound, track.Outbound} {
		ch <- prometheus.MustNewConstMetric(open, prometheus.GaugeValue, float64(c.m.sockets[d].Load()), reporter(d))
	}
}

// collectBytes adds what live connections have carried since the last time.
func (m *metrics) collectBytes() {
	m.tracked.Each(func(g *track.Guard) {
		if c, ok := g.Owner.(*connection); ok {
			c.settle()
		}
	})
}

// xdsObserver counts for xds/client.
type xdsObserver struct{ m *metrics }

func (o xdsObserver) Received(typeURL string, bytes int) {
	o.m.xdsMessages.WithLabelValues(typeURL).Inc()
	o.m.xdsBytes.WithLabelValues(typeURL).Add(float64(bytes))
}

func (o xdsObserver) Applied(typeURL string, refused, unheld int) {
	o.m.policies.refused.WithLabelValues(typeURL).Add(float64(refused))
	if typeURL == client.AuthorizationType {
		o.m.policies.closed.Set(float64(unheld))
	}
}

func (o xdsObserver) Ended(r client.Reason) { o.m.xdsEnds.WithLabelValues(string(r)).Inc() }
