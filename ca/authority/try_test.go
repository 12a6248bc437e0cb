package authority_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/authority"
)

// A CA that leads to its roots, and whose every leaf all peers would refuse, is not loaded.
func TestLoadTriesALeaf(t *testing.T) {
	key := newKey(t)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	named := func(name string) *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	}
	below := func(tmpl *x509.Certificate, parent []byte, by crypto.Signer) []byte {
		if parent == nil {
			return certificate(t, tmpl, tmpl, by.Public(), by)
		}
		return certificate(t, tmpl, parse(t, string(parent))[0], key.Public(), by)
	}
	for name, tt := range map[string]struct {
		key    crypto.Signer // of the root
		middle func(c *x509.Certificate)
		issuer func(c *x509.Certificate)
		more   int // certificates between
		want   string
	}{
		"as it should be":              {},
		"for this trust domain":        {issuer: func(c *x509.Certificate) { c.PermittedURIDomains = []string{td.Name()} }},
		"a parent for one level":       {middle: func(c *x509.Certificate) { c.MaxPathLenZero = true }, want: "too many intermediates"},
		"for mail":                     {issuer: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection} }, want: "incompatible key usage"},
		"for servers":                  {middle: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, want: "incompatible key usage"},
		"for another trust domain":     {middle: func(c *x509.Certificate) { c.PermittedURIDomains = []string{"else.test"} }, want: "not permitted"},
		"a root with a weak key":       {key: weak, want: "too weak"},
		"as many between as there may": {more: 2},
		"more than peers take":         {more: 3, want: "more than 5"},
	} {
		t.Run(name, func(t *testing.T) {
			by := crypto.Signer(key)
			if tt.key != nil {
				by = tt.key
			}
			root := below(named("root"), nil, by)
			m, i := named("middle"), named("issuer")
			if tt.middle != nil {
				tt.middle(m)
			}
			if tt.issuer != nil {
				tt.issuer(i)
			}
			chain := below(m, root, by)
			last := chain
			for range tt.more {
				last = below(named("another"), last, key)
				chain = append(bytes.Clone(last), chain...)
			}
			f := authority.Files{Cert: below(i, last, key), Key: keyPEM(t, key), Chain: chain, Roots: root}
			_, err := authority.Load(f, authority.Policy{TrustDomain: td}, now)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	// What the CA says of itself is believed where nothing else is known.
	i := named("issuer")
	i.PermittedURIDomains = []string{"else.test"}
	root := below(named("root"), nil, key)
	f := authority.Files{Cert: below(i, root, key), Key: keyPEM(t, key), Roots: root}
	if _, err := authority.Load(f, authority.Policy{}, now); err != nil {
		t.Error(err)
	}
	if _, err := authority.Load(f, authority.Policy{TrustDomain: spiffeid.RequireTrustDomainFromString("third.test")}, now); err == nil {
		t.Error("a CA was loaded that may not sign for the mesh's trust domain")
	}
}
