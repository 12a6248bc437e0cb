package authority_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/mtls"
)

var (
	td    = spiffeid.RequireTrustDomainFromString("td.test")
	alice = spiffeid.RequireFromPath(td, "/ns/app/sa/alice")
	now   = time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)
)

func newAuthority(t testing.TB, p authority.Policy) *authority.Authority {
	t.Helper()
	f, err := authority.Create(td, now)
	if err != nil {
		t.Fatal(err)
	}
	a, err := authority.Load(f, p, now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func request(t testing.TB, key crypto.Signer, tmpl x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func requestFor(t testing.TB, id string) []byte {
	u, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	return request(t, newKey(t), x509.CertificateRequest{URIs: []*url.URL{u}})
}

func parse(t testing.TB, text string) []*x509.Certificate {
	t.Helper()
	certs, err := mtls.ParsePEM([]byte(text), 10)
	if err != nil || len(certs) == 0 {
		t.Fatalf("%v in %q", err, text)
	}
	return certs
}

func TestLeafProfile(t *testing.T) {
	a := newAuthority(t, authority.Policy{})
	key := newKey(t)
	csr := request(t, key, x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "ignored", Organization: []string{"ignored"}},
		URIs:    []*url.URL{alice.URL()},
	})
	leaf, err := a.Sign(csr, alice, 0, now)
	if err != nil {
		t.Fatal(err)
	}
	if len(leaf.Chain) != 2 || leaf.Chain[1] != string(a.RootsPEM()) || !strings.HasSuffix(leaf.Chain[0], "\n") {
		t.Fatalf("chain is %q", leaf.Chain)
	}
	c := parse(t, leaf.Chain[0])[0]
	type profile struct {
		Subject             string
		URIs                string
		NotBefore, NotAfter time.Time
		KeyUsage            x509.KeyUsage
		ExtKeyUsage         []x509.ExtKeyUsage
		CA, Basic           bool
		SKI                 int
		AKI                 bool
		Critical            []string
		SameKey             bool
	}
	got := profile{
		Subject: c.Subject.String(), URIs: c.URIs[0].String(), NotBefore: c.NotBefore, NotAfter: c.NotAfter,
		KeyUsage: c.KeyUsage, ExtKeyUsage: c.ExtKeyUsage, CA: c.IsCA, Basic: c.BasicConstraintsValid,
		SKI: len(c.SubjectKeyId), AKI: len(c.AuthorityKeyId) > 0, SameKey: key.PublicKey.Equal(c.PublicKey),
	}
	for _, e := range c.Extensions {
		if e.Critical {
			got.Critical = append(got.Critical, e.Id.String())
		}
	}
	want := profile{
		URIs: alice.String(), NotBefore: now.Add(-2 * time.Minute), NotAfter: now.Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		Basic:       true, AKI: true, SameKey: true,
		Critical: []string{"2.5.29.15", "2.5.29.19", "2.5.29.17"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n := c.SerialNumber.BitLen(); n > 128 || n < 64 || c.SerialNumber.Sign() <= 0 || leaf.Serial != c.SerialNumber.Text(16) {
		t.Errorf("serial %s", c.SerialNumber)
	}
	roots, err := mtls.NewRoots(parse(t, leaf.Chain[1]))
	if err != nil {
		t.Fatal(err)
	}
	if id, err := mtls.Verify([]*x509.Certificate{c}, roots, x509.ExtKeyUsageClientAuth, now); err != nil || id != alice {
		t.Errorf("our own verifier: %s, %v", id, err)
	}
}

func TestLifetimes(t *testing.T) {
	a := newAuthority(t, authority.Policy{DefaultTTL: time.Hour, MaxTTL: 48 * time.Hour})
	for _, tt := range []struct{ ask, want time.Duration }{
		{0, time.Hour}, {-5, time.Hour}, {10 * time.Second, 10 * time.Second}, {48 * time.Hour, 48 * time.Hour}, {48*time.Hour + 1, 0}, {1<<63 - 1, 0},
	} {
		leaf, err := a.Sign(requestFor(t, alice.String()), alice, tt.ask, now)
		var ttl *authority.TTLError
		if tt.want == 0 {
			if !errors.As(err, &ttl) {
				t.Errorf("%s: %v", tt.ask, err)
			}
			continue
		}
		if err != nil || !leaf.NotAfter.Equal(now.Add(tt.want)) {
			t.Errorf("%s: until %s, %v", tt.ask, leaf.NotAfter, err)
		}
	}
	if _, err := newAuthority(t, authority.Policy{}).Sign(requestFor(t, alice.String()), alice, 2161*time.Hour, now); err == nil ||
		err.Error() != "requested TTL 2161h0m0s is greater than the max allowed TTL 2160h0m0s" {
		t.Errorf("got %v", err)
	}
	// Nothing outlives its issuer.
	end := a.NotAfter()
	leaf, err := a.Sign(requestFor(t, alice.String()), alice, time.Hour, end.Add(-time.Minute))
	if err != nil || !leaf.NotAfter.Equal(end) {
		t.Errorf("until %s, %v; the issuer ends at %s", leaf.NotAfter, err, end)
	}
	if _, err := a.Sign(requestFor(t, alice.String()), alice, time.Hour, end.Add(time.Second)); err == nil {
		t.Error("an expired issuer signs")
	}
}

func TestBadRequests(t *testing.T) {
	a := newAuthority(t, authority.Policy{})
	good := requestFor(t, alice.String())
	block, _ := pem.Decode(good)
	forged := bytes.Clone(block.Bytes)
	forged[len(forged)-1] ^= 1
	rsa1024, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	one := []*url.URL{alice.URL()}
	tests := []struct {
		name string
		csr  []byte
		id   spiffeid.ID
		want string
	}{
		{"empty", nil, alice, "no PEM"},
		{"junk", []byte("hello"), alice, "no PEM"},
		{"huge", bytes.Repeat([]byte("x"), authority.MaxCSR+1), alice, "more than"},
		{"DER junk", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte{1, 2, 3}}), alice, "does not parse"},
		{"another block", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes}), alice, "no PEM certificate request"},
		{"two requests", append(bytes.Clone(good), good...), alice, "follows"},
		{"broken signature", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: forged}), alice, "not signed by its own key"},
		{"another identity", requestFor(t, "spiffe://td.test/ns/app/sa/bob"), alice, "not the requested identity"},
		{"another trust domain", requestFor(t, "spiffe://other.test/ns/app/sa/alice"), alice, "not the requested identity"},
		{"no SAN", request(t, newKey(t), x509.CertificateRequest{}), alice, "exactly one URI"},
		{"two URIs", request(t, newKey(t), x509.CertificateRequest{URIs: append(one, alice.URL())}), alice, "exactly one URI"},
		{"a DNS name, too", request(t, newKey(t), x509.CertificateRequest{URIs: one, DNSNames: []string{"istiod.istio-system.svc"}}), alice, "exactly one URI"},
		{"RSA 1024", request(t, rsa1024, x509.CertificateRequest{URIs: one}), alice, "1024"},
		{"P-224", request(t, p224, x509.CertificateRequest{URIs: one}), alice, "P-224"},
		{"signed with SHA-1", request(t, newKey(t), x509.CertificateRequest{URIs: one, SignatureAlgorithm: x509.ECDSAWithSHA1}), alice, "signed with ECDSA-SHA1"},
		{"no identity", good, spiffeid.ID{}, "not a workload"},
		{"a trust domain's identity", requestFor(t, "spiffe://td.test"), td.ID(), "not a workload"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := a.Sign(tt.csr, tt.id, 0, now)
			var csr *authority.CSRError
			if !errors.As(err, &csr) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	rsa2048, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Sign(request(t, rsa2048, x509.CertificateRequest{URIs: one}), alice, 0, now); err != nil {
		t.Errorf("RSA 2048: %v", err)
	}
}

