package proxy

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/sockopt"
)

func TestEnvironDefaults(t *testing.T) {
	got, err := FromEnviron([]string{"PATH=/bin"})
	if err != nil {
		t.Fatal(err)
	}
	want := Defaults()
	want.Metadata, want.MetadataJSON = map[string]string{}, map[string]string{}
	if d := cmp.Diff(configMap(want), configMap(got)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestEnviron(t *testing.T) {
	tests := []struct {
		env  string
		got  func(Config) any
		want any
	}{
		{"XDS_ADDRESS=", func(c Config) any { return c.XDS.Address + c.LocalXDS }, "x"}, // with LOCAL_XDS_PATH, below
		{"XDS_ADDRESS=istiod:15012", func(c Config) any { return c.XDS.Address }, "https://istiod:15012"},
		{"XDS_ADDRESS=http://istiod:15010", func(c Config) any { return c.XDS.Address }, "http://istiod:15010"},
		{"CA_ADDRESS=unix:///ca.sock", func(c Config) any { return c.CA.Address }, "unix:///ca.sock"},
		{"CA_ADDR=ca:1", func(c Config) any { return c.CA.Address }, "https://ca:1"},
		{"KUBERNETES_SERVICE_HOST=10.0.0.1", func(c Config) any { return c.XDS.Address }, inClusterIstiod},
		{"PROXY_CONFIG={concurrency: 3}", func(c Config) any { return c.Threads }, 3},
		{"TLS_RECORDS=stock", func(c Config) any { return c.HBONE.Records }, hbone.StockRecords},
		{"LOCALHOST_APP_TUNNEL=true", func(c Config) any { return c.LocalhostTunnel }, true},
		{"LOCALHOST_APP_TUNNEL=false", func(c Config) any { return c.LocalhostTunnel }, false},
		{"SAME_NODE=mtls", func(c Config) any { return c.SameNode }, false},
		{"NODE_NAME=n1", func(c Config) any { return c.NodeName }, "n1"},
		{"CLUSTER_ID=c1", func(c Config) any { return c.ClusterID }, "c1"},
		{"ISTIO_META_CLUSTER_ID=c2", func(c Config) any { return c.ClusterID }, "c2"},
		{"SECRET_TTL=3600", func(c Config) any { return c.SecretTTL }, time.Hour},
		{"SECRET_TTL=24h", func(c Config) any { return c.SecretTTL }, 24 * time.Hour},
		{"SECRET_TTL=1day 12h", func(c Config) any { return c.SecretTTL }, 36 * time.Hour},
		{"PACKET_MARK=0", func(c Config) any { return c.Sockets.Mark }, uint32(0)},
		{"ENABLE_ORIG_SRC=true", func(c Config) any { return c.Sockets.Transparent }, sockopt.On},
		{"ENABLE_ORIG_SRC=false", func(c Config) any { return c.Sockets.Transparent }, sockopt.Off},
		{"KEEPALIVE_ENABLED=false", func(c Config) any { return c.Sockets.Keepalive }, sockopt.Keepalive{}},
		{"USER_TIMEOUT_ENABLED=true", func(c Config) any { return c.Sockets.UserTimeout }, 1800 * time.Second},
		{"IPV6_ENABLED=false", func(c Config) any { return c.Stats.String() }, "0.0.0.0:15020"},
		{"HTTP2_FRAME_SIZE=16384", func(c Config) any { return c.HBONE.MaxFrame }, uint32(16384)},
		{"TERMINATION_GRACE_PERIOD_SECONDS=30", func(c Config) any { return c.DrainDeadline }, 25 * time.Second},
		{"TERMINATION_GRACE_PERIOD_SECONDS=3", func(c Config) any { return c.DrainDeadline }, 2 * time.Second},
		{"TERMINATION_GRACE_PERIOD_SECONDS=0", func(c Config) any { return c.DrainDeadline }, time.Second},
		{"CONNECTION_TERMINATION_DEADLINE=7s", func(c Config) any { return c.DrainDeadline }, 7 * time.Second},
		{"XDS_HEADER_X-Tenant=a", func(c Config) any { return c.XDS.Headers }, [][2]string{{"x-tenant", "a"}}},
		{"ISTIO_META_ISTIO_VERSION=1.30", func(c Config) any { return c.Metadata["ISTIO_VERSION"] }, "1.30"},
		{`ISTIO_METAJSON_LABELS={"a":1}`, func(c Config) any { return c.MetadataJSON["LABELS"] }, `{"a":1}`},
		{"PROXY_CONFIG={discoveryAddress: d:1, statsPort: 9}", func(c Config) any { return c.XDS.Address + " " + c.Stats.String() }, "https://d:1 [::]:9"},
		{"AUTH_TOKEN=/no/such/file", func(c Config) any { return c.Token }, Token{Path: "/no/such/file"}},
		{"AUTH_TOKEN=eyJhbGciOi", func(c Config) any { return c.Token }, Token{Text: "eyJhbGciOi"}},
		{"AUTH_TOKEN=", func(c Config) any { return c.Token }, Token{}},
		{"LOG_FORMAT=json", func(c Config) any { return c.Log.JSON }, true},
		{"RUST_LOG=warn,access=debug", func(c Config) any { return c.Log.Filter }, "warn,access=debug"},
		{"ZTUNNEL_WORKER_THREADS=3", func(c Config) any { return c.Threads }, 3},
		{"ISTIO_META_DNS_CAPTURE=false", func(c Config) any { return c.Metadata["DNS_CAPTURE"] }, "false"},
	}
	for _, tt := range tests {
		t.Run(tt.env, func(t *testing.T) {
			env := []string{tt.env}
			if tt.env == "XDS_ADDRESS=" {
				env = append(env, "LOCAL_XDS_PATH=x")
			}
			c, err := FromEnviron(env)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, tt.got(c)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// Whoever names the control plane is believed, also in a cluster.
func TestMeshConfigBeforeTheCluster(t *testing.T) {
	c, err := FromEnviron([]string{"KUBERNETES_SERVICE_HOST=10.0.0.1", "PROXY_CONFIG={discoveryAddress: 'localhost:15012'}"})
	if err != nil || c.XDS.Address != localIstiod || c.CA.Address != localIstiod {
		t.Errorf("%s, %s, %v", c.XDS.Address, c.CA.Address, err)
	}
}

// Every mistake is named, all at once.
func TestEnvironMistakes(t *testing.T) {
	env := []string{
		"XDS_ADDRESS=", "CA_ADDRESS=", "INPOD_UDS=", "SECRET_TTL=soon", "PACKET_MARK=-1", "KEEPALIVE_RETRIES=0", "IPV6_ENABLED=yes",
		"HTTP2_FRAME_SIZE=1", "POOL_MAX_STREAMS_PER_CONNECTION=70000", "LOG_FORMAT=xml", "RUST_LOG=loud", "ZTUNNEL_WORKER_THREADS=0%",
		"ISTIO_METAJSON_X=nope", "XDS_HEADER_A B=1", "PROXY_CONFIG=[", "PROXY_MODE=dedicated", "ENABLE_PROXY=false", 
		"XDS_ON_DEMAND=perhaps", "UNSTABLE_ENABLE_SOCKS5=true", "TLS12_ENABLED=true", "COMPLIANCE_POLICY=pqc", "ISTIO_META_DNS_CAPTURE=true",
		"PROXY_WORKLOAD_INFO=a/b/c", "LOCAL_XDS={}", "ENABLE_ORIG_SRC=perhaps", "CONNECTION_TERMINATION_DEADLINE=",
	}
	_, err := FromEnviron(env)
	if err == nil {
		t.Fatal("accepted")
	}
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.Contains(err.Error(), name+":") && !strings.Contains(err.Error(), name+" is") {
			t.Errorf("%s is not named in:\n%v", name, err)
		}
	}
}

// On demand needs to know whose workloads come unasked, and nobody can answer for names
// that nobody asked for yet.
func TestOnDemandMistakes(t *testing.T) {
	for env, want := range map[string]string{"": "", "NODE_NAME=": "NODE_NAME", "ISTIO_META_DNS_CAPTURE=true": "DNS"} {
		_, err := FromEnviron([]string{"XDS_ON_DEMAND=true", "NODE_NAME=n", env})
		if want == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("with %q: %v, want %q", env, err, want)
		}
	}
}

// An address that no client takes is told with the other mistakes.
func TestAddressMistakes(t *testing.T) {
	for _, bad := range []string{"ftp://x", "https://istiod", "https://:15012", "unix://x", "unix:///", "https://h:99999", "https://h:0", "http://u@h:1", "https://h:1/x?y"} {
		_, err := FromEnviron([]string{"XDS_ADDRESS=" + bad, "CA_ADDRESS=" + bad, "SECRET_TTL=0s"})
		for _, want := range []string{"XDS_ADDRESS:", "CA_ADDRESS:", "SECRET_TTL:"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %s is not named in: %v", bad, want, err)
			}
		}
	}
	for _, good := range []string{"https://istiod:15012", "https://[::1]:15012/", "http://10.0.0.1:1", "unix:///run/x.sock", "istiod:15012"} {
		if _, err := FromEnviron([]string{"XDS_ADDRESS=" + good, "CA_ADDRESS=" + good}); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
}

// Editors end a file with a newline; a token has none.
func TestTokenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	for text, want := range map[string]string{"a.b.c": "a.b.c", " a.b.c\r\n\n": "a.b.c", "\n": ""} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := Token{Path: path}.Read()
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}

// What is printed at start shows no secret.
func TestNoSecretsAreShown(t *testing.T) {
	c, err := FromEnviron([]string{"AUTH_TOKEN=hunter2", "XDS_HEADER_AUTHORIZATION=hunter2", "CA_HEADER_X=hunter2"})
	if err != nil {
		t.Fatal(err)
	}
	logs, out := testLogs(t, LogConfig{Filter: "info"})
	logs.scope("x").LogAttrs(t.Context(), slog.LevelInfo, "configuration", configAttrs(c)...)
	logs.scope("x").Info("m", "token", c.Token)
	logs.sink.Close()
	if strings.Contains(out.String(), "hunter2") || !strings.Contains(out.String(), `outboundAddr="[::]:15001"`) {
		t.Error(out.String())
	}
}
