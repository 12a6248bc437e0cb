package mtls_test

import (
	"crypto/x509"
	"fmt"
	"slices"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
)

// A bundle that cannot be used costs its own trust domain, and no other.
func TestFederationLeavesOutWhatIsBad(t *testing.T) {
	domain := func(name string) spiffeid.TrustDomain { return spiffeid.RequireTrustDomainFromString(name) }
	p := newPKI(t)
	root := p.cert
	key := newKey(t)
	leaf := p.sign(t, leafTemplate("spiffe://bad.test/a"), key.Public()) // no CA, as an X.509v1 root
	many := slices.Repeat([]*x509.Certificate{root}, 65)
	f, refused := mtls.NewFederation(map[spiffeid.TrustDomain][]*x509.Certificate{
		domain("good.test"): {root}, domain("bad.test"): {root, leaf}, domain("many.test"): many, domain("empty.test"): nil,
	})
	if len(f) != 1 || f[domain("good.test")] == nil {
		t.Errorf("accepts %v", f)
	}
	if len(refused) != 2 || refused[domain("bad.test")] == nil || refused[domain("many.test")] == nil {
		t.Errorf("refused %v", refused)
	}
	all := map[spiffeid.TrustDomain][]*x509.Certificate{}
	for n := range 70 {
		all[domain(fmt.Sprintf("td%02d.test", n))] = []*x509.Certificate{root}
	}
	f, refused = mtls.NewFederation(all)
	if len(f) != 64 || len(refused) != 6 || refused[domain("td69.test")] == nil {
		t.Errorf("accepts %d of 70 trust domains, refused %v", len(f), refused)
	}
}
