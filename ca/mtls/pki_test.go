package mtls_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
)

const td = "td.test"

func id(path string) spiffeid.ID { return spiffeid.RequireFromString("spiffe://" + td + path) }

// pki is a root that signs whatever it is told, unlike ca/authority.
type pki struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	p := &pki{key: newKey(t)}
	p.cert = p.sign(t, &x509.Certificate{
		Subject:   pkix.Name{Organization: []string{td}},
		NotBefore: time.Now().Add(-48 * time.Hour),
		IsCA:      true,
		KeyUsage:  x509.KeyUsageCertSign,
	}, p.key.Public())
	return p
}

func (p *pki) sign(t testing.TB, tmpl *x509.Certificate, pub crypto.PublicKey) *x509.Certificate {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		t.Fatal(err)
	}
	tmpl.SerialNumber = n
	tmpl.BasicConstraintsValid = true
	if tmpl.NotBefore.IsZero() {
		tmpl.NotBefore = time.Now().Add(-2 * time.Minute)
	}
	if tmpl.NotAfter.IsZero() {
		tmpl.NotAfter = time.Now().Add(time.Hour)
	}
	parent := p.cert
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, p.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// intermediate is a CA under p.
func (p *pki) intermediate(t testing.TB) *pki {
	t.Helper()
	k := newKey(t)
	return &pki{key: k, cert: p.sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "intermediate"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}, k.Public())}
}

func uris(text ...string) []*url.URL {
	var out []*url.URL
	for _, s := range text {
		u, err := url.Parse(s)
		if err != nil {
			panic(err)
		}
		out = append(out, u)
	}
	return out
}

func leafTemplate(uri ...string) *x509.Certificate {
	return &x509.Certificate{
		URIs:        uris(uri...),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

func (p *pki) identity(t testing.TB, path string) *mtls.Identity {
	t.Helper()
	k := newKey(t)
	leaf := p.sign(t, leafTemplate(id(path).String()), k.Public())
	i, err := mtls.NewIdentity(id(path), k, []*x509.Certificate{leaf}, []*x509.Certificate{p.cert}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// presenter is a hostile or broken peer: it presents what it is told and accepts everybody.
func presenter(key crypto.Signer, chain ...*x509.Certificate) *tls.Config {
	c := &tls.Certificate{PrivateKey: key}
	for _, x := range chain {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	cfg := &tls.Config{InsecureSkipVerify: true, ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{"h2"}}
	if len(chain) > 0 {
		cfg.Certificates = []tls.Certificate{*c}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c, nil }
	}
	return cfg
}

func weakKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	return k
}