// What a request asks for beyond its key does not reach the certificate.
func TestExtensionsOfTheRequestAreNotCopied(t *testing.T) {
	a := newAuthority(t, authority.Policy{})
	ca, err := asn1.Marshal(struct{ CA bool }{true})
	if err != nil {
		t.Fatal(err)
	}
	csr := request(t, newKey(t), x509.CertificateRequest{URIs: []*url.URL{alice.URL()}, ExtraExtensions: []pkix.Extension{
		{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: ca},
		{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: []byte{3, 2, 1, 6}},
	}})
	leaf, err := a.Sign(csr, alice, 0, now)
	if err != nil {
		t.Fatal(err)
	}
	if c := parse(t, leaf.Chain[0])[0]; c.IsCA || c.KeyUsage&x509.KeyUsageCertSign != 0 {
		t.Error("a workload made itself a CA")
	}
}

func certificate(t *testing.T, tmpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) []byte {
	t.Helper()
	tmpl.SerialNumber, _ = rand.Int(rand.Reader, big.NewInt(1<<62))
	tmpl.BasicConstraintsValid = true
	tmpl.NotBefore = now.Add(-time.Hour)
	if tmpl.NotAfter.IsZero() {
		tmpl.NotAfter = now.Add(24 * 365 * time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func keyPEM(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// A company's root, an intermediate for the mesh, two roots in the bundle during a change; RSA as Istio has it.
func TestPluggedInIntermediate(t *testing.T) {
	rootKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	midKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rootTmpl := &x509.Certificate{Subject: pkix.Name{CommonName: "root"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	root := certificate(t, rootTmpl, rootTmpl, rootKey.Public(), rootKey)
	mid := certificate(t, &x509.Certificate{Subject: pkix.Name{CommonName: "mid"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign},
		parse(t, string(root))[0], midKey.Public(), rootKey)
	other, err := authority.Create(td, now)
	if err != nil {
		t.Fatal(err)
	}
	bundle := append(bytes.Clone(root), other.Cert...)
	for _, key := range [][]byte{
		keyPEM(t, midKey),
		pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(midKey)}),
	} {
		// The chain as Istio's cacerts has it: with the issuing certificate and the root in it.
		a, err := authority.Load(authority.Files{Cert: mid, Key: key, Chain: append(bytes.Clone(mid), root...), Roots: bundle}, authority.Policy{}, now)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := a.Sign(requestFor(t, alice.String()), alice, 0, now)
		if err != nil {
			t.Fatal(err)
		}
		if len(leaf.Chain) != 3 || leaf.Chain[1] != string(mid) || leaf.Chain[2] != string(bundle) {
			t.Errorf("chain of %d: %v", len(leaf.Chain), leaf.Chain)
		}
		chain := append(parse(t, leaf.Chain[0]), parse(t, leaf.Chain[1])...)
		roots, err := mtls.NewRoots(parse(t, leaf.Chain[2]))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := mtls.Verify(chain, roots, x509.ExtKeyUsageServerAuth, now); err != nil {
			t.Error(err)
		}
	}
}

// Nothing outlives what its issuer hangs from, as long as there is no other way to a root.
func TestALeafEndsWithItsChain(t *testing.T) {
	key := newKey(t)
	ca := func(name string, parent *x509.Certificate, life time.Duration) []byte {
		tmpl := &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: now.Add(life)}
		if parent == nil {
			parent = tmpl
		}
		return certificate(t, tmpl, parent, key.Public(), key)
	}
	old, root := ca("root", nil, 6*time.Hour), ca("root", nil, 100*time.Hour)
	middle := ca("middle", parse(t, string(root))[0], 8*time.Hour)
	issuer := ca("issuer", parse(t, string(middle))[0], 50*time.Hour)
	for name, c := range map[string]struct {
		roots []byte
		want  time.Duration
	}{
		"an intermediate": {root, 8 * time.Hour},
		"the root":        {old, 6 * time.Hour},
		"the later way":   {append(bytes.Clone(old), root...), 8 * time.Hour},
	} {
		a, err := authority.Load(authority.Files{Cert: issuer, Key: keyPEM(t, key), Chain: middle, Roots: c.roots}, authority.Policy{}, now)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		leaf, err := a.Sign(requestFor(t, alice.String()), alice, 24*time.Hour, now)
		if want := now.Add(c.want).Truncate(time.Second); err != nil || !leaf.NotAfter.Equal(want) || !a.NotAfter().Equal(want) {
			t.Errorf("%s: until %s, %v; want %s", name, leaf.NotAfter, err, want)
		}
		if end := a.NotAfter(); a.EndsSoon(end.Add(-2*time.Hour)) || !a.EndsSoon(end.Add(-20*time.Minute)) {
			t.Errorf("%s: a tenth of its life is not when it ends soon", name)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	f, err := authority.Create(td, now)
	if err != nil {
		t.Fatal(err)
	}
	g, err := authority.Create(td, now)
	if err != nil {
		t.Fatal(err)
	}
	k := newKey(t)
	leafTmpl := &x509.Certificate{Subject: pkix.Name{CommonName: "leaf"}, KeyUsage: x509.KeyUsageDigitalSignature}
	leaf := certificate(t, leafTmpl, leafTmpl, k.Public(), k)
	for _, tt := range []struct {
		name  string
		files authority.Files
		p     authority.Policy
		at    time.Time
		want  string
	}{
		{"nothing", authority.Files{}, authority.Policy{}, now, "ca-cert.pem"},
		{"no key", authority.Files{Cert: f.Cert}, authority.Policy{}, now, "ca-key.pem"},
		{"junk key", authority.Files{Cert: f.Cert, Key: []byte("x")}, authority.Policy{}, now, "ca-key.pem"},
		{"another key", authority.Files{Cert: f.Cert, Key: g.Key}, authority.Policy{}, now, "is not the key"},
		{"another root", authority.Files{Cert: f.Cert, Key: f.Key, Roots: g.Cert}, authority.Policy{}, now, "does not lead to"},
		{"two certificates", authority.Files{Cert: append(bytes.Clone(f.Cert), g.Cert...), Key: f.Key}, authority.Policy{}, now, "one certificate"},
		{"not a CA", authority.Files{Cert: leaf, Key: keyPEM(t, k)}, authority.Policy{}, now, "may not sign"},
		{"expired", f, authority.Policy{}, now.Add(11 * 365 * 24 * time.Hour), "expired"},
		{"bad policy", f, authority.Policy{DefaultTTL: 2 * time.Hour, MaxTTL: time.Hour}, now, "default TTL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := authority.Load(tt.files, tt.p, tt.at)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := authority.Create(spiffeid.TrustDomain{}, now); err == nil {
		t.Error("a root without trust domain")
	}
}

func TestRecreate(t *testing.T) {
	f, err := authority.Create(td, now)
	if err != nil {
		t.Fatal(err)
	}
	g, err := authority.Recreate(td, f.Key, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := authority.Load(g, authority.Policy{}, now); err != nil {
		t.Error(err)
	}
	if _, err := authority.Recreate(td, []byte("x"), now); err == nil {
		t.Error("made a root for junk")
	}
}

func TestServing(t *testing.T) {
	a := newAuthority(t, authority.Policy{})
	cert, err := a.Serving([]string{"istiod.istio-system.svc", "127.0.0.1", "::1"}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []string{"istiod.istio-system.svc", "127.0.0.1", "::1"} {
		if err := cert.Leaf.VerifyHostname(h); err != nil {
			t.Error(err)
		}
	}
	if len(cert.Leaf.URIs) != 0 {
		t.Error("a serving certificate with an identity")
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.RootsPEM())
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "127.0.0.1"}); err != nil {
		t.Error(err)
	}
	if _, err := a.Serving(nil, 0, now); err == nil {
		t.Error("a certificate for nobody")
	}
	if _, err := a.Serving([]string{"x"}, 366*24*time.Hour, now); err == nil {
		t.Error("a serving certificate for more than a year")
	}
}

// FuzzCSR holds that whatever is signed is the requested identity's and nothing more.
func FuzzCSR(f *testing.F) {
	a := newAuthority(f, authority.Policy{})
	good := requestFor(f, alice.String())
	f.Add(string(good))
	f.Add(string(requestFor(f, "spiffe://td.test/ns/app/sa/bob")))
	f.Add(string(request(f, newKey(f), x509.CertificateRequest{DNSNames: []string{"x"}})))
	f.Add(string(good) + string(good))
	f.Add("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n")
	roots, err := mtls.NewRoots(parse(f, string(a.RootsPEM())))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, csr string) {
		leaf, err := a.Sign([]byte(csr), alice, time.Hour, now)
		if err != nil {
			var bad *authority.CSRError
			if !errors.As(err, &bad) {
				t.Errorf("a bad request is answered by %v", err)
			}
			return
		}
		c := parse(t, leaf.Chain[0])[0]
		if id, err := mtls.Verify([]*x509.Certificate{c}, roots, x509.ExtKeyUsageClientAuth, now); err != nil || id != alice {
			t.Errorf("signed %s, %v", id, err)
		}
		if len(c.DNSNames)+len(c.EmailAddresses)+len(c.IPAddresses) > 0 || c.Subject.String() != "" {
			t.Error("the certificate has further names")
		}
	})
}

func BenchmarkSign(b *testing.B) {
	a := newAuthority(b, authority.Policy{})
	csr := requestFor(b, alice.String())
	for b.Loop() {
		if _, err := a.Sign(csr, alice, 0, now); err != nil {
			b.Fatal(err)
		}
	}
}
