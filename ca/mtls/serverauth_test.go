package mtls_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/ca/mtls"
)

func pemOf(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// serving is a server's configuration for names.
func (p *pki) serving(t *testing.T, change func(*x509.Certificate)) *tls.Config {
	key := newKey(t)
	tmpl := &x509.Certificate{
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"istiod.istio-system.svc"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	if change != nil {
		change(tmpl)
	}
	leaf := p.sign(t, tmpl, key.Public())
	return mtls.ServerAuth(func() (*tls.Certificate, error) {
		return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}, nil
	})
}

func TestToServer(t *testing.T) {
	p, stranger := newPKI(t), newPKI(t)
	trust := func() ([]byte, error) { return pemOf(p.cert), nil }
	tests := []struct {
		name      string
		server    *tls.Config
		roots     func() ([]byte, error)
		host, alt string
		want      string // empty: accepted
	}{
		{"DNS name", p.serving(t, nil), trust, "istiod.istio-system.svc", "", ""},
		{"IPv4 address", p.serving(t, nil), trust, "127.0.0.1", "", ""},
		{"IPv6 address", p.serving(t, nil), trust, "::1", "", ""},
		{"other address", p.serving(t, nil), trust, "127.0.0.2", "", "127.0.0.2"},
		{"other name", p.serving(t, nil), trust, "evil.test", "", "evil.test"},
		{"alternative name", p.serving(t, nil), trust, "10.0.0.1", "istiod.istio-system.svc", ""},
		{"wrong alternative name", p.serving(t, nil), trust, "10.0.0.1", "evil.test", "evil.test"},
		{"no name", p.serving(t, nil), trust, "", "", "no server name"},
		{"untrusted", stranger.serving(t, nil), trust, "127.0.0.1", "", "unknown authority"},
		{"expired", p.serving(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }), trust, "127.0.0.1", "", "expired"},
		{"client certificate", p.serving(t, func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}), trust, "127.0.0.1", "", "incompatible key usage"},
		{"roots unreadable", p.serving(t, nil), func() ([]byte, error) { return nil, errors.New("no such file") }, "127.0.0.1", "", "no such file"},
		{"roots empty", p.serving(t, nil), func() ([]byte, error) { return nil, nil }, "127.0.0.1", "", "empty"},
		{"roots of the system", p.serving(t, nil), nil, "127.0.0.1", "", "x509:"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := shake(mtls.ToServer(tt.roots, tt.host, tt.alt).Clone(), tt.server)
			if tt.want == "" && r.client != nil {
				t.Error(r.client)
			}
			if tt.want != "" && (r.client == nil || !strings.Contains(r.client.Error(), tt.want)) {
				t.Errorf("got %v, want %q", r.client, tt.want)
			}
		})
	}
	t.Run("name filled in by the caller's stack", func(t *testing.T) {
		c := mtls.ToServer(trust, "", "").Clone()
		c.ServerName = "istiod.istio-system.svc"
		if r := shake(c, p.serving(t, nil)); r.client != nil {
			t.Error(r.client)
		}
		c.ServerName = "evil.test"
		if r := shake(c, p.serving(t, nil)); r.client == nil {
			t.Error("another name is accepted")
		}
	})
}

func TestToServerReadsRootsAgain(t *testing.T) {
	old, next := newPKI(t), newPKI(t)
	now := pemOf(old.cert)
	c := mtls.ToServer(func() ([]byte, error) { return now, nil }, "127.0.0.1", "")
	if r := shake(c, next.serving(t, nil)); r.client == nil {
		t.Error("trusted too early")
	}
	now = pemOf(next.cert)
	if r := shake(c, next.serving(t, nil)); r.client != nil {
		t.Error(r.client)
	}
	if r := shake(c, old.serving(t, nil)); r.client == nil {
		t.Error("trusted too long")
	}
}
