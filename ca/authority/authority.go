// Package authority is the certificate authority of a mesh: it signs workload certificates with the profile of Istio's
// CA, and serving certificates for the control plane.
//
// Kind: pure. Bytes in, bytes out; the caller reads and writes files (ca/server has a store) and passes the time.
// Used by ca/server, xds/controlplane and ca/source/fake.
package authority

import (
	"crypto/tls"
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Authority is an issuing certificate with its key. Immutable, safe for concurrent use.
type Authority struct{ stub int }

// Files are an authority's parts in PEM, under the names that Istio gives them.
type Files struct {
	Cert  []byte // ca-cert.pem: the issuing certificate
	Key   []byte // ca-key.pem
	Chain []byte // cert-chain.pem: between the issuing certificate and the root; may be empty
	Roots []byte // root-cert.pem: what everyone trusts; empty means Cert is the root
}

// Policy bounds lifetimes. Zero values mean 24 h and 90 days.
type Policy struct {
	DefaultTTL time.Duration // for requests that ask for none
	MaxTTL     time.Duration // longer requests are refused
}

// Leaf says what was signed, for the audit log.
type Leaf struct {
	Chain    []string // leaf, intermediates, then the root bundle as the last element
	Serial   string   // hex
	NotAfter time.Time
}

// Create makes a self-signed root for a trust domain, valid for ten years.
func Create(td spiffeid.TrustDomain, now time.Time) (Files, error) {
	return Files{}, errors.New("stub")
}

// Load builds the authority from its parts.
func Load(f Files, p Policy, now time.Time) (*Authority, error) { return nil, errors.New("stub") }

// Sign signs a workload's request.
func (a *Authority) Sign(csrPEM []byte, id spiffeid.ID, ttl time.Duration, now time.Time) (Leaf, error) {
	return Leaf{}, errors.New("stub")
}

// Serving makes a server certificate with a fresh key for hosts (DNS names or addresses).
func (a *Authority) Serving(hosts []string, ttl time.Duration, now time.Time) (*tls.Certificate, error) {
	return nil, errors.New("stub")
}

// RootsPEM is the bundle that everyone trusts.
func (a *Authority) RootsPEM() []byte { return nil }
