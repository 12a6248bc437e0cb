package controlplane

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	"istio.io/api/security/v1alpha1"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/mtls"
	caserver "github.com/warren-mesh/warren/ca/server"
	"github.com/warren-mesh/warren/xds/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	tokenA = "0123456789abcdef0123456789abcdef"
	tokenB = "fedcba9876543210fedcba9876543210"

	meshYAML = `apiVersion: v1
kind: Namespace
metadata: {name: app, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: app, labels: {app: web}}
spec: {serviceAccountName: web, nodeName: node-a}
status: {phase: Running, podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: app}
spec: {selector: {app: web}, clusterIP: 10.96.0.1, ports: [{port: 80, targetPort: 8080}]}
`
	policyYAML = `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: app}
spec: {selector: {matchLabels: {app: web}}, action: DENY, rules: [{from: [{source: {namespaces: [bad]}}]}]}
`
)

// plane is a control plane that runs for a test.
type plane struct {
	t    *testing.T
	dir  string // the folder of YAML
	cfg  Config
	cp   *ControlPlane
	log  *lockedBuffer
	stop func() error
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func testConfig(t *testing.T) Config {
	t.Helper()
	base := t.TempDir()
	cfg := Defaults()
	cfg.KubeDir, cfg.StateDir, cfg.NodeTokens = filepath.Join(base, "kube"), filepath.Join(base, "state"), filepath.Join(base, "tokens")
	cfg.Listen, cfg.HealthListen, cfg.MetricsListen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	if err := os.Mkdir(cfg.KubeDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cfg.NodeTokens, []byte(tokenA+" node-a\n"+tokenB+" node-b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func start(t *testing.T, change func(*Config)) *plane {
	t.Helper()
	return startLogging(t, slog.LevelInfo, change)
}

func startLogging(t *testing.T, level slog.Level, change func(*Config)) *plane {
	t.Helper()
	cfg := testConfig(t)
	if change != nil {
		change(&cfg)
	}
	p := &plane{t: t, dir: cfg.KubeDir, cfg: cfg, log: &lockedBuffer{}}
	cp, err := New(cfg, slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: level})))
	if err != nil {
		t.Fatal(err)
	}
	p.cp = cp
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- cp.Run(ctx) }()
	p.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Errorf("run: %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
		if t.Failed() {
			t.Logf("log:\n%s", p.log)
		}
	})
	return p
}

func (p *plane) write(name, content string) {
	p.t.Helper()
	tmp := filepath.Join(p.dir, "."+name)
	if err := os.WriteFile(tmp, []byte(content), 0o600); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(p.dir, name)); err != nil {
		p.t.Fatal(err)
	}
}

// dial connects over TLS, trusting what the state folder says to trust.
func (p *plane) dial() *grpc.ClientConn {
	p.t.Helper()
	roots := func() ([]byte, error) { return os.ReadFile(filepath.Join(p.cfg.StateDir, "root-cert.pem")) }
	cc, err := grpc.NewClient(p.cp.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(mtls.ToServer(roots, "istiod.istio-system.svc", ""))))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = cc.Close() })
	return cc
}

func (p *plane) as(token string) context.Context {
	ctx, cancel := context.WithTimeout(p.t.Context(), within)
	p.t.Cleanup(cancel)
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// client is a proxy that takes everything it is sent.
type client struct {
	t      *testing.T
	stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	has    map[string]bool
}

func subscribe(t *testing.T, cc *grpc.ClientConn, ctx context.Context) *client {
	t.Helper()
	st, err := discovery.NewAggregatedDiscoveryServiceClient(cc).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, typ := range []string{server.AddressType, server.AuthorizationType} {
		if err := st.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: typ}); err != nil && err != io.EOF {
			t.Fatal(err)
		}
	}
	return &client{t: t, stream: st, has: make(map[string]bool)}
}

// until takes responses until it has these names and no others.
func (c *client) until(names ...string) {
	c.t.Helper()
	for {
		if len(c.has) == len(names) && !slices.ContainsFunc(names, func(n string) bool { return !c.has[n] }) {
			return
		}
		r, err := c.stream.Recv()
		if err != nil {
			c.t.Fatalf("has %v, want %v: %v", c.has, names, err)
		}
		for _, res := range r.GetResources() {
			c.has[res.GetName()] = true
		}
		for _, name := range r.GetRemovedResources() {
			delete(c.has, name)
		}
		if err := c.stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}); err != nil {
			c.t.Fatal(err)
		}
	}
}

