package authority_test

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/mtls"
)

// Whoever has the key of the root that we made can revoke what it signed, and the list counts.
func TestOurOwnRootCanRevoke(t *testing.T) {
	f, err := authority.Create(td, now)
	if err != nil {
		t.Fatal(err)
	}
	a, err := authority.Load(f, authority.Policy{}, now)
	if err != nil {
		t.Fatal(err)
	}
	own := newKey(t)
	leaf, err := a.Sign(request(t, own, x509.CertificateRequest{URIs: []*url.URL{alice.URL()}}), alice, 0, now)
	if err != nil {
		t.Fatal(err)
	}
	chain, root := parse(t, leaf.Chain[0]), parse(t, string(f.Cert))
	block, _ := pem.Decode(f.Key)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: now, NextUpdate: now.Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: chain[0].SerialNumber, RevocationTime: now}},
	}, root[0], key.(crypto.Signer))
	if err != nil {
		t.Fatal(err)
	}
	var revoked mtls.Revocations
	if _, err := revoked.Load(der); err != nil {
		t.Fatal(err)
	}
	i, err := mtls.NewIdentity(alice, own, chain, root, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.WithRevocations(&revoked).VerifyPeer(chain, x509.ExtKeyUsageClientAuth, now); !errors.Is(err, mtls.ErrRevoked) {
		t.Errorf("%v, want that it is revoked", err)
	}
}
