package server_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	pb "istio.io/api/security/v1alpha1"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	td    = spiffeid.RequireTrustDomainFromString("td.test")
	alice = spiffeid.RequireFromPath(td, "/ns/app/sa/alice")
	bob   = spiffeid.RequireFromPath(td, "/ns/app/sa/bob")
)

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

func csr(t testing.TB, id spiffeid.ID) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{id.URL()}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// headerAuth takes the caller from a header, as it is.
type headerAuth struct{}

func (headerAuth) Authenticate(ctx context.Context) (server.Caller, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get("node"); len(v) == 1 {
		return server.Caller{Node: v[0]}, nil
	}
	if v := md.Get("identity"); len(v) == 1 {
		return server.Caller{Identity: spiffeid.RequireFromString(v[0])}, nil
	}
	if len(md.Get("slow")) == 1 {
		return server.Caller{}, status.Error(codes.Unavailable, "secret reason three")
	}
	return server.Caller{}, errors.New("secret reason one")
}

// nodeAuthz lets node-1 have alice.
type nodeAuthz struct{}

func (nodeAuthz) Allowed(c server.Caller, id spiffeid.ID) error {
	if c.Node == "node-3" {
		return fmt.Errorf("of pods: %w", status.Error(codes.Unavailable, "secret reason four"))
	}
	if c.Node != "node-1" || id.Path() != alice.Path() {
		return errors.New("secret reason two")
	}
	return nil
}

func as(kind, name string) context.Context {
	return metadata.NewIncomingContext(context.Background(), metadata.Pairs(kind, name))
}

func want(id string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{"ImpersonatedIdentity": structpb.NewStringValue(id)}}
}

func TestCodesAreThoseOfIstiod(t *testing.T) {
	const (
		auth = "request authenticate failure"
		imp  = "request impersonation authentication failure"
		off  = "callers cannot be authenticated now, try again"
	)
	node1 := as("node", "node-1")
	tests := []struct {
		name string
		ctx  context.Context
		req  *pb.IstioCertificateRequest
		code codes.Code
		msg  string
	}{
		{"good", node1, &pb.IstioCertificateRequest{Csr: csr(t, alice), Metadata: want(alice.String()), ValidityDuration: 60}, codes.OK, ""},
		{"nobody", context.Background(), &pb.IstioCertificateRequest{Csr: csr(t, alice), Metadata: want(alice.String())}, codes.Unauthenticated, auth},
		{"nothing known of the caller", as("slow", "1"), &pb.IstioCertificateRequest{Csr: csr(t, alice), Metadata: want(alice.String())}, codes.Unavailable, off},
		{"nothing known of pods", as("node", "node-3"), &pb.IstioCertificateRequest{Csr: csr(t, alice), Metadata: want(alice.String())}, codes.Unavailable, off},
		{"another node", as("node", "node-2"), &pb.IstioCertificateRequest{Csr: csr(t, alice), Metadata: want(alice.String())}, codes.Unauthenticated, imp},
		{"not on the node", node1, &pb.IstioCertificateRequest{Csr: csr(t, bob), Metadata: want(bob.String())}, codes.Unauthenticated, imp},
		{"another trust domain", node1, &pb.IstioCertificateRequest{Csr: csr(t, alice), Metadata: want("spiffe://other.test/ns/app/sa/alice")}, codes.Unauthenticated, imp},
		{"junk identity", node1, &pb.IstioCertificateRequest{Csr: csr(t, alice), Metadata: want("hello")}, codes.Unauthenticated, imp},
		{"huge identity", node1, &pb.IstioCertificateRequest{Csr: csr(t, alice), Metadata: want(alice.String() + strings.Repeat("x", 5000))}, codes.Unauthenticated, imp},
		{"identity of another type", node1, &pb.IstioCertificateRequest{Csr: csr(t, alice), Metadata: &structpb.Struct{
			Fields: map[string]*structpb.Value{"ImpersonatedIdentity": structpb.NewNumberValue(1)},
		}}, codes.Unauthenticated, imp},
		{"a node for itself", node1, &pb.IstioCertificateRequest{Csr: csr(t, alice)}, codes.Unauthenticated, imp},
		{"a workload for itself", as("identity", bob.String()), &pb.IstioCertificateRequest{Csr: csr(t, bob)}, codes.OK, ""},
		{"a workload for another", as("identity", bob.String()), &pb.IstioCertificateRequest{Csr: csr(t, alice), Metadata: want(alice.String())}, codes.Unauthenticated, imp},
		{"a workload of another trust domain for itself", as("identity", "spiffe://other.test/ns/app/sa/alice"), &pb.IstioCertificateRequest{Csr: csr(t, spiffeid.RequireFromString("spiffe://other.test/ns/app/sa/alice"))}, codes.Unauthenticated, imp},
		{"no CSR", node1, &pb.IstioCertificateRequest{Metadata: want(alice.String())}, codes.InvalidArgument, "CSR signing error (no PEM certificate request found)"},
		{"huge CSR", node1, &pb.IstioCertificateRequest{Csr: strings.Repeat("x", 1<<20), Metadata: want(alice.String())}, codes.InvalidArgument, "CSR signing error (request too large)"},
		{"CSR of another", node1, &pb.IstioCertificateRequest{Csr: csr(t, bob), Metadata: want(alice.String())}, codes.InvalidArgument, "CSR signing error (the request's SAN is not the requested identity)"},
		{"too long", node1, &pb.IstioCertificateRequest{Csr: csr(t, alice), Metadata: want(alice.String()), ValidityDuration: 91 * 86400}, codes.InvalidArgument,
			"CSR signing error (requested TTL 2184h0m0s is greater than the max allowed TTL 2160h0m0s)"},
		{"longer than time", node1, &pb.IstioCertificateRequest{Csr: csr(t, alice), Metadata: want(alice.String()), ValidityDuration: math.MaxInt64}, codes.InvalidArgument, "CSR signing error (requested TTL"},
		{"before time", node1, &pb.IstioCertificateRequest{Csr: csr(t, alice), Metadata: want(alice.String()), ValidityDuration: math.MinInt64}, codes.OK, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var log bytes.Buffer
			s, err := server.New(server.Config{Authority: newAuthority(t), TrustDomain: td, Authenticator: headerAuth{}, Authorizer: nodeAuthz{},
				Log: slog.New(slog.NewTextHandler(&log, nil))})
			if err != nil {
				t.Fatal(err)
			}
			resp, err := s.CreateCertificate(tt.ctx, tt.req)
			if st := status.Convert(err); st.Code() != tt.code || !strings.HasPrefix(st.Message(), tt.msg) || strings.Contains(st.Message(), "secret") {
				t.Errorf("got %s %q", st.Code(), st.Message())
			}
			if tt.code == codes.OK {
				if len(resp.GetCertChain()) != 2 {
					t.Errorf("chain of %d", len(resp.GetCertChain()))
				}
				if n := strings.Count(log.String(), "certificate signed"); n != 1 {
					t.Errorf("audit log: %s", &log)
				}
			} else if !strings.Contains(log.String(), "certificate refused") || strings.Contains(log.String(), "certificate signed") {
				t.Errorf("log: %s", &log)
			}
		})
	}
}

