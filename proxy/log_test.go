package proxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warren-mesh/warren/proxy/track"
)

func testLogs(t *testing.T, cfg LogConfig) (*logs, *bytes.Buffer) {
	t.Helper()
	out := new(bytes.Buffer)
	l, err := newLogs(cfg, out)
	if err != nil {
		t.Fatal(err)
	}
	return l, out
}

func testLine() *accessLine {
	return &accessLine{
		l: &labels{
			direction: track.Outbound, mtls: true, service: "app.a.svc.cluster.local",
			src: party{namespace: "a", principal: "spiffe://cluster.local/ns/a/sa/b", cluster: "Kubernetes"},
			dst: party{namespace: "a", principal: "spiffe://cluster.local/ns/a/sa/c", cluster: "Kubernetes"},
		},
		srcPod: "p-1", dstPod: "p-2", src: netip.MustParseAddrPort("10.0.0.1:4242"), dst: netip.MustParseAddrPort("10.0.0.7:15008"),
		hbone: "10.0.0.7:8080", sent: 67, received: 490, duration: 13 * time.Millisecond, ended: true,
	}
}

var testTime = time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC)

// The formats, to the byte.
func TestAccessLine(t *testing.T) {
	plain, failed := testLine(), testLine()
	failed.err = &policyError{"explicitly denied by: a/p"}
	failed.l.mtls, failed.dstPod, failed.hbone = false, "", ""
	failed.l.service = ""
	evil := testLine()
	evil.hbone, evil.err = "x\" error=\"\n", errors.New("a\tb\\\"c\"\x00\x1bd é")
	tests := []struct {
		name       string
		line       *accessLine
		text, json string
	}{
		{"complete", plain,
			`src.addr=10.0.0.1:4242 src.workload="p-1" src.namespace="a" src.identity="spiffe://cluster.local/ns/a/sa/b" src.cluster="Kubernetes" dst.addr=10.0.0.7:15008 dst.hbone_addr=10.0.0.7:8080 dst.service="app.a.svc.cluster.local" dst.workload="p-2" dst.namespace="a" dst.identity="spiffe://cluster.local/ns/a/sa/c" dst.cluster="Kubernetes" direction="outbound" bytes_sent=67 bytes_recv=490 duration="13ms"`,
			`"src.addr":"10.0.0.1:4242","src.workload":"p-1","src.namespace":"a","src.identity":"spiffe://cluster.local/ns/a/sa/b","src.cluster":"Kubernetes","dst.addr":"10.0.0.7:15008","dst.hbone_addr":"10.0.0.7:8080","dst.service":"app.a.svc.cluster.local","dst.workload":"p-2","dst.namespace":"a","dst.identity":"spiffe://cluster.local/ns/a/sa/c","dst.cluster":"Kubernetes","direction":"outbound","bytes_sent":67,"bytes_recv":490,"duration":"13ms"}`},
		{"refused", failed,
			`src.addr=10.0.0.1:4242 src.workload="p-1" src.namespace="a" src.cluster="Kubernetes" dst.addr=10.0.0.7:15008 dst.namespace="a" dst.cluster="Kubernetes" direction="outbound" bytes_sent=67 bytes_recv=490 duration="13ms" error="connection closed due to policy rejection: explicitly denied by: a/p"`,
			`"src.addr":"10.0.0.1:4242","src.workload":"p-1","src.namespace":"a","src.cluster":"Kubernetes","dst.addr":"10.0.0.7:15008","dst.namespace":"a","dst.cluster":"Kubernetes","direction":"outbound","bytes_sent":67,"bytes_recv":490,"duration":"13ms","error":"connection closed due to policy rejection: explicitly denied by: a/p"}`},
		{"hostile", evil,
			`src.addr=10.0.0.1:4242 src.workload="p-1" src.namespace="a" src.identity="spiffe://cluster.local/ns/a/sa/b" src.cluster="Kubernetes" dst.addr=10.0.0.7:15008 dst.hbone_addr="x\" error=\"\n" dst.service="app.a.svc.cluster.local" dst.workload="p-2" dst.namespace="a" dst.identity="spiffe://cluster.local/ns/a/sa/c" dst.cluster="Kubernetes" direction="outbound" bytes_sent=67 bytes_recv=490 duration="13ms" error="a\tb\\\"c\"\0\u{1b}d é"`,
			`"src.addr":"10.0.0.1:4242","src.workload":"p-1","src.namespace":"a","src.identity":"spiffe://cluster.local/ns/a/sa/b","src.cluster":"Kubernetes","dst.addr":"10.0.0.7:15008","dst.hbone_addr":"x\" error=\"\n","dst.service":"app.a.svc.cluster.local","dst.workload":"p-2","dst.namespace":"a","dst.identity":"spiffe://cluster.local/ns/a/sa/c","dst.cluster":"Kubernetes","direction":"outbound","bytes_sent":67,"bytes_recv":490,"duration":"13ms","error":"a\tb\\\"c\"\u0000\u001bd é"}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			attrs := tt.line.attrs(nil)
			text := "2026-01-02T03:04:05.678901Z\tinfo\taccess\tconnection complete\t" + tt.text + "\n"
			if d := cmp.Diff(text, string(appendText(nil, testTime, slog.LevelInfo, accessScope, "connection complete", nil, attrs))); d != "" {
				t.Errorf("text (-want +got):\n%s", d)
			}
			line := `{"level":"info","time":"2026-01-02T03:04:05.678901Z","scope":"access","message":"connection complete",` + tt.json + "\n"
			got := appendJSON(nil, testTime, slog.LevelInfo, accessScope, "connection complete", nil, attrs)
			if d := cmp.Diff(line, string(got)); d != "" {
				t.Errorf("JSON (-want +got):\n%s", d)
			}
			if !json.Valid(got) {
				t.Error("not JSON")
			}
		})
	}
}

// Whatever is logged, it is one line, and what it says is between quotes.
func FuzzLogLine(f *testing.F) {
	f.Add("key", "value", "message")
	f.Add("a\" b=\"c", "\n\r\t\x00\u2028\u0085", "multi\nline")
	f.Add("\xff\xfe", "é\U0001f600", "")
	f.Fuzz(func(t *testing.T, a, b, msg string) {
		attrs := []slog.Attr{slog.String("a", a), slog.String("b", b)}
		text := string(appendText(nil, testTime, slog.LevelInfo, "x", msg, nil, attrs))
		if strings.Count(text, "\n") != 1 || strings.Count(text, "\t") != 4 || strings.ContainsAny(text, "\r\x00\x1b\u2028\u0085") {
			t.Errorf("%q", text)
		}
		line := appendJSON(nil, testTime, slog.LevelInfo, "x", msg, nil, attrs)
		var got map[string]string
		if err := json.Unmarshal(line, &got); err != nil || bytes.Count(line, []byte("\n")) != 1 {
			t.Fatalf("%q: %v", line, err)
		}
		if want := strings.ToValidUTF8(a, "\uFFFD"); len(a) == len(strings.ToValidUTF8(a, "?")) && strings.ToValidUTF8(a, "") == a && got["a"] != want {
			t.Errorf("a is %q, want %q", got["a"], want)
		}
	})
}

func TestLogger(t *testing.T) {
	l, out := testLogs(t, LogConfig{Filter: "info,quiet=off,ztunnel::loud=trace"})
	log := l.scope("xds").With("pod", "a/p").WithGroup("g")
	log.Info("said", "n", 1, slog.Group("h", "d", 2*time.Second), "err", io.EOF, "nil", nil)
	log.Debug("not said")
	l.scope("quiet").Error("not said")
	l.scope("loud").Debug("said too")
	l.scope("x").With(scopeKey, "y").Warn("scoped")
	l.sink.Close()
	var got []string
	for line := range strings.Lines(out.String()) {
		_, rest, _ := strings.Cut(line, "\t")
		got = append(got, strings.TrimSpace(rest))
	}
	want := []string{
		"info\txds\tsaid\tpod=\"a/p\" g.n=1 g.h.d=\"2s\" g.err=\"EOF\" g.nil=\"<nil>\"",
		"debug\tloud\tsaid too",
		"warn\ty\tscoped",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestSetLevel(t *testing.T) {
	f, err := newFilter("warn")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		spec  string
		reset bool
		want  string
	}{
		{"access=debug", false, "warn,access=debug"},
		{"info", false, "info,access=debug"},
		{"", true, "warn"},
		{"nonsense", false, ""},
		{"rbac=trace", true, "warn,rbac=trace"},
	} {
		err := f.SetLevel(tt.spec, tt.reset)
		if (err != nil) != (tt.want == "") || err == nil && f.Level() != tt.want {
			t.Errorf("SetLevel(%q, %v): %v, now %q; want %q", tt.spec, tt.reset, err, f.Level(), tt.want)
		}
	}
}

// slowWriter blocks until it is let.
type slowWriter struct {
	let chan struct{}
	bytes.Buffer
}

func (w *slowWriter) Write(b []byte) (int, error) {
	<-w.let
	return w.Buffer.Write(b)
}

// A log that nobody reads does not keep the process from ending.
func TestLogSinkEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &slowWriter{let: make(chan struct{})}
		s := newLogSink(w, appendText)
		s.line([]byte("x\n"))
		synctest.Wait()
		s.Close()
		s.line([]byte("y\n")) // does not block either
		if s.Lost() != 1 {
			t.Errorf("%d lines lost", s.Lost())
		}
		close(w.let)
	})
}

// What is not known of a connection that was refused is left out.
func TestEarlyLine(t *testing.T) {
	l, out := testLogs(t, LogConfig{Filter: "info"})
	l.early(track.Outbound, netip.MustParseAddrPort("10.0.0.1:4242"), netip.AddrPort{}, io.EOF)
	l.sink.Close()
	if s := out.String(); !strings.HasSuffix(s, "\twarn\taccess\tconnection failed\tsrc.addr=10.0.0.1:4242 direction=\"outbound\" error=\"EOF\"\n") {
		t.Errorf("%q", s)
	}
}

// A reader that does not read costs lines, not time, and is told how many.
func TestLogSinkIsBounded(t *testing.T) {
	w := &slowWriter{let: make(chan struct{})}
	s := newLogSink(w, appendText)
	for range 3 * maxLogLines {
		s.line([]byte("x\n"))
	}
	lost := s.Lost()
	if lost < maxLogLines || lost > 2*maxLogLines+1 {
		t.Errorf("%d lines lost of %d", lost, 3*maxLogLines)
	}
	close(w.let)
	s.Close()
	if n := strings.Count(w.String(), "x\n"); n != 3*maxLogLines-lost {
		t.Errorf("%d lines written, %d lost", n, lost)
	}
	if !strings.Contains(w.String(), "lines were dropped") {
		t.Error("nothing is said about what was lost")
	}
}
