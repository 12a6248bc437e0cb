package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/warren-mesh/warren/ca/source/fake"
	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/proxy/admin"
	"github.com/warren-mesh/warren/proxy/track"
	"github.com/warren-mesh/warren/xds/workload"
)

var update = flag.Bool("update", false, "write the golden files anew")

type levels struct{ level string }

func (l *levels) Level() string { return l.level }
func (l *levels) SetLevel(spec string, reset bool) error {
	if spec == "bad" {
		return errors.New("no such level")
	}
	l.level = spec
	return nil
}

func source() admin.Source {
	store := workload.NewStore()
	capacity := uint32(3)
	key := workload.NamespacedHostname{Namespace: "a", Hostname: "app.a.svc.cluster.local"}
	store.Apply(workload.Batch{
		Workloads: []*workload.Workload{{
			UID: "Kubernetes//Pod/a/p-1", Name: "p-1", Namespace: "a", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
			Network: "n1", Protocol: workload.HBONE, TrustDomain: "cluster.local", ServiceAccount: "b", Node: "node1", ClusterID: "Kubernetes",
			Locality: workload.Locality{Region: "r", Zone: "z"}, CanonicalName: "app", CanonicalRevision: "v1", WorkloadName: "p",
			Waypoint: &workload.GatewayAddress{Hostname: workload.NamespacedHostname{Namespace: "a", Hostname: "wp.a.svc"}, HBONEPort: 15008},
			Services: workload.NewMemberships(map[workload.NamespacedHostname]workload.PortMap{
				key: workload.NewPortMap(workload.Port{Service: 80, Target: 8080}), {Namespace: "a", Hostname: "late.a.svc"}: nil,
			}),
			Policies: []string{"a/p"}, Capacity: &capacity,
		}, {UID: "bare", Name: "bare", Namespace: "a", ClusterID: "Kubernetes"}},
		Services: []*workload.Service{{
			Name: "app", Namespace: "a", Hostname: key.Hostname, VIPs: []workload.NetworkAddr{{Network: "n1", Addr: netip.MustParseAddr("10.96.0.5")}},
			Ports: workload.NewPortMap(workload.Port{Service: 80, Target: 8080}), Canonical: true, IPFamilies: workload.IPv4Only,
			LoadBalancing: &workload.LoadBalancing{Mode: workload.LBFailover, Preferences: []workload.Scope{workload.Network, workload.Region}},
		}, {Name: "empty", Namespace: "a", Hostname: "empty.a.svc.cluster.local"}},
		Policies: []*workload.Policy{{
			Name: "p", Namespace: "a", Scope: workload.ScopeSelector, Action: workload.Deny,
			Rules: []workload.Rule{{Clauses: []workload.Clause{{Matches: []workload.Match{{
				NotPrincipals: []workload.StringMatch{{Kind: workload.Presence}}, DestinationPorts: []uint16{80},
				SourceIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Namespaces: []workload.StringMatch{{Kind: workload.Exact, Value: "x"}},
			}}}}}},
		}, {Name: "none", Namespace: "a"}},
	})
	ap := netip.MustParseAddrPort
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return admin.Source{
		View: store.View, Static: func() workload.Batch { return workload.Batch{} }, Certs: func() []svid.State { return nil },
		Pods: func() []admin.Pod {
			return []admin.Pod{
				{UID: "u1", Name: "p-1", Namespace: "a", ServiceAccount: "b", State: "Up", Netns: "4:1", Listeners: []string{"15001"}, Inbound: 1, Outbound: 1},
				{UID: "u2", Name: "p-2", Namespace: "a", ServiceAccount: "b", State: "Pending", Listeners: []string{}, Error: "in use"},
			}
		},
		Connections: func() map[string][]track.Facts {
			return map[string][]track.Facts{"u1": {
				{Pod: "u1", Direction: track.Inbound, Src: ap("10.0.0.9:1234"), Dst: ap("10.0.0.1:8080"), Protocol: "HBONE"},
				{Pod: "u1", Direction: track.Outbound, Src: ap("10.0.0.1:4444"), Dst: ap("10.0.0.7:15008"), Protocol: "HBONE", Original: "10.96.0.5:80"},
			}}
		},
		Lines: func() admin.Lines {
			return admin.Lines{XDS: admin.Line{Address: "https://cp:15012", State: "connected", Since: &since}, CA: admin.Line{Address: "https://ca:15012", State: "failing", LastError: "no"}}
		},
		Config: func() map[string]any {
			return map[string]any{"proxy": true, "localNode": "node1", "proxyMode": "Shared"}
		},
		Version: map[string]string{"version": "v1"}, Ready: admin.NewReadiness("b", "a"), Logging: &levels{"info"}, Quit: func() {},
		Alarms: func() map[string]string { return map[string]string{"token": "it expires in 1h"} },
		Origin: func() (string, string) { return "https://ca:15012", "strict" },
	}
}

func get(t *testing.T, h http.Handler, method, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w.Code, w.Body.String()
}

