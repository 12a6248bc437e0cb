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

// grower signs certificates that begin an hour ago, all with one key.
type grower struct {
	t   *testing.T
	key *ecdsa.PrivateKey
}

func newGrower(t *testing.T) grower {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return grower{t, key}
}

func (g grower) sign(name string, parent *x509.Certificate, left time.Duration, uris ...*url.URL) *x509.Certificate {
	g.t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, URIs: uris, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(left), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if len(uris) == 0 {
		tmpl.IsCA, tmpl.KeyUsage, tmpl.ExtKeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign, nil
	}
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, g.key.Public(), g.key)
	if err != nil {
		g.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		g.t.Fatal(err)
	}
	return c
}

// revoke makes a list of issuer's.
func (g grower) revoke(issuer *x509.Certificate, revoked ...*x509.Certificate) *mtls.Revocations {
	g.t.Helper()
	tmpl := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	for _, c := range revoked {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, issuer, g.key)
	if err != nil {
		g.t.Fatal(err)
	}
	var r mtls.Revocations
	if _, err := r.Load(der); err != nil {
		g.t.Fatal(err)
	}
	return &r
}

// grown makes a root, an intermediate and a leaf, each of which ends so long from now.
func grown(t *testing.T, id spiffeid.ID, root, middle, leaf time.Duration) (chain []*x509.Certificate, anchor *x509.Certificate) {
	t.Helper()
	g := newGrower(t)
	anchor = g.sign("root", nil, root)
	mid := g.sign("middle", anchor, middle)
	return []*x509.Certificate{g.sign("", mid, leaf, id.URL()), mid}, anchor
}

// held is an identity that trusts its agent's roots.
func held(t *testing.T, id spiffeid.ID) (*mtls.Identity, *fakeagent.Agent) {
	t.Helper()
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
	return i, agent
}

// TestDistrustIsNotOfAge: connections outlive the certificates that they were made with, whichever of them ends first, and
// not the trust in them.
func TestDistrustIsNotOfAge(t *testing.T) {
	id := spiffeid.RequireFromString("spiffe://cluster.local/ns/app/sa/a")
	foreign := spiffeid.RequireFromString("spiffe://partner.example/ns/app/sa/a")
	i, agent := held(t, id)
	const ended, lasts = -time.Minute, time.Hour
	for name, left := range map[string][3]time.Duration{
		"all last": {lasts, lasts, lasts}, "the leaf has ended": {lasts, lasts, ended}, "the intermediate has": {lasts, ended, lasts},
		"the root has": {ended, lasts, lasts}, "all have": {ended, 2 * ended, 3 * ended},
	} {
		chain, root := grown(t, id, left[0], left[1], left[2])
		partner, theirs := grown(t, foreign, left[0], left[1], left[2])
		bundle, refused := mtls.NewFederation(map[spiffeid.TrustDomain][]*x509.Certificate{foreign.TrustDomain(): {theirs}})
		if len(refused) > 0 {
			t.Fatal(refused)
		}
		if err := distrusts(i.WithFederation(bundle), partner, x509.ExtKeyUsageClientAuth); err != nil {
			t.Errorf("%s, of another trust domain: %v", name, err)
		}
		if err := distrusts(i, partner, x509.ExtKeyUsageClientAuth); !errors.Is(err, errDistrusted) {
			t.Errorf("%s, of another trust domain that is not federated any more: %v", name, err)
		}
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

// TestRevokedWhoeverHasEnded: neither does age keep what was revoked: not by an older certificate of the issuer that no list
// names any more, because it has ended.
func TestRevokedWhoeverHasEnded(t *testing.T) {
	const ended, lasts = -time.Minute, time.Hour
	id := spiffeid.RequireFromString("spiffe://cluster.local/ns/app/sa/a")
	i, agent := held(t, id)
	for name, tt := range map[string]struct {
		leaf, newer, older time.Duration
		revoked            string
		want               error
	}{
		"nobody is revoked":                   {lasts, lasts, ended, "", nil},
		"the newer issuer is":                 {lasts, lasts, ended, "newer", errRevoked},
		"both last, and the newer is":         {lasts, lasts, lasts, "newer", nil},
		"the older is":                        {lasts, lasts, ended, "older", nil},
		"both have ended, the newer is":       {lasts, ended, 2 * ended, "newer", errRevoked},
		"both have ended, the older is":       {lasts, ended, 2 * ended, "older", nil},
		"the leaf has ended, the newer is":    {ended, lasts, 2 * ended, "newer", errRevoked},
		"the leaf has ended, and is":          {ended, lasts, lasts, "leaf", errRevoked},
		"the issuers have ended, the leaf is": {lasts, ended, 2 * ended, "leaf", errRevoked},
	} {
		g := newGrower(t)
		root := g.sign("root", nil, lasts)
		newer, older := g.sign("middle", root, tt.newer), g.sign("middle", root, tt.older)
		leaf := g.sign("", newer, tt.leaf, id.URL())
		roots, err := mtls.NewRoots(append(agent.Roots(), root))
		if err != nil {
			t.Fatal(err)
		}
		lists := map[string]*mtls.Revocations{"": g.revoke(root, leaf), "newer": g.revoke(root, newer), "older": g.revoke(root, older), "leaf": g.revoke(newer, leaf)}
		for _, shown := range [][]*x509.Certificate{{leaf, newer, older}, {leaf, older, newer}} {
			if err := distrusts(i.WithRoots(roots).WithRevocations(lists[tt.revoked]), shown, x509.ExtKeyUsageClientAuth); !errors.Is(err, tt.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}