func TestOneCallerCannotTakeAllSignatures(t *testing.T) {
	s, err := server.New(server.Config{Authority: newAuthority(t), TrustDomain: td, Authenticator: headerAuth{}, Authorizer: allowAll{}, Rate: 0.1, Burst: 3})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(node string) error {
		_, err := s.CreateCertificate(as("node", node), &pb.IstioCertificateRequest{Csr: csr(t, alice), Metadata: want(alice.String())})
		return err
	}
	for range 3 {
		if err := ask("node-1"); err != nil {
			t.Fatal(err)
		}
	}
	st := status.Convert(ask("node-1"))
	if st.Code() != codes.ResourceExhausted {
		t.Fatalf("got %s", st.Code())
	}
	info, ok := st.Details()[0].(*errdetails.RetryInfo)
	if d := info.GetRetryDelay().AsDuration(); !ok || d < 5*time.Second || d > 10*time.Second {
		t.Errorf("wait %s", d)
	}
	if err := ask("node-2"); err != nil {
		t.Errorf("another caller pays for it: %v", err)
	}
}

type allowAll struct{}

func (allowAll) Allowed(server.Caller, spiffeid.ID) error { return nil }

func TestCallersWithoutCredentialsCannotFillTheLog(t *testing.T) {
	var log bytes.Buffer
	s, err := server.New(server.Config{Authority: newAuthority(t), TrustDomain: td, Authenticator: headerAuth{}, Authorizer: allowAll{},
		Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	for range 5000 {
		if _, err := s.CreateCertificate(context.Background(), &pb.IstioCertificateRequest{}); err == nil {
			t.Fatal("signed")
		}
	}
	if n := strings.Count(log.String(), "\n"); n > 1000 {
		t.Errorf("%d lines", n)
	}
}

func TestConfigMistakesAreReportedTogether(t *testing.T) {
	_, err := server.New(server.Config{})
	for _, w := range []string{"authority", "trust domain", "authenticator", "authorizer"} {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("%v does not name the %s", err, w)
		}
	}
}

type answers []codes.Code

func (a *answers) Answered(c codes.Code, _ time.Duration) { *a = append(*a, c) }

func TestObserver(t *testing.T) {
	var got answers
	s, err := server.New(server.Config{Authority: newAuthority(t), TrustDomain: td, Authenticator: headerAuth{}, Authorizer: nodeAuthz{}, Observer: &got})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = s.CreateCertificate(context.Background(), &pb.IstioCertificateRequest{})
	_, _ = s.CreateCertificate(as("node", "node-1"), &pb.IstioCertificateRequest{Csr: csr(t, alice), Metadata: want(alice.String())})
	if fmt.Sprint(got) != "[Unauthenticated OK]" {
		t.Errorf("got %v", got)
	}
}
