package proxy

import (
	"encoding/json"
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
		{"ENABLE_PROXY=false", func(c Config) any { return c.DNSOnly }, true},
		{"LOCAL_XDS=workloads: []", func(c Config) any { return c.LocalText }, "workloads: []"},
		{"NODE_NAME=n1", func(c Config) any { return c.NodeName }, "n1"},
		{"CLUSTER_ID=c1", func(c Config) any { return c.ClusterID }, "c1"},
		{"ISTIO_META_CLUSTER_ID=c2", func(c Config) any { return c.ClusterID }, "c2"},
		{"SECRET_TTL=3600", func(c Config) any { return c.SecretTTL }, time.Hour},
		{"SECRET_TTL=24h", func(c Config) any { return c.SecretTTL }, 24 * time.Hour},
		{"SECRET_TTL=1day 12h", func(c Config) any { return c.SecretTTL }, 36 * time.Hour},
		{"PACKET_MARK=0", func(c Config) any { return c.Sockets.Mark }, uint32(0)},
		{"METRICS_PEER_SERIES=0", func(c Config) any { return c.PeerSeries }, 0},
		{"METRICS_PEER_SERIES=50000", func(c Config) any { return c.PeerSeries }, 50_000},
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
		{"ISTIO_META_DNS_CAPTURE=False", func(c Config) any { return c.DNS }, false},
		{"ISTIO_META_DNS_CAPTURE=True", func(c Config) any { return c.DNS }, true},
		{"PREFERED_SERVICE_NAMESPACE=shared", func(c Config) any { return c.PreferNamespace }, "shared"},
		{"UNSTABLE_ENABLE_SOCKS5=true", func(c Config) any { return c.SOCKS5 }, true},
		{"READINESS_ADDR=127.0.0.1", func(c Config) any { return c.Ready.String() }, "127.0.0.1:15021"},
		{"READINESS_ADDR=::1", func(c Config) any { return c.Ready.String() }, "[::1]:15021"},
		{"READINESS_ADDR=[::1]:1234", func(c Config) any { return c.Ready.String() }, "[::1]:1234"},
		{"READINESS_ADDR=", func(c Config) any { return c.Ready.String() }, "[::]:15021"},
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
		"XDS_ADDRESS=", "CA_ADDRESS=", "INPOD_UDS=", "SECRET_TTL=soon", "PACKET_MARK=-1", "METRICS_PEER_SERIES=50001", "KEEPALIVE_RETRIES=0", "IPV6_ENABLED=yes",
		"HTTP2_FRAME_SIZE=1", "POOL_MAX_STREAMS_PER_CONNECTION=70000", "LOG_FORMAT=xml", "RUST_LOG=loud", "ZTUNNEL_WORKER_THREADS=0%",
		"ISTIO_METAJSON_X=nope", "XDS_HEADER_A B=1", "PROXY_CONFIG=[", "PROXY_MODE=lonely", "ENABLE_PROXY=no",
		"XDS_ON_DEMAND=perhaps", "UNSTABLE_ENABLE_SOCKS5=perhaps", "ISTIO_META_DNS_CAPTURE=some",
		"READINESS_ADDR=everywhere", "ENABLE_ORIG_SRC=perhaps", "CONNECTION_TERMINATION_DEADLINE=",
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

// The dump's configuration has the keys that ztunnel's has, in the same shapes.
func TestConfigShape(t *testing.T) {
	env := []string{
		"NODE_NAME=n1", "UNSTABLE_ENABLE_SOCKS5=true", "READINESS_ADDR=127.0.0.1", "XDS_HEADER_X-Tenant=a", "PREFERED_SERVICE_NAMESPACE=shared",
		"POD_NAME=z-1", "POD_NAMESPACE=istio-system", "SERVICE_ACCOUNT=ztunnel",
	}
	c, err := FromEnviron(env)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(configMap(c))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	for _, key := range strings.Fields(`adminAddr altCaHostname altXdsHostname caAddress caHeaders caRootCert clusterDomain clusterId
		connectionWindowSize crlPath dnsProxy dnsProxyAddr dnsResolverCfg dnsResolverOpts enableEnhancedBaggage fakeCa fakeSelfInbound
		frameSize illegalPorts inboundAddr inboundPlaintextAddr inpodPortReuse inpodUds ipv6Enabled localNode localhostAppTunnel network
		numWorkerThreads outboundAddr packetMark poolMaxStreamsPerConn poolUnusedReleaseTimeout preferedServiceNamespace proxy proxyArgs
		proxyMetadata proxyMode proxyWorkloadInformation readinessAddr requireOriginalSource secretTtl selfTerminationDeadline socketConfig
		socks5Addr statsAddr windowSize xdsAddress xdsHeaders xdsOnDemand xdsRootCert ztunnelIdentity ztunnelWorkload`) {
		if _, ok := got[key]; !ok {
			t.Errorf("no %s", key)
		}
	}
	for key, want := range map[string]string{
		"adminAddr": `{"Localhost":[true,15000]}`, "dnsProxyAddr": `{"Localhost":[true,15053]}`, "statsAddr": `{"SocketAddr":"[::]:15020"}`,
		"readinessAddr": `{"SocketAddr":"127.0.0.1:15021"}`, "socks5Addr": `"127.0.0.1:15080"`, "illegalPorts": `[15001,15006,15008,15080]`,
		"altCaHostname": `null`, "crlPath": `null`, "secretTtl": `{"nanos":0,"secs":86400}`, "packetMark": `1337`, "xdsHeaders": `[["x-tenant","(not shown)"]]`,
		"proxyMode": `"Shared"`, "requireOriginalSource": `null`, "preferedServiceNamespace": `"shared"`, "proxyWorkloadInformation": `null`,
		"ztunnelIdentity": `"spiffe://cluster.local/ns/istio-system/sa/ztunnel"`,
		"ztunnelWorkload": `{"name":"z-1","namespace":"istio-system","serviceAccount":"ztunnel"}`,
	} {
		if b, err := json.Marshal(got[key]); err != nil || string(b) != want {
			t.Errorf("%s is %s, %v; want %s", key, b, err, want)
		}
	}
	if c, err = FromEnviron([]string{"PROXY_MODE=dedicated", "PROXY_WORKLOAD_INFO=a/b/c"}); err != nil {
		t.Fatal(err)
	}
	m := configMap(c)
	if b, _ := json.Marshal(m["proxyWorkloadInformation"]); m["proxyMode"] != "Dedicated" || m["packetMark"] != nil || string(b) != `{"name":"b","namespace":"a","serviceAccount":"c"}` {
		t.Errorf("%v, mark %v, %s", m["proxyMode"], m["packetMark"], b)
	}
}

func TestDedicatedMistakes(t *testing.T) {
	for _, bad := range []string{"", "PROXY_WORKLOAD_INFO=a/b", "PROXY_WORKLOAD_INFO=a//c", "PROXY_WORKLOAD_INFO=a/b/c/d", "PROXY_WORKLOAD_INFO=/b/c"} {
		_, err := FromEnviron([]string{"PROXY_MODE=dedicated", bad})
		if err == nil || !strings.Contains(err.Error(), "PROXY_WORKLOAD_INFO: ") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if c, err := FromEnviron([]string{"PROXY_MODE=Dedicated", "PROXY_WORKLOAD_INFO=a/b/c", "PACKET_MARK=7", "INPOD_UDS="}); err != nil || c.Pod.ServiceAccount != "c" || c.Sockets.Mark != 7 {
		t.Errorf("%+v, %v", c.Pod, err)
	}
}

// A static configuration is a file or a text, and something has to be left to do.
func TestModeMistakes(t *testing.T) {
	for _, c := range []struct{ env, want string }{
		{"LOCAL_XDS={} LOCAL_XDS_PATH=x", "LOCAL_XDS and LOCAL_XDS_PATH"},
		{"XDS_ADDRESS= LOCAL_XDS={}", ""},
		{"ENABLE_PROXY=false", ""},
		{"ENABLE_PROXY=false ISTIO_META_DNS_CAPTURE=false", "ENABLE_PROXY and ISTIO_META_DNS_CAPTURE"},
	} {
		_, err := FromEnviron(strings.Fields(c.env))
		if c.want == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.env, err, c.want)
		}
	}
}
