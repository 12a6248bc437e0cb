package authority

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
)

// trialKey is of certificates that nobody is given.
var trialKey = sync.OnceValues(func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) })

// try signs a leaf and judges it as all peers will: a certificate leads to a root, and may sign, and for the length of the
// path, its purposes, its names or the keys above it nothing that it signs is worth anything all the same.
func (a *Authority) try(roots []*x509.Certificate, now time.Time) error {
	key, err := trialKey()
	if err != nil {
		return err
	}
	id, err := spiffeid.FromPath(a.trialDomain(), "/ns/trial/sa/trial")
	if err != nil {
		return err
	}
	leaf, err := a.leaf(key.Public(), id, a.policy.DefaultTTL, now)
	if err != nil {
		return err
	}
	chain := []*x509.Certificate{leaf}
	for _, text := range a.chain {
		above, err := mtls.ParsePEM([]byte(text), maxChain+1)
		if err != nil {
			return err
		}
		chain = append(chain, above...)
	}
	trusted, err := mtls.NewRoots(roots)
	if err != nil {
		return err
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := mtls.Verify(chain, trusted, usage, now); err != nil {
			return err
		}
	}
	return nil
}

// trialDomain is one that what the CA says of itself lets it sign for.
func (a *Authority) trialDomain() spiffeid.TrustDomain {
	if !a.policy.TrustDomain.IsZero() {
		return a.policy.TrustDomain
	}
	names := slices.Clone(a.cert.PermittedURIDomains)
	for _, u := range a.cert.URIs {
		names = append([]string{u.Host}, names...)
	}
	for _, name := range names {
		if td, err := spiffeid.TrustDomainFromString(strings.TrimPrefix(name, ".")); err == nil {
			return td
		}
	}
	return spiffeid.RequireTrustDomainFromString("trial.invalid")
}