// The dumps, to the byte. Rewrite with -update and read the difference.
func TestDumps(t *testing.T) {
	h := admin.Handler(source())
	for name, path := range map[string]string{
		"config_dump.json": "/config_dump", "legacy.json": "/config_dump?format=legacy", "connections.json": "/debug/connections",
		"pods.json": "/debug/pods", "certs.json": "/debug/certs", "entitlements.json": "/debug/entitlements",
	} {
		t.Run(name, func(t *testing.T) {
			code, got := get(t, h, http.MethodGet, path)
			if code != http.StatusOK || !json.Valid([]byte(got)) {
				t.Fatalf("status %d: %s", code, got)
			}
			golden := filepath.Join("testdata", name)
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// Nothing to show is an empty list, never null, which Istio's tools trip over.
func TestListsAreNeverNull(t *testing.T) {
	s := source()
	empty := workload.NewStore()
	s.View, s.Pods, s.Connections = empty.View, func() []admin.Pod { return nil }, func() map[string][]track.Facts { return nil }
	h := admin.Handler(s)
	for _, path := range []string{"/config_dump", "/debug/certs", "/debug/pods", "/debug/connections", "/debug/entitlements"} {
		if _, body := get(t, h, http.MethodGet, path); strings.Contains(body, "null") {
			t.Errorf("%s: %s", path, body)
		}
	}
}

// Certificates are dumped without their keys.
func TestCertificates(t *testing.T) {
	defer goleak.VerifyNone(t)
	signer, err := fake.New(spiffeid.RequireTrustDomainFromString("cluster.local"), nil)
	if err != nil {
		t.Fatal(err)
	}
	m := svid.New(svid.Config{Signer: signer})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	defer func() { cancel(); <-done }()
	if _, err := m.Acquire(svid.Pod{UID: "u"}, spiffeid.RequireFromString("spiffe://cluster.local/ns/a/sa/b")).Identity(ctx); err != nil {
		t.Fatal(err)
	}
	s := source()
	s.Certs = m.Dump
	h := admin.Handler(s)
	for path, keys := range map[string][]string{
		"/config_dump":               {`"state": "Available"`, `"serialNumber": "`, `"pem": "LS0t`, `"rootCerts": [`},
		"/config_dump?format=legacy": {`"ca_cert": [`, `"serial_number": "`, `"pem": "-----BEGIN`},
		"/debug/entitlements":        {`"uid": "u"`, `"by": "signing"`, `"serialNumber": "`, `"source": "https://ca:15012"`},
		"/debug/certs":               {`"spiffe_id": "spiffe://cluster.local/ns/a/sa/b"`, `"valid_until": "`, `"holders": [`},
	} {
		_, body := get(t, h, http.MethodGet, path)
		for _, k := range keys {
			if !strings.Contains(body, k) {
				t.Errorf("%s: no %s in %s", path, k, body)
			}
		}
		if strings.Contains(body, "PRIVATE KEY") {
			t.Errorf("%s shows a key", path)
		}
	}
}

func TestEndpoints(t *testing.T) {
	s := source()
	quits := 0
	s.Quit = func() { quits++ }
	h := admin.Handler(s)
	tests := []struct {
		method, path string
		code         int
		body         string
	}{
		{"GET", "/", 200, "config_dump"},
		{"GET", "/nope", 404, ""},
		{"GET", "/debug/pprof/heap?debug=1", 200, "heap profile"},
		{"GET", "/debug/pprof/profile?seconds=0", 400, "seconds"},
		{"GET", "/debug/pprof/profile?seconds=301", 400, "seconds"},
		{"GET", "/logging", 405, "usage"},
		{"POST", "/logging", 200, "current log level is info\n"},
		{"POST", "/logging?level=debug", 200, "current log level is debug\n"},
		{"POST", "/logging?level=bad", 400, "Invalid level provided: no such level"},
		{"GET", "/quitquitquit", 405, ""},
		{"POST", "/quitquitquit", 200, "shutdown now\n"},
		{"GET", "/healthz/ready", 500, "not ready, pending: a, b\n"},
		{"POST", "/healthz/ready", 405, ""},
	}
	for _, tt := range tests {
		code, body := get(t, h, tt.method, tt.path)
		if code != tt.code || !strings.Contains(body, tt.body) || tt.body == "" && body != "" {
			t.Errorf("%s %s: %d %q, want %d %q", tt.method, tt.path, code, body, tt.code, tt.body)
		}
	}
	if quits != 1 {
		t.Errorf("%d quits", quits)
	}
	s.Ready.Set("a", true)
	s.Ready.Set("b", true)
	if code, body := get(t, h, http.MethodGet, "/healthz/ready"); code != 200 || body != "ready\n" {
		t.Errorf("ready: %d %q", code, body)
	}
	s.Ready.Set("a", false)
	if code, _ := get(t, admin.ReadyHandler(s.Ready), http.MethodGet, "/healthz/ready"); code != 500 {
		t.Errorf("not ready any more: %d", code)
	}
	if code, body := get(t, admin.ReadyHandler(s.Ready), http.MethodGet, "/healthz/live"); code != 200 || body != "live\n" {
		t.Errorf("live: %d %q", code, body)
	}
}

func TestUnixSocket(t *testing.T) {
	defer goleak.VerifyNone(t)
	path := filepath.Join(t.TempDir(), "admin.sock")
	log := slog.New(slog.DiscardHandler)
	start := func() (net.Listener, func()) {
		l, err := admin.ListenUnix(path)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- admin.Serve(ctx, l, admin.Handler(source()), log) }()
		return l, func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	ask := func() error {
		tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}}
		resp, err := (&http.Client{Transport: tr}).Get("http://proxy/debug/pods")
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		return err
	}
	_, stopOld := start()
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	_, stopNew := start() // a rollout: the path is the new proxy's at once
	stopOld()
	if err := ask(); err != nil {
		t.Errorf("the old proxy took the new one's socket along: %v", err)
	}
	stopNew()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
