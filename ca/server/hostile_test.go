package server_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	pb "istio.io/api/security/v1alpha1"

	"github.com/warren-mesh/warren/ca/server"
)

// dialServer is a client of s over a socket, with what the control plane has around s.
func dialServer(t *testing.T, s *server.Server) pb.IstioCertificateServiceClient {
	t.Helper()
	client, _ := dialServerAt(t, s, grpc.MaxRecvMsgSize(4<<20))
	return client
}

func dialServerAt(t *testing.T, s *server.Server, more ...grpc.ServerOption) (client pb.IstioCertificateServiceClient, address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(append(server.Bound(), more...)...)
	s.Register(g)
	go g.Serve(l)
	t.Cleanup(g.Stop)
	cc, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return pb.NewIstioCertificateServiceClient(cc), l.Addr().String()
}

// withKey puts another key into a request, which is then not signed by its own.
func withKey(t *testing.T, csr string, pub crypto.PublicKey) string {
	t.Helper()
	block, _ := pem.Decode([]byte(csr))
	var request struct {
		Body struct {
			Version    int
			Subject    asn1.RawValue
			Key        asn1.RawValue
			Attributes asn1.RawValue
		}
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(block.Bytes, &request); err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	request.Body.Key = asn1.RawValue{FullBytes: key}
	der, err := asn1.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func csrBy(t *testing.T, key crypto.Signer, tmpl x509.CertificateRequest) string {
	t.Helper()
	if tmpl.URIs == nil {
		tmpl.URIs = []*url.URL{alice.URL()}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// What a node that was taken over may send: each is answered by InvalidArgument with the reason, over a socket, and the
// next request of a good one is served.
func TestHostileRequests(t *testing.T) {
	s, err := server.New(server.Config{Authority: newAuthority(t), TrustDomain: td, Authenticator: headerAuth{}, Authorizer: nodeAuthz{}})
	if err != nil {
		t.Fatal(err)
	}
	client := dialServer(t, s)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	huge := &rsa.PublicKey{N: new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 30_000), big.NewInt(1)), E: 1<<31 - 1}
	var many []*url.URL
	for range 200 {
		many = append(many, alice.URL())
	}
	ask := func(csr string, seconds int64, extra ...grpc.CallOption) error {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "node", "node-1")
		_, err := client.CreateCertificate(ctx, &pb.IstioCertificateRequest{Csr: csr, Metadata: want(alice.String()), ValidityDuration: seconds}, extra...)
		return err
	}
	good := csrBy(t, ec, x509.CertificateRequest{})
	for _, tt := range []struct {
		name    string
		csr     string
		seconds int64
		code    codes.Code
		says    string
	}{
		{"1 MB", strings.Repeat("A", 1<<20), 0, codes.InvalidArgument, "request too large"},
		{"1 MB of a good one's beginning", good + strings.Repeat("\n", 1<<20), 0, codes.InvalidArgument, "request too large"},
		{"just too large", strings.Repeat("A", 16<<10+1), 0, codes.InvalidArgument, "request too large"},
		{"6 MB", strings.Repeat("A", 6<<20), 0, codes.ResourceExhausted, "larger than max"},
		{"RSA of 30,000 bits, not signed", withKey(t, good, huge), 0, codes.InvalidArgument, "RSA key of 30000 bits"},
		{"somebody else's key", withKey(t, good, &other.PublicKey), 0, codes.InvalidArgument, "not signed by its own key"},
		{"200 names", csrBy(t, ec, x509.CertificateRequest{URIs: many}), 0, codes.InvalidArgument, "exactly one URI"},
		{"the control plane's name, too", csrBy(t, ec, x509.CertificateRequest{DNSNames: []string{"istiod.istio-system.svc"}}), 0, codes.InvalidArgument, "exactly one URI"},
		{"an address, too", csrBy(t, ec, x509.CertificateRequest{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}), 0, codes.InvalidArgument, "exactly one URI"},
		{"a mail address, too", csrBy(t, ec, x509.CertificateRequest{EmailAddresses: []string{"a@b"}}), 0, codes.InvalidArgument, "exactly one URI"},
		{"for 91 days", good, 91 * 86400, codes.InvalidArgument, "greater than the max"},
		{"for ever", good, 1<<63 - 1, codes.InvalidArgument, "greater than the max"},
		{"binary", "\xff\xfe", 0, codes.Internal, "invalid UTF-8"},
		{"a CA", csrBy(t, ec, x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}}}), 60, codes.OK, ""},
	} {
		err := ask(tt.csr, tt.seconds)
		if st := status.Convert(err); st.Code() != tt.code || !strings.Contains(st.Message(), tt.says) {
			t.Errorf("%s: %s %.200q, want %s %q", tt.name, st.Code(), st.Message(), tt.code, tt.says)
		}
		if err := ask(good, 60); err != nil {
			t.Fatalf("after %s a good request: %v", tt.name, err)
		}
	}
}