func csr(t *testing.T, id string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{uri}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func sign(t *testing.T, cc *grpc.ClientConn, ctx context.Context, id string) (*v1alpha1.IstioCertificateResponse, error) {
	t.Helper()
	md, err := structpb.NewStruct(map[string]any{"ImpersonatedIdentity": id})
	if err != nil {
		t.Fatal(err)
	}
	return v1alpha1.NewIstioCertificateServiceClient(cc).CreateCertificate(ctx, &v1alpha1.IstioCertificateRequest{Csr: csr(t, id), Metadata: md, ValidityDuration: 60})
}

const (
	webWorkload = "Kubernetes//Pod/app/web"
	webService  = "app/web.app.svc.cluster.local"
)

func TestModelReachesProxies(t *testing.T) {
	p := start(t, nil)
	cc := p.dial()
	p.write("mesh.yaml", meshYAML)
	c := subscribe(t, cc, p.as(tokenA))
	c.until(webWorkload, webService)
	p.write("policy.yaml", policyYAML)
	c.until(webWorkload, webService, "app/deny")
	p.write("mesh.yaml", "broken: [")
	p.write("policy.yaml", "# none any more\n")
	c.until(webWorkload, webService) // a broken file takes nothing away
	if err := os.Remove(filepath.Join(p.dir, "mesh.yaml")); err != nil {
		t.Fatal(err)
	}
	c.until()
	if err := p.stop(); err != nil {
		t.Errorf("run: %v", err)
	}
	if _, err := c.stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("end = %v, want Unavailable", err)
	}
}

