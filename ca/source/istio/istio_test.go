package istio_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	pb "istio.io/api/security/v1alpha1"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/server"
	"github.com/warren-mesh/warren/ca/source/istio"
	"github.com/warren-mesh/warren/ca/svid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	td    = spiffeid.RequireTrustDomainFromString("td.test")
	alice = spiffeid.RequireFromPath(td, "/ns/app/sa/alice")
	bob   = spiffeid.RequireFromPath(td, "/ns/app/sa/bob")
)

const token = "0123456789abcdef0123456789abcdef"

// onNode lets a node have what is placed on it.
type onNode map[string]string

func (o onNode) Allowed(c server.Caller, id spiffeid.ID) error {
	if o[id.Path()] != c.Node {
		return fmt.Errorf("no pod of %s on %s", id, c.Node)
	}
	return nil
}

// ca is a control plane's CA on a real socket.
type ca struct {
	authority *authority.Authority
	address   string // host:port
	grpc      *grpc.Server
	log       *bytes.Buffer
	tokens    string // file
}

func newAuthority(t testing.TB) *authority.Authority {
	t.Helper()
	f, err := authority.Create(td, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a, err := authority.Load(f, authority.Policy{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func startCA(t *testing.T, a *authority.Authority, address string, placed onNode) *ca {
	t.Helper()
	c := &ca{authority: a, log: &bytes.Buffer{}, tokens: filepath.Join(t.TempDir(), "tokens")}
	if err := os.WriteFile(c.tokens, []byte(token+" node-1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(&locked{w: c.log}, nil))
	tokens, err := server.NewTokens(c.tokens, log)
	if err != nil {
		t.Fatal(err)
	}
	s, err := server.New(server.Config{Authority: a, TrustDomain: td, Authenticator: tokens, Authorizer: placed, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	c.serve(t, address, s.Register)
	return c
}

// serve runs a gRPC server with a serving certificate of the authority.
func (c *ca) serve(t testing.TB, address string, register func(grpc.ServiceRegistrar)) {
	t.Helper()
	serving := sync.OnceValues(func() (*tls.Certificate, error) {
		return c.authority.Serving([]string{"127.0.0.1", "istiod.istio-system.svc"}, time.Hour, time.Now())
	})
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	c.address = l.Addr().String()
	c.grpc = grpc.NewServer(grpc.Creds(credentials.NewTLS(mtls.ServerAuth(serving))))
	register(c.grpc)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.grpc.Serve(l)
	}()
	t.Cleanup(func() {
		c.grpc.Stop()
		<-done
	})
}

type locked struct {
	mu sync.Mutex
	w  *bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func newSigner(t testing.TB, cfg istio.Config) *istio.Signer {
	t.Helper()
	s, err := istio.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (c *ca) config() istio.Config {
	return istio.Config{
		Address:   "https://" + c.address,
		TLS:       trusting(func() []byte { return c.authority.RootsPEM() }),
		Token:     func() (string, error) { return " " + token + "\n", nil },
		ClusterID: "Kubernetes",
	}
}

func trusting(roots func() []byte) func() (*tls.Config, error) {
	cfg := mtls.ToServer(func() ([]byte, error) { return roots(), nil }, "127.0.0.1", "")
	return func() (*tls.Config, error) { return cfg, nil }
}

func start(t testing.TB, cfg svid.Config) *svid.Manager {
	t.Helper()
	m := svid.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = m.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return m
}

func TestManagerToAuthority(t *testing.T) {
	c := startCA(t, newAuthority(t), "127.0.0.1:0", onNode{alice.Path(): "node-1", bob.Path(): "node-2"})
	m := start(t, svid.Config{Signer: newSigner(t, c.config()), TTL: time.Hour, Wait: 2 * time.Second})
	i, err := m.Acquire(svid.Pod{UID: "pod-1"}, alice).Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if i.ID() != alice || time.Until(i.NotAfter()) > time.Hour || len(i.Roots()) != 1 {
		t.Errorf("got %s with %d roots", i, len(i.Roots()))
	}
	// Placed elsewhere: an answer that tells nothing, and a reason in the log of the CA.
	_, err = m.Acquire(svid.Pod{UID: "pod-2"}, bob).Identity(t.Context())
	if err == nil || !strings.Contains(err.Error(), "signing gRPC error (Unauthenticated): request impersonation authentication failure") {
		t.Errorf("got %v", err)
	}
	c.grpc.Stop() // the log is written no more
	if !strings.Contains(c.log.String(), "no pod of spiffe://td.test/ns/app/sa/bob on node-1") {
		t.Errorf("log: %s", c.log)
	}
}

// SVIDs of ten seconds, asked for through the whole stack. The rotation itself is tested in ca/svid without waiting.
func TestTenSecondsAreEnoughForTheWire(t *testing.T) {
	c := startCA(t, newAuthority(t), "127.0.0.1:0", onNode{alice.Path(): "node-1"})
	m := start(t, svid.Config{Signer: newSigner(t, c.config()), TTL: 10 * time.Second})
	i, err := m.Acquire(svid.Pod{UID: "pod-1"}, alice).Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(i.NotAfter()); left > 10*time.Second || left < 8*time.Second {
		t.Errorf("%s left", left)
	}
	if d := time.Until(m.Dump()[0].NextRefresh); d < 500*time.Millisecond || d > 5600*time.Millisecond {
		t.Errorf("renewal in %s", d)
	}
}

// answers counts what the CA answered.
type answers struct {
	mu    sync.Mutex
	codes map[codes.Code]int
}

func (a *answers) Answered(code codes.Code, _ time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.codes[code]++
}

// A CA that limits a node's rate is asked as often as it says, and all get their certificate.
func TestTheCAsRateIsKept(t *testing.T) {
	placed := onNode{}
	for n := range 60 {
		placed[fmt.Sprint("/ns/app/sa/", n)] = "node-1"
	}
	a := newAuthority(t)
	c := &ca{authority: a, tokens: filepath.Join(t.TempDir(), "tokens")}
	if err := os.WriteFile(c.tokens, []byte(token+" node-1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens, err := server.NewTokens(c.tokens, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	got := &answers{codes: map[codes.Code]int{}}
	s, err := server.New(server.Config{Authority: a, TrustDomain: td, Authenticator: tokens, Authorizer: placed, Observer: got, Rate: 20, Burst: 10})
	if err != nil {
		t.Fatal(err)
	}
	c.serve(t, "127.0.0.1:0", s.Register)
	m := start(t, svid.Config{Signer: newSigner(t, c.config()), TTL: time.Hour})
	var leases []*svid.Lease
	for n := range 60 {
		leases = append(leases, m.Acquire(svid.Pod{UID: fmt.Sprint(n)}, spiffeid.RequireFromPath(td, fmt.Sprint("/ns/app/sa/", n))))
	}
	for _, l := range leases {
		for end := time.Now().Add(2 * time.Minute); ; {
			if _, err := l.Identity(t.Context()); err == nil {
				break
			} else if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	}
	got.mu.Lock()
	defer got.mu.Unlock()
	t.Logf("answers: %v", got.codes)
	if got.codes[codes.OK] != 60 || got.codes[codes.ResourceExhausted] == 0 || got.codes[codes.ResourceExhausted] > 60 {
		t.Errorf("answers: %v; want 60 times OK, and no more refusals than that", got.codes)
	}
}

func sign(t *testing.T, s *istio.Signer) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := s.Sign(ctx, alice, []byte("junk"), time.Hour)
	return err
}

// The junk request reaches the CA: everything before it worked.
func reached(err error) bool {
	return err != nil && strings.Contains(err.Error(), "signing gRPC error (InvalidArgument): CSR signing error (no PEM certificate request found)")
}

func TestRootsAndTokenAreReadAgain(t *testing.T) {
	c := startCA(t, newAuthority(t), "127.0.0.1:0", onNode{alice.Path(): "node-1"})
	var mu sync.Mutex
	roots, tok := newAuthority(t).RootsPEM(), "not-a-token-of-anybody"
	cfg := c.config()
	cfg.TLS = trusting(func() []byte { mu.Lock(); defer mu.Unlock(); return roots })
	cfg.Token = func() (string, error) { mu.Lock(); defer mu.Unlock(); return tok, nil }
	s := newSigner(t, cfg)
	if err := sign(t, s); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("stranger: %v", err)
	}
	mu.Lock()
	roots = c.authority.RootsPEM()
	mu.Unlock()
	err := sign(t, s)
	var call *istio.CallError
	if !errors.As(err, &call) || call.Code != codes.Unauthenticated {
		t.Errorf("wrong token: %v", err)
	}
	mu.Lock()
	tok = token
	mu.Unlock()
	if err := sign(t, s); !reached(err) {
		t.Errorf("right token: %v", err)
	}
}

func TestServerNames(t *testing.T) {
	c := startCA(t, newAuthority(t), "127.0.0.1:0", onNode{alice.Path(): "node-1"})
	roots := func() ([]byte, error) { return c.authority.RootsPEM(), nil }
	for _, tt := range []struct {
		name, alt string
		ok        bool
	}{
		{"127.0.0.1", "", true}, {"istiod.istio-system.svc", "", true}, {"other.test", "", false}, {"other.test", "istiod.istio-system.svc", true},
	} {
		cfg := c.config()
		cfg.TLS = func() (*tls.Config, error) { return mtls.ToServer(roots, tt.name, tt.alt), nil }
		if err := sign(t, newSigner(t, cfg)); reached(err) != tt.ok {
			t.Errorf("%s or %s: %v", tt.name, tt.alt, err)
		}
	}
}

func TestTheCAComesBack(t *testing.T) {
	a := newAuthority(t)
	c := startCA(t, a, "127.0.0.1:0", onNode{alice.Path(): "node-1"})
	s := newSigner(t, c.config())
	if err := sign(t, s); !reached(err) {
		t.Fatal(err)
	}
	c.grpc.Stop()
	var call *istio.CallError
	if err := sign(t, s); !errors.As(err, &call) || call.Code != codes.Unavailable {
		t.Errorf("away: %v", err)
	}
	startCA(t, a, c.address, onNode{alice.Path(): "node-1"})
	if err := sign(t, s); !reached(err) {
		t.Errorf("back: %v", err)
	}
}

// script is a CA that answers what it is told and keeps what it got.
type script struct {
	pb.UnimplementedIstioCertificateServiceServer
	answer func(ctx context.Context) ([]string, error)
	req    *pb.IstioCertificateRequest
	md     metadata.MD
}

func (s *script) CreateCertificate(ctx context.Context, req *pb.IstioCertificateRequest) (*pb.IstioCertificateResponse, error) {
	s.req = req
	s.md, _ = metadata.FromIncomingContext(ctx)
	chain, err := s.answer(ctx)
	return &pb.IstioCertificateResponse{CertChain: chain}, err
}

func scripted(t *testing.T, s *script) *ca {
	c := &ca{authority: newAuthority(t)}
	c.serve(t, "127.0.0.1:0", func(g grpc.ServiceRegistrar) { pb.RegisterIstioCertificateServiceServer(g, s) })
	return c
}

func TestWhatIsSent(t *testing.T) {
	s := &script{answer: func(context.Context) ([]string, error) { return []string{"a", "b"}, nil }}
	cfg := scripted(t, s).config()
	cfg.Headers = map[string]string{"X-Team": "mesh"}
	got, err := newSigner(t, cfg).Sign(t.Context(), alice, []byte("csr"), 90*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a", "b"}, got); diff != "" {
		t.Error(diff)
	}
	if s.req.GetCsr() != "csr" || s.req.GetValidityDuration() != 5400 || s.req.GetMetadata().GetFields()["ImpersonatedIdentity"].GetStringValue() != alice.String() {
		t.Errorf("request %v", s.req)
	}
	for k, want := range map[string]string{"authorization": "Bearer " + token, "clusterid": "Kubernetes", "x-team": "mesh"} {
		if diff := cmp.Diff([]string{want}, s.md.Get(k)); diff != "" {
			t.Errorf("%s: %s", k, diff)
		}
	}
}

func TestAnswers(t *testing.T) {
	exhausted, err := status.New(codes.ResourceExhausted, "slow down").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(7 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	var retry *svid.RetryAfterError
	var permanent *svid.PermanentError
	for _, tt := range []struct {
		name  string
		err   error
		check func(error) bool
		text  string
	}{
		{"exhausted with a hint", exhausted.Err(), func(err error) bool { return errors.As(err, &retry) && retry.After == 7*time.Second }, "signing gRPC error (ResourceExhausted): slow down"},
		{"exhausted", status.Error(codes.ResourceExhausted, "x"), func(err error) bool { return errors.As(err, &retry) && retry.After == time.Second }, "signing gRPC error (ResourceExhausted): x"},
		{"not known yet", status.Error(codes.Unauthenticated, "x"), func(err error) bool { return !errors.As(err, &permanent) }, "signing gRPC error (Unauthenticated): x"},
		{"bad request", status.Error(codes.InvalidArgument, "x"), func(err error) bool { return errors.As(err, &permanent) }, "signing gRPC error (InvalidArgument): x"},
		{"empty chain", nil, func(error) bool { return true }, "chain returned from CA is empty for: " + alice.String()},
		{"endless text", status.Error(codes.Internal, strings.Repeat("x", 4000)), func(err error) bool { return len(err.Error()) < 1000 }, "signing gRPC error (Internal): xxx"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := scripted(t, &script{answer: func(context.Context) ([]string, error) { return nil, tt.err }})
			err := sign(t, newSigner(t, c.config()))
			if err == nil || !strings.HasPrefix(err.Error(), tt.text) || !tt.check(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// An answer of a megabyte and more is refused, whatever it is made of, and nobody else is held up by it.
func TestHugeAnswers(t *testing.T) {
	for name, chain := range map[string][]string{
		"one element":   {strings.Repeat("x", 2<<20), "root"},
		"many elements": slices.Repeat([]string{strings.Repeat("x", 1<<10)}, 2<<10),
		"just below":    {strings.Repeat("x", 900<<10), "root"},
	} {
		t.Run(name, func(t *testing.T) {
			c := scripted(t, &script{answer: func(context.Context) ([]string, error) { return chain, nil }})
			s := newSigner(t, c.config())
			var busy *svid.RetryAfterError
			if err := sign(t, s); errors.As(err, &busy) {
				t.Errorf("all requests pause: %v", err)
			}
			m := start(t, svid.Config{Signer: s, Wait: time.Second})
			if i, err := m.Acquire(svid.Pod{UID: "pod"}, alice).Identity(t.Context()); err == nil || len(err.Error()) > 2000 {
				t.Errorf("%v, an error of %d bytes", i, len(err.Error()))
			}
		})
	}
}

func TestACallHasADeadline(t *testing.T) {
	c := scripted(t, &script{answer: func(ctx context.Context) ([]string, error) { <-ctx.Done(); return nil, ctx.Err() }})
	cfg := c.config()
	cfg.Timeout = 50 * time.Millisecond
	_, err := newSigner(t, cfg).Sign(context.Background(), alice, nil, time.Hour)
	var call *istio.CallError
	if !errors.As(err, &call) || call.Code != codes.DeadlineExceeded || !errors.Is(err, svid.ErrSilent) {
		t.Errorf("got %v", err)
	}
}

func TestTokensThatCannotBeSent(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		token func() (string, error)
		want  string
	}{
		{"missing file", istio.TokenFile(filepath.Join(dir, "none")), "no such file"},
		{"empty file", istio.TokenFile(empty), "empty is empty"},
		{"white space", func() (string, error) { return " \n", nil }, "the token is empty"},
		{"two lines", func() (string, error) { return "secret\nx-evil: 1", nil }, "cannot be in a header"},
		{"huge", func() (string, error) { return strings.Repeat("x", 1<<20), nil }, "token of"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSigner(t, istio.Config{Address: "http://127.0.0.1:1", Token: tt.token})
			err := sign(t, s)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestAddresses(t *testing.T) {
	for address, ok := range map[string]bool{
		"https://istiod:15012": true, "https://[::1]:15012": true, "http://127.0.0.1:15010": true, "unix:///run/ca.sock": true,
		"": false, "istiod:15012": false, "https://istiod": false, "https://:15012": false, "unix://run/ca.sock": false, "ftp://x:1": false,
	} {
		s, err := istio.New(istio.Config{Address: address, TLS: trusting(func() []byte { return nil })})
		if (err == nil) != ok {
			t.Errorf("%q: %v", address, err)
		}
		if s != nil {
			s.Close()
		}
	}
	if _, err := istio.New(istio.Config{Address: "https://istiod:15012"}); err == nil {
		t.Error("https without TLS")
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ca.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	pb.RegisterIstioCertificateServiceServer(g, &script{answer: func(context.Context) ([]string, error) { return []string{"a", "b"}, nil }})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.Serve(l)
	}()
	defer func() {
		g.Stop()
		<-done
	}()
	if _, err := newSigner(t, istio.Config{Address: "unix://" + path}).Sign(t.Context(), alice, nil, time.Hour); err != nil {
		t.Error(err)
	}
}
