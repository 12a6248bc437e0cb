package proxy

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warren-mesh/warren/proxy/track"
)

func scrape(t *testing.T, m *metrics, header ...string) (string, http.Header) {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	m.handler().ServeHTTP(w, r)
	body := io.Reader(w.Body)
	if w.Header().Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(bytes.NewReader(w.Body.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		body = z
	}
	b, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), w.Header()
}

// lines are those that begin with prefix, sorted.
func linesWith(text, prefix string) (out []string) {
	for l := range strings.Lines(text) {
		if strings.HasPrefix(l, prefix) {
			out = append(out, strings.TrimSpace(l))
		}
	}
	slices.Sort(out)
	return out
}

func testMetrics() (*metrics, *track.Registry) {
	r := track.New(10, 10)
	return newMetrics(r, func() int { return 0 }, "1.30"), r
}

// What is called unknown and what is not known are written the same. Two series
// of one name would spoil the whole answer.
func TestUnknownIsUnknown(t *testing.T) {
	m, _ := testMetrics()
	for _, l := range []labels{
		{}, {src: party{workload: "unknown"}}, {dst: party{zone: "unknown"}, service: "unknown"}, {src: party{namespace: "unknown", region: "unknown"}},
	} {
		m.of(l).opened.Add(1)
	}
	m.rest[track.Inbound].opened.Add(1) // those beyond the bound
	text, _ := scrape(t, m)
	got := linesWith(text, "istio_tcp_connections_opened_total")
	if len(got) != 1 || !strings.HasSuffix(got[0], " 5") {
		t.Errorf("%q in %.300s", got, text)
	}
}