// A CA that ends soon is told of, and serves.
func TestTheCAEndsSoon(t *testing.T) {
	p := start(t, func(c *Config) {
		f, err := authority.Create(meshDomain, time.Now().Add(-(3650-20)*24*time.Hour))
		if err == nil {
			err = (&caserver.StateDir{Path: c.StateDir, TrustDomain: meshDomain}).PutBack(t.Context(), f)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	p.write("mesh.yaml", meshYAML)
	eventually(t, "readiness, with a note", func() bool {
		code, body := get(t, "http://"+p.cp.listeners.health.Addr().String()+"/healthz/ready")
		return code == http.StatusOK && strings.Contains(body, "nobody can prove itself after")
	})
	if _, body := get(t, "http://"+p.cp.listeners.metrics.Addr().String()+"/metrics"); !strings.Contains(body, "warren_ca_ends_soon 1") || !strings.Contains(body, `warren_crypto{provider="go-`) {
		t.Error("no metric says so")
	}
	eventually(t, "a line in the log", func() bool { return strings.Contains(p.log.String(), "nobody can prove itself after") })
}

// Who was given which certificate is in the log of those who want nothing else there.
func TestAuditStays(t *testing.T) {
	p := startLogging(t, slog.LevelError, nil)
	p.write("mesh.yaml", meshYAML)
	cc := p.dial()
	if _, err := sign(t, cc, p.as(tokenA), "spiffe://cluster.local/ns/app/sa/web"); err != nil {
		t.Fatal(err)
	}
	if _, err := sign(t, cc, p.as(""), "spiffe://cluster.local/ns/app/sa/web"); err == nil {
		t.Fatal("signed for nobody")
	}
	issuer := p.cp.keeper.Authority().ID()
	for msg, attrs := range map[string][]string{
		"serving certificate issued": {"serial=", "issuer=" + issuer, "localhost"},
		"certificate signed":         {"serial=", "issuer=" + issuer, "sa/web"},
		"certificate refused":        {"src.addr=127.0.0.1", "Unauthenticated"}, // nothing is read of what nobody asks for
	} {
		_, line, found := strings.Cut(p.log.String(), `msg="`+msg+`"`)
		line, _, _ = strings.Cut(line, "\n")
		for _, want := range attrs {
			if !found || !strings.Contains(line, want) {
				t.Errorf("%s: %q, want %s in it", msg, line, want)
			}
		}
	}
	if strings.Contains(p.log.String(), "serving xDS") {
		t.Error("the level does nothing")
	}
}

func TestCertificates(t *testing.T) {
	p := start(t, nil)
	p.write("mesh.yaml", meshYAML)
	cc := p.dial()
	const web = "spiffe://cluster.local/ns/app/sa/web"
	resp, err := sign(t, cc, p.as(tokenA), web)
	if err != nil {
		t.Fatalf("a pod on the node: %v", err)
	}
	block, _ := pem.Decode([]byte(resp.GetCertChain()[0]))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil || leaf.URIs[0].String() != web {
		t.Errorf("leaf for %v (%v), want %s", leaf.URIs, err, web)
	}
	for name, c := range map[string]struct{ token, id string }{
		"another node":         {tokenB, web},
		"nobody's identity":    {tokenA, "spiffe://cluster.local/ns/app/sa/other"},
		"another trust domain": {tokenA, "spiffe://elsewhere/ns/app/sa/web"},
		"no token":             {"", web},
		"unknown token":        {strings.Repeat("z", 32), web},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := sign(t, cc, p.as(c.token), c.id); status.Code(err) != codes.Unauthenticated {
				t.Errorf("err = %v, want Unauthenticated", err)
			}
		})
	}
	// A request that comes a moment before its pod is answered when the pod is there.
	done := make(chan error, 1)
	go func() {
		_, err := sign(t, cc, p.as(tokenB), "spiffe://cluster.local/ns/app/sa/late")
		done <- err
	}()
	p.write("late.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: late, namespace: app}\nspec: {serviceAccountName: late, nodeName: node-b}\n")
	if err := <-done; err != nil {
		t.Errorf("a pod that appears: %v", err)
	}
}

func TestStreamNeedsToken(t *testing.T) {
	p := start(t, func(c *Config) { c.PlaintextListen = "unix://" + filepath.Join(t.TempDir(), "xds.sock") })
	p.write("mesh.yaml", meshYAML)
	cc := p.dial()
	c := subscribe(t, cc, p.as(""))
	if _, err := c.stream.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("err = %v, want Unauthenticated", err)
	}
	// Tokens are read again when their file changes.
	later := strings.Repeat("n", 32)
	if err := os.WriteFile(p.cfg.NodeTokens, []byte(later+" node-c\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	subscribe(t, cc, p.as(later)).until(webWorkload, webService)
	c = subscribe(t, cc, p.as(tokenA))
	if _, err := c.stream.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("err = %v, want the token that was taken out to be refused", err)
	}

	plain, err := grpc.NewClient(p.cfg.PlaintextListen, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	subscribe(t, plain, p.as("")).until(webWorkload, webService)
	if _, err := sign(t, plain, p.as(tokenA), "spiffe://cluster.local/ns/app/sa/web"); status.Code(err) != codes.Unimplemented {
		t.Errorf("err = %v, want no CA without TLS", err)
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestHealthAndMetrics(t *testing.T) {
	p := start(t, func(c *Config) { c.KubeDir += "-later" })
	health := "http://" + p.cp.listeners.health.Addr().String()
	if code, _ := get(t, health+"/healthz/live"); code != http.StatusOK {
		t.Errorf("live = %d", code)
	}
	if code, body := get(t, health+"/healthz/ready"); code != http.StatusServiceUnavailable || !strings.Contains(body, "not been read") {
		t.Errorf("ready = %d %q before there is a folder", code, body)
	}
	if err := os.Mkdir(p.cfg.KubeDir, 0o700); err != nil {
		t.Fatal(err)
	}
	p.write("mesh.yaml", meshYAML)
	cc := p.dial()
	subscribe(t, cc, p.as(tokenA)).until(webWorkload, webService)
	if code, _ := get(t, health+"/ready"); code != http.StatusOK {
		t.Errorf("ready = %d", code)
	}
	if _, err := sign(t, cc, p.as(tokenA), "spiffe://cluster.local/ns/app/sa/web"); err != nil {
		t.Fatal(err)
	}
	_, body := get(t, "http://"+p.cp.listeners.metrics.Addr().String()+"/metrics")
	for _, want := range []string{
		"citadel_server_success_cert_issuance_count 1", "pilot_xds 1", `pilot_xds_pushes{type="istio.workload.Address"}`,
		`warren_model_resources{kind="workload"} 1`, "citadel_server_root_cert_expiry_timestamp",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics lack %q", want)
		}
	}
}

// A second start has the same root, and the log shows the configuration and no secret.
func TestRestartKeepsRoot(t *testing.T) {
	cfg := testConfig(t)
	var roots []string
	for range 2 {
		log := &lockedBuffer{}
		cp, err := New(cfg, slog.New(slog.NewTextHandler(log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		cp.Close()
		root, err := os.ReadFile(filepath.Join(cfg.StateDir, "root-cert.pem"))
		if err != nil {
			t.Fatal(err)
		}
		roots = append(roots, string(root))
		if got := log.String(); !strings.Contains(got, "config.kube-dir="+cfg.KubeDir) || strings.Contains(got, tokenA) {
			t.Errorf("log = %s", got)
		}
	}
	if roots[0] != roots[1] {
		t.Error("the root changed with the restart")
	}
}

func TestNewFailsCleanly(t *testing.T) {
	taken := start(t, nil)
	for name, c := range map[string]struct {
		change func(*Config)
		says   string
	}{
		"address in use": {func(c *Config) { c.Listen = taken.cp.Addr().String() }, "--listen"},
		"no tokens":      {func(c *Config) { c.NodeTokens += "-none" }, "node tokens"},
		"no state":       {func(c *Config) { c.StateDir = c.NodeTokens }, "ca state"},
		"invalid":        {func(c *Config) { c.TrustDomain = "" }, "--trust-domain"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			c.change(&cfg)
			if _, err := New(cfg, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("err = %v, want %q in it", err, c.says)
			}
		})
	}
}
