package proxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/fakeagent"
	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/svid"
)

// grown makes a root, an intermediate and a leaf, each of which ends so long from now. All have one key.
func grown(t *testing.T, id spiffeid.ID, root, middle, leaf time.Duration) (chain []*x509.Certificate, anchor *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(name string, parent *x509.Certificate, left time.Duration, uris ...*url.URL) *x509.Certificate {
		tmpl := &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, URIs: uris, BasicConstraintsValid: true,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(left), KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if len(uris) == 0 {
			tmpl.IsCA, tmpl.KeyUsage, tmpl.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
		}
		if parent == nil {
			parent = tmpl
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	anchor = sign("root", nil, root)
	mid := sign("middle", anchor, middle)
	return []*x509.Certificate{sign("", mid, leaf, id.URL()), mid}, anchor
}

// TestDistrustIsNotOfAge: connections outlive the certificates that they were made with, whichever of them ends first, and
// not the trust in them.
func TestDistrustIsNotOfAge(t *testing.T) {
	id := spiffeid.RequireFromString("spiffe://cluster.local/ns/app/sa/a")
	agent, err := fakeagent.New(id.TrustDomain(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	own, err := agent.Issue(id)
	if err != nil {
		t.Fatal(err)
	}
	key, err := svid.ParseKey(own.Key)
	if err != nil {
		t.Fatal(err)
	}
	i, err := mtls.NewIdentity(id, key, own.Chain, agent.Roots(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	const ended, lasts = -time.Minute, time.Hour
	for name, left := range map[string][3]time.Duration{
		"all last": {lasts, lasts, lasts}, "the leaf has ended": {lasts, lasts, ended}, "the intermediate has": {lasts, ended, lasts},
		"the root has": {ended, lasts, lasts}, "all have": {ended, 2 * ended, 3 * ended},
	} {
		chain, root := grown(t, id, left[0], left[1], left[2])
		// An older one in the peer's chain that nothing hangs from changes nothing.
		_, stray := grown(t, id, -59*time.Minute, lasts, lasts)
		roots, err := mtls.NewRoots(append(agent.Roots(), root))
		if err != nil {
			t.Fatal(err)
		}
		for _, shown := range [][]*x509.Certificate{chain, append(chain[:2:2], stray)} {
			if err := distrusts(i.WithRoots(roots), shown, x509.ExtKeyUsageClientAuth); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if err := distrusts(i, shown, x509.ExtKeyUsageClientAuth); !errors.Is(err, errDistrusted) {
				t.Errorf("%s, and the root is not trusted any more: %v", name, err)
			}
		}
	}
}
