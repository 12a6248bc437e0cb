package route

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warren-mesh/warren/xds/workload"
)

func TestBaggage(t *testing.T) {
	w := &workload.Workload{
		ClusterID: "Kubernetes", Namespace: "app", Type: workload.CronJob, WorkloadName: "w",
		CanonicalName: "c", CanonicalRevision: "v1", Locality: workload.Locality{Region: "r", Zone: "z", Subzone: "s"},
	}
	const full = "k8s.cluster.name=Kubernetes,k8s.namespace.name=app,k8s.cronjob.name=w,service.name=c,service.version=v1,cloud.region=r,cloud.availability_zone=z"
	if got := BaggageOf(w).String(); got != full {
		t.Errorf("baggage %q", got)
	}
	if diff := cmp.Diff(BaggageOf(w), ParseBaggage([]string{full})); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
	for _, tt := range []struct {
		name string
		b    Baggage
		want string
	}{
		{"empty", Baggage{}, ""},
		{"one", Baggage{Region: "r"}, "cloud.region=r"},
		{"name without type", Baggage{WorkloadName: "w"}, ""},
		{"a comma would be two entries", Baggage{Service: "a,k8s.namespace.name=x", Region: "r"}, "cloud.region=r"},
	} {
		if got := tt.b.String(); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	long := strings.Repeat("x", maxValue+1)
	for _, tt := range []struct {
		name  string
		lines []string
		want  Baggage
	}{
		{"none", nil, Baggage{}},
		{"junk", []string{"", ",", "=", "=,=", "x", "a=b", ";"}, Baggage{}},
		{"several lines", []string{"service.name=a", "service.version=1"}, Baggage{Service: "a", Version: "1"}},
		{"the later holds", []string{"service.name=a,service.name=b"}, Baggage{Service: "b"}},
		{"empty is absent", []string{"service.name=a,service.name="}, Baggage{}},
		{"all types are names", []string{"k8s.job.name=j"}, Baggage{WorkloadType: "job", WorkloadName: "j"}},
		{"not trimmed", []string{" service.name=a"}, Baggage{}},
		{"the second piece alone", []string{"service.name=a=b"}, Baggage{Service: "a"}},
		{"too long", []string{"service.name=" + long + ",service.version=1"}, Baggage{Version: "1"}},
		{"control characters", []string{"service.name=a\x00b"}, Baggage{}},
	} {
		if diff := cmp.Diff(tt.want, ParseBaggage(tt.lines)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestForwarded(t *testing.T) {
	if got, want := Forwarded(ap("10.0.0.1:80"), ""), `for="10.0.0.1:80"`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := Forwarded(ap("[fd00::1]:80"), "web.app.svc"), `for="[fd00::1]:80";host=web.app.svc`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for line, want := range map[string]string{
		`for="10.0.0.1:80";host=web`:     "web",
		`host=web`:                       "web",
		`for=x; host="web" ;host=second`: "web",
		`host=`:                          "",
		`host=""`:                        "",
		`host="`:                         "",
		`Host=web`:                       "",
		`for=x`:                          "",
		`host=wéb`:                       "",
		`host=a b`:                       "",
		``:                               "",
	} {
		if got := ParseForwarded([]string{line}); got != want {
			t.Errorf("ParseForwarded(%q) = %q, want %q", line, got, want)
		}
	}
	if got := ParseForwarded([]string{"for=x", "host=a", "host=b"}); got != "a" {
		t.Errorf("of several lines: %q", got)
	}
}

func TestTraceparent(t *testing.T) {
	tp := Traceparent{TraceID: [16]byte{1, 2}, SpanID: [8]byte{3}}
	const want = "00-01020000000000000000000000000000-0300000000000000-00"
	if got := tp.String(); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, err := ParseTraceparent(want); err != nil || got != tp {
		t.Errorf("read back %+v, %v", got, err)
	}
	for _, s := range []string{
		"", "00-", "00-" + strings.Repeat("0", 52), want + "0", strings.Replace(want, "00-", "01-", 1),
		strings.ReplaceAll(want, "1", "A"), strings.ReplaceAll(want, "1", "x"),
		"00-" + strings.Repeat("0", 32) + "-0300000000000000-00", "00-" + strings.Repeat("1", 32) + "-0000000000000000-00",
	} {
		if got, err := ParseTraceparent(s); err == nil {
			t.Errorf("ParseTraceparent(%q) = %+v, want an error", s, got)
		}
	}
}

// FuzzBaggage: what is read can be written and read again.
func FuzzBaggage(f *testing.F) {
	f.Add("k8s.cluster.name=Kubernetes,k8s.deployment.name=w,service.name=c")
	f.Add("service.name=a=b,service.name")
	f.Add(",=,")
	f.Fuzz(func(t *testing.T, s string) {
		b := ParseBaggage([]string{s})
		if again := ParseBaggage([]string{b.String()}); again != b {
			t.Fatalf("%q gave %+v, then %+v", s, b, again)
		}
	})
}

// FuzzForwarded: a host that is read can be written and read again.
func FuzzForwarded(f *testing.F) {
	f.Add(`for="10.0.0.1:80";host=web`)
	f.Add(`host="web"`)
	f.Add(`host="`)
	f.Fuzz(func(t *testing.T, s string) {
		h := ParseForwarded([]string{s})
		if again := ParseForwarded([]string{Forwarded(clientAddr, h)}); again != h {
			t.Fatalf("%q gave %q, then %q", s, h, again)
		}
	})
}

// FuzzTraceparent: whatever is accepted is written as it was read.
func FuzzTraceparent(f *testing.F) {
	f.Add("00-01020000000000000000000000000000-0300000000000000-00")
	f.Add("00-" + strings.Repeat("0", 52))
	f.Fuzz(func(t *testing.T, s string) {
		if tp, err := ParseTraceparent(s); err == nil && tp.String() != s {
			t.Fatalf("%q became %q", s, tp)
		}
	})
}
