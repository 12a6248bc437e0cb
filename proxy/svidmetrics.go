package proxy

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/status"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/proxy/track"
)

// svidMetrics count what the source of certificates does.
type svidMetrics struct {
	requests *prometheus.CounterVec
	took     *prometheus.HistogramVec
	notes    *prometheus.CounterVec
	refused  *prometheus.CounterVec
	revoked  *prometheus.CounterVec
}

// Why peers are refused, as metrics have it.
const (
	peerRevoked   = "revoked"
	peerUnknown   = "unknown_authority"
	peerTime      = "expired_or_early"
	peerIdentity  = "identity" // it is somebody else, or of a trust domain that nobody vouches for
	peerMalformed = "malformed"
)

// refuse counts a peer that did not prove who it is to this end of a connection, if that is what err says.
func (m *svidMetrics) refuse(at track.Direction, err error) {
	var verify *mtls.VerifyError
	if !errors.As(err, &verify) {
		return
	}
	var authority x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	why := peerMalformed
	switch {
	case errors.Is(err, mtls.ErrRevoked):
		why = peerRevoked
		m.revoked.WithLabelValues(reporter(at)).Inc()
	case errors.As(err, &authority):
		why = peerUnknown
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		why = peerTime
	case errors.Is(err, mtls.ErrOther):
		why = peerIdentity
	}
	m.refused.WithLabelValues(why).Inc()
}

// cut counts a tunnel, or a connection without one, that ended because this end learned that the peer is revoked, if that
// is what err says.
func (m *svidMetrics) cut(at track.Direction, err error) {
	if errors.Is(err, errRevoked) {
		m.revoked.WithLabelValues(reporter(at)).Inc()
	}
}

func newSVIDMetrics(r *prometheus.Registry) *svidMetrics {
	m := &svidMetrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "warren_svid_requests_total", Help: "Certificate requests, and streams opened, that have ended (unstable).",
		}, []string{"source", "priority", "code"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "warren_svid_request_seconds", Help: "Time to the certificate, or to a stream's first message (unstable).",
			Buckets: []float64{.005, .02, .1, .5, 1, 2, 5, 12, 30},
		}, []string{"priority"}),
		refused: counters("warren_peers_refused_total", "Peers that did not prove who they are, in either direction (unstable).", "reason"),
		revoked: counters("istio_crl_policy_rejections_total", "Peers that were refused, or cut off, because their certificate, or one that issued it, is revoked (unstable).", "reporter"),
		notes:   counters("warren_svid_notes_total", "What was seen of the source of certificates, such as expired ones (unstable).", "what"),
	}
	for _, n := range []svid.Note{svid.Mismatch, svid.Redacted, svid.ServedExpired, svid.ServedEarly, svid.ProcessEnded, svid.Unconfirmed, svid.Disagreed, svid.BundleRefused} {
		m.notes.WithLabelValues(string(n)) // 0 is a statement, too
	}
	for _, why := range []string{peerRevoked, peerUnknown, peerTime, peerIdentity, peerMalformed} {
		m.refused.WithLabelValues(why)
	}
	for _, at := range []track.Direction{track.Inbound, track.Outbound} {
		m.revoked.WithLabelValues(reporter(at))
	}
	r.MustRegister(m.requests, m.took, m.notes, m.refused, m.revoked)
	return m
}

// codeOf is gRPC's word for what became of a request, or ours.
func codeOf(err error) string {
	switch {
	case err == nil:
		return "OK"
	case errors.Is(err, svid.ErrNotEntitled):
		return "NotEntitled"
	case errors.Is(err, svid.ErrNotNeeded):
		return "NotNeeded"
	case errors.Is(err, context.DeadlineExceeded):
		return "DeadlineExceeded"
	case errors.Is(err, svid.ErrProcessEnded):
		return "ProcessEnded"
	}
	return status.Code(err).String() // Unknown for what is no answer
}

// caObserver watches certificate requests: they are all that is seen of the CA.
type caObserver struct{ s *Server }

func (o *caObserver) Started(spiffeid.ID, svid.Priority) {}

func (o *caObserver) Finished(_ spiffeid.ID, p svid.Priority, took time.Duration, err error) {
	m := o.s.metrics
	m.svids.requests.WithLabelValues(o.s.originKind(), p.String(), codeOf(err)).Inc()
	m.svids.took.WithLabelValues(p.String()).Observe(took.Seconds())
	switch {
	case errors.Is(err, svid.ErrNotNeeded): // taken back by ourselves
		return
	case errors.Is(err, svid.ErrNotEntitled), errors.Is(err, svid.ErrProcessEnded):
		m.certFailures.Inc() // of one pod: the source is there, and answers others
		return
	case err != nil:
		m.certFailures.Inc()
		o.s.lines.ca.set("failing", false, err)
		return
	}
	m.certs.Inc()
	o.s.lines.ca.set("connected", true, nil)
}

func (o *caObserver) Noted(_ spiffeid.ID, what svid.Note) {
	o.s.metrics.svids.notes.WithLabelValues(string(what)).Inc()
}

// svidCollector makes metrics of what is held now.
type svidCollector struct{ s *Server }

func svidDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("warren_svid_"+name, help+" (unstable).", labels, nil)
}

var (
	descIdentities  = svidDesc("identities", "Identities held, by state", "state")
	descBy          = svidDesc("entitlements", "Identities held, by how the right to them was had", "by")
	descGenerations = svidDesc("generations", "Different certificates in use")
	descExpiry      = svidDesc("expires_seconds", "Time until the first certificate in use ends")
	descExpiries    = svidDesc("expiry_seconds", "Time until certificates in use end", "source")
	descSilent      = svidDesc("agent_stuck", "1 while the source of certificates takes calls and answers none")
	descOverdue     = svidDesc("overdue", "Certificates in use that are not renewed as they should be")
	descAhead       = svidDesc("clock_behind_seconds", "By how much this node's clock is behind the source's, where certificates wait for their time")
	descFlights     = svidDesc("in_flight", "Requests under way")
	descQueued      = svidDesc("queued", "Requests that wait for a place or a token")
	descNotice      = svidDesc("on_notice", "Identities that are taken back unless they are confirmed soon")
	descRoots       = svidDesc("roots", "Roots that are trusted", "trust_domain")
	descRootExpiry  = svidDesc("root_expires_seconds", "Time until the first of the trusted roots ends", "trust_domain")
)

// Describe implements prometheus.Collector.
func (c svidCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descIdentities, descBy, descGenerations, descExpiry, descExpiries, descSilent, descOverdue, descAhead, descFlights, descQueued, descNotice, descRoots, descRootExpiry,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c svidCollector) Collect(ch chan<- prometheus.Metric) {
	now := time.Now()
	states := map[string]int{string(svid.Initializing): 0, string(svid.Available): 0, string(svid.Unavailable): 0}
	by, serials, roots := map[svid.By]int{}, map[string]bool{}, rootsOf{}
	var first time.Time
	ends := newExpiries()
	flights, queued, notice := 0, 0, 0
	for _, st := range c.s.certs.Dump() {
		states[string(st.Condition)]++
		switch {
		case st.InFlight:
			flights++
		case !st.NextRefresh.After(now):
			queued++
		}
		if !st.Until.IsZero() {
			notice++
		}
		if st.Identity == nil {
			continue
		}
		by[st.By]++
		serials[st.Identity.Chain()[0].SerialNumber.String()] = true
		ends.add(st.Identity.NotAfter().Sub(now))
		if end := st.Identity.NotAfter(); first.IsZero() || end.Before(first) {
			first = end
		}
		roots.add(st.ID.TrustDomain(), st.Identity.Roots())
		for td, certs := range st.Identity.Federated() {
			roots.add(td, certs)
		}
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for s, n := range states {
		gauge(descIdentities, float64(n), strings.ToLower(s))
	}
	for b, n := range by {
		gauge(descBy, float64(n), string(b))
	}
	gauge(descGenerations, float64(len(serials)))
	gauge(descFlights, float64(flights))
	gauge(descQueued, float64(queued))
	gauge(descNotice, float64(notice))
	if !first.IsZero() {
		gauge(descExpiry, first.Sub(now).Seconds())
	}
	ch <- prometheus.MustNewConstHistogram(descExpiries, ends.count, ends.sum, ends.buckets, c.s.originKind())
	h := c.s.certs.Health()
	stuck := 0.0
	if !h.Silent.IsZero() {
		stuck = 1
	}
	gauge(descSilent, stuck)
	gauge(descOverdue, float64(h.Overdue))
	gauge(descAhead, h.Ahead.Seconds())
	roots.collect(gauge, now)
}

// expiries is a histogram of what is, not of what was.
type expiries struct {
	count   uint64
	sum     float64
	buckets map[float64]uint64
}

func newExpiries() *expiries {
	e := &expiries{buckets: map[float64]uint64{}}
	for _, d := range []time.Duration{10 * time.Second, time.Minute, 10 * time.Minute, time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour, 7 * 24 * time.Hour} {
		e.buckets[d.Seconds()] = 0
	}
	return e
}

func (e *expiries) add(left time.Duration) {
	e.count++
	e.sum += left.Seconds()
	for most := range e.buckets {
		if left.Seconds() <= most {
			e.buckets[most]++
		}
	}
}

// rootsOf are those that identities trust, by trust domain: their own and those that they federate with.
type rootsOf map[spiffeid.TrustDomain]map[*x509.Certificate]bool

func (r rootsOf) add(td spiffeid.TrustDomain, certs []*x509.Certificate) {
	if r[td] == nil {
		r[td] = map[*x509.Certificate]bool{}
	}
	for _, c := range certs {
		r[td][c] = true
	}
}

func (r rootsOf) collect(gauge func(*prometheus.Desc, float64, ...string), now time.Time) {
	for td, set := range r {
		different := map[string]bool{}
		var first time.Time
		for r := range set {
			different[string(r.Raw)] = true
			if first.IsZero() || r.NotAfter.Before(first) {
				first = r.NotAfter
			}
		}
		gauge(descRoots, float64(len(different)), td.Name())
		gauge(descRootExpiry, first.Sub(now).Seconds(), td.Name())
	}
}