// Names and labels are a contract.
func TestMetricNames(t *testing.T) {
	m, _ := testMetrics()
	l := labels{
		direction: track.Outbound, mtls: true, service: "app.a.svc", serviceNamespace: "a", shortName: "app",
		src: party{"w", "cs", "cr", "ns", "spiffe://td/ns/a/sa/b", "app", "v", "cl", "", ""},
		dst: party{workload: "dw"},
	}
	s := m.of(l)
	s.opened.Add(2)
	s.closed[flagNone].Add(1)
	s.closed[flagDeny].Add(1)
	s.fromClient.Add(11)
	s.fromServer.Add(22)
	l.direction, l.dst.region = track.Inbound, "r"
	m.of(l).opened.Add(1)
	text, _ := scrape(t, m, "Accept", "application/openmetrics-text;version=1.0.0")
	const common = `connection_security_policy="mutual_tls",destination_app="unknown",destination_canonical_revision="unknown",` +
		`destination_canonical_service="unknown",destination_cluster="unknown",destination_principal="unknown",` +
		`destination_service="app.a.svc",destination_service_name="app",destination_service_namespace="a",destination_version="unknown",` +
		`destination_workload="dw",destination_workload_namespace="unknown",reporter="source",request_protocol="tcp",response_flags="FLAG",` +
		`source_app="app",source_canonical_revision="cr",source_canonical_service="cs",source_cluster="cl",` +
		`source_principal="spiffe://td/ns/a/sa/b",source_version="v",source_workload="w",source_workload_namespace="ns"`
	sample := func(name, flag, value string) string {
		return name + "{" + strings.Replace(common, "FLAG", flag, 1) + "} " + value
	}
	want := []string{
		sample("istio_tcp_connections_closed_total", "-", "1.0"), sample("istio_tcp_connections_closed_total", "DENY", "1.0"),
		sample("istio_tcp_connections_failed_total", "DENY", "1.0"), sample("istio_tcp_connections_opened_total", "-", "2.0"),
		sample("istio_tcp_received_bytes_total", "-", "11.0"), sample("istio_tcp_sent_bytes_total", "-", "22.0"),
	}
	var got []string
	for _, line := range linesWith(text, "istio_tcp_") {
		if strings.Contains(line, `reporter="source"`) && !strings.Contains(line, "sockets_open") {
			got = append(got, line)
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	located := linesWith(text, "istio_tcp_connections_opened_total")
	if !slices.ContainsFunc(located, func(l string) bool {
		return strings.Contains(l, `destination_region="r",`) && strings.Contains(l, `destination_zone="unknown"`) && strings.Contains(l, `source_region="unknown"`)
	}) {
		t.Errorf("places are missing in %q", located)
	}
	for _, name := range []string{
		`istio_build{component="ztunnel",tag="1.30"} 1`, "workload_manager_active_proxy_count 0", "workload_manager_pending_proxy_count 0",
		"workload_manager_proxies_started_total 0", "workload_manager_proxies_stopped_total 0", "process_open_fds ", "process_max_fds ",
		`istio_tcp_sockets_open{reporter="source"} 0`,
	} {
		if !strings.Contains(text, "\n"+name) {
			t.Errorf("no %s", name)
		}
	}
	if !strings.HasSuffix(text, "# EOF\n") {
		t.Error("not OpenMetrics")
	}
}

func TestMetricFormats(t *testing.T) {
	m, _ := testMetrics()
	for accept, want := range map[string]string{
		"application/openmetrics-text;version=1.0.0": "application/openmetrics-text",
		"": "text/plain",
	} {
		for _, encoding := range []string{"", "gzip"} {
			text, h := scrape(t, m, "Accept", accept, "Accept-Encoding", encoding)
			if !strings.HasPrefix(h.Get("Content-Type"), want) || h.Get("Content-Encoding") != encoding || !strings.Contains(text, "istio_build") {
				t.Errorf("%q, %q: %v", accept, encoding, h)
			}
		}
	}
}

// A hostile or a churning world cannot make the metrics grow for ever.
func TestSeriesAreBounded(t *testing.T) {
	m, _ := testMetrics()
	m.series = make(map[labels]*series, maxSeries)
	for i := range maxSeries + 10 {
		m.of(labels{service: itoa(i)}).opened.Add(1)
	}
	if n := len(m.series); n != maxSeries {
		t.Errorf("%d series", n)
	}
	if n := m.rest[track.Inbound].opened.Load(); n != 10 {
		t.Errorf("%d connections counted together, want 10", n)
	}
}

const toldShare = maxTold / 10

// toldLabels are what a peer calls itself to a pod.
func toldLabels(pod string, i int) labels {
	return labels{direction: track.Inbound, told: pod, src: party{workload: itoa(i), principal: "spiffe://x/ns/a/sa/b"}, dst: party{workload: pod}}
}

// What peers call themselves makes so many series and no more, leaves room for what the
// peers of other pods say and for those that are known; the identity counts on.
func TestToldSeriesAreBounded(t *testing.T) {
	m, _ := testMetrics()
	for i := range 10 * toldShare {
		m.of(toldLabels("a", i)).opened.Add(1)
	}
	m.of(toldLabels("a", 1)).opened.Add(1)
	if n := len(m.series); n != toldShare+1 {
		t.Errorf("%d series, want %d and one for the rest", n, toldShare)
	}
	rest := labels{direction: track.Inbound, src: party{principal: "spiffe://x/ns/a/sa/b"}, dst: party{workload: "a"}}
	if s := m.series[rest]; s == nil || s.opened.Load() != 9*toldShare {
		t.Errorf("the rest: %+v", s)
	}
	if s := m.of(toldLabels("b", 1)); s.labels.src.workload != "1" {
		t.Errorf("another pod's peer: %+v", s.labels)
	}
	known := toldLabels("a", -1)
	known.told = ""
	if m.of(known); m.series[known] == nil {
		t.Error("one that is known has no series")
	}
	for i := range 20 * maxTold {
		m.of(toldLabels(itoa(i/100), i))
	}
	if n := m.told.all; n != maxTold {
		t.Errorf("%d series in all that peers have a say in, want %d", n, maxTold)
	}
}

// Who runs the node says how many series peers may make, none too.
func TestToldSeriesAsConfigured(t *testing.T) {
	for most, want := range map[int]int{0: 0, 1: 1, 25: 3, maxToldMost: maxToldMost / 10} {
		m, _ := testMetrics()
		m.told.most = most
		for i := range want + 5 {
			m.of(toldLabels("a", i)).opened.Add(1)
		}
		if m.told.all != want || len(m.series) != want+1 {
			t.Errorf("of %d: %d told, %d in all, want %d and one for the rest", most, m.told.all, len(m.series), want)
		}
	}
}

// A series that peers have a say in ends an hour after its last connection, and makes room.
func TestToldSeriesEnd(t *testing.T) {
	m, _ := testMetrics()
	synctest.Test(t, func(t *testing.T) {
		for i := range toldShare {
			s := m.of(toldLabels("a", i))
			s.opened.Add(1)
			if i > 0 {
				s.end(flagNone)
			}
		}
		late := func() string { return m.of(toldLabels("a", toldShare)).labels.src.workload }
		time.Sleep(toldTime - time.Second)
		again := m.of(toldLabels("a", 1))
		again.opened.Add(1)
		again.end(flagNone)
		if got := late(); got != "" {
			t.Fatalf("%q has a series before there was room", got)
		}
		time.Sleep(sweepTime)
		if got := late(); got == "" {
			t.Error("no room after an hour")
		}
		left := 0
		for _, s := range m.all() {
			if w := s.labels.src.workload; w == "0" || w == "1" {
				left++
			}
		}
		if left != 2 || m.told.all != 3 || len(m.series) != 4 { // with the rest
			t.Errorf("%d of the two that are used, %d told, %d in all", left, m.told.all, len(m.series))
		}
		time.Sleep(2 * toldTime)
		if m.all(); len(m.series) != 2 || m.told.all != 1 || len(m.told.of) != 1 {
			t.Errorf("%d series, want the rest and one with a connection", len(m.series))
		}
	})
}
