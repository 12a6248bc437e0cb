// Package authority is the certificate authority of a mesh: it signs workload certificates with the profile of Istio's
// CA, and serving certificates for the control plane.
//
// Kind: pure. Bytes in, bytes out; the caller reads and writes files (ca/server has a store) and passes the time. Used
// by ca/server, xds/controlplane and ca/source/fake.
//
// # The root's key
//
// Create makes an ECDSA P-256 root where Istio makes RSA-2048. Every handshake of the mesh carries the leaf's
// signature and verifies it; P-256 makes the certificate some 190 bytes smaller and signing, which a CA does in bursts
// when a node starts, about thirty times cheaper, for a verification that costs some tens of microseconds more, once
// for each tunnel. ztunnel, Envoy and istiod all take it. Load accepts RSA as well, so that Istio's own root, or one
// issued by a company's PKI, can be plugged in.
package authority

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
)

const (
	defaultTTL = 24 * time.Hour
	maxTTL     = 90 * 24 * time.Hour
	// backdate lets a client whose clock is slow use its certificate at once.
	backdate = 2 * time.Minute
	maxChain = 4 // above the issuing certificate; whether peers accept that many is tried
	maxRoots = 16
)

// Authority is an issuing certificate with its key. Immutable, safe for concurrent use.
type Authority struct {
	key     crypto.Signer
	cert    *x509.Certificate
	chain   []string // PEM of what goes between a leaf and the roots
	roots   []byte
	id      string    // of cert, and …
	rootIDs []string  // … of roots, as CertID
	until   time.Time // when the last way from cert to a root ends
	policy  Policy
}

// Files are an authority's parts in PEM, under the names that Istio gives them.
type Files struct {
	Cert  []byte // ca-cert.pem: the issuing certificate
	Key   []byte // ca-key.pem: PKCS#8, SEC 1 or PKCS#1
	Chain []byte // cert-chain.pem: from the issuing certificate up, without the root; may be empty
	Roots []byte // root-cert.pem: what everyone trusts; may be empty where Cert is a root
}

// Policy bounds lifetimes. Zero values mean 24 h and 90 days.
type Policy struct {
	DefaultTTL time.Duration // for requests that ask for none
	MaxTTL     time.Duration // longer requests are refused
	// TrustDomain is that of the identities to come; Load tries one. Zero: what the CA names.
	TrustDomain spiffeid.TrustDomain
}

func (p Policy) withDefaults() (Policy, error) {
	if p.MaxTTL == 0 {
		p.MaxTTL = maxTTL
	}
	if p.DefaultTTL == 0 {
		p.DefaultTTL = min(defaultTTL, p.MaxTTL)
	}
	if p.DefaultTTL < 0 || p.MaxTTL < p.DefaultTTL {
		return p, fmt.Errorf("default TTL %s must be positive and at most the maximum of %s", p.DefaultTTL, p.MaxTTL)
	}
	return p, nil
}

// Load builds the authority from its parts and checks that they belong together: the key to the certificate, the
// certificate through Chain to Roots, everything valid at now.
func Load(f Files, p Policy, now time.Time) (*Authority, error) {
	a, err := load(f, p, now)
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	return a, nil
}

func load(f Files, p Policy, now time.Time) (*Authority, error) {
	p, err := p.withDefaults()
	if err != nil {
		return nil, err
	}
	certs, err := mtls.ParsePEM(f.Cert, 1)
	if err != nil || len(certs) == 0 {
		return nil, fmt.Errorf("ca-cert.pem must hold one certificate: %w", orEmpty(err))
	}
	key, err := parseKey(f.Key)
	if err != nil {
		return nil, fmt.Errorf("ca-key.pem: %w", err)
	}
	if len(bytes.TrimSpace(f.Roots)) == 0 {
		if certs[0].IsCA && certs[0].CheckSignatureFrom(certs[0]) != nil {
			return nil, errors.New("root-cert.pem is missing, and ca-cert.pem is not a root itself")
		}
		f.Roots = f.Cert
	}
	roots, err := mtls.ParsePEM(f.Roots, maxRoots)
	if err != nil || len(roots) == 0 {
		return nil, fmt.Errorf("root-cert.pem: %w", orEmpty(err))
	}
	above, err := mtls.ParsePEM(f.Chain, maxChain)
	if err != nil {
		return nil, fmt.Errorf("cert-chain.pem: %w", err)
	}
	a := &Authority{key: key, cert: certs[0], policy: p, roots: encodeCerts(roots), id: idOf(certs[0].Raw), rootIDs: idsOf(roots)}
	if a.until, err = checkIssuer(a.cert, key, above, roots, now); err != nil {
		return nil, err
	}
	a.chain = presented(a.cert, above, roots)
	if err := a.try(roots, now); err != nil {
		return nil, fmt.Errorf("nobody would accept what this CA signs: %w", err)
	}
	return a, nil
}

func orEmpty(err error) error {
	if err == nil {
		return errors.New("it is empty")
	}
	return err
}

// checkIssuer returns how long cert leads to a root: nothing that it signs is worth anything after.
func checkIssuer(cert *x509.Certificate, key crypto.Signer, above, roots []*x509.Certificate, now time.Time) (until time.Time, err error) {
	if !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return until, errors.New("ca-cert.pem may not sign certificates")
	}
	if err := mtls.CheckPublicKey(cert.PublicKey); err != nil {
		return until, fmt.Errorf("ca-cert.pem: %w", err)
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(cert.PublicKey) {
		return until, errors.New("ca-key.pem is not the key of ca-cert.pem")
	}
	if _, err := mtls.NewRoots(roots); err != nil {
		return until, fmt.Errorf("root-cert.pem: %w", err)
	}
	opts := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(),
		CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	for _, c := range roots {
		opts.Roots.AddCert(c)
	}
	for _, c := range above {
		opts.Intermediates.AddCert(c)
	}
	paths, err := cert.Verify(opts)
	if err != nil {
		return until, fmt.Errorf("ca-cert.pem does not lead to root-cert.pem: %w", err)
	}
	for _, path := range paths {
		end := slices.MinFunc(path, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) }).NotAfter
		if end.After(until) {
			until = end
		}
	}
	return until, nil
}

// presented is what a workload sends after its leaf: the issuing certificate and what lies above, without roots, which
// peers must have anyway.
func presented(cert *x509.Certificate, above, roots []*x509.Certificate) []string {
	var out []string
	seen := map[string]bool{}
	for _, r := range roots {
		seen[string(r.Raw)] = true
	}
	for _, c := range append([]*x509.Certificate{cert}, above...) {
		if seen[string(c.Raw)] {
			continue
		}
		seen[string(c.Raw)] = true
		out = append(out, string(encodeCerts([]*x509.Certificate{c})))
	}
	return out
}

// RootsPEM is the bundle that everyone trusts. The caller owns it.
func (a *Authority) RootsPEM() []byte { return bytes.Clone(a.roots) }

// NotAfter is when the issuing certificate, or what it hangs from, ends, and with it everything that it signed.
func (a *Authority) NotAfter() time.Time { return a.until }

// EndsSoon says that it is time for another authority: 30 days before NotAfter, or when a tenth is left of a short life.
func (a *Authority) EndsSoon(now time.Time) bool {
	return a.until.Sub(now) < min(30*24*time.Hour, a.until.Sub(a.cert.NotBefore)/10)
}

// TTL bounds in force, after defaults.
func (a *Authority) TTL() Policy { return a.policy }

func parseKey(text []byte) (crypto.Signer, error) {
	block, rest := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no PEM block found")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("more than one PEM block")
	}
	if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
		if s, ok := key.(crypto.Signer); ok {
			return s, nil
		}
		return nil, fmt.Errorf("a key of type %T cannot sign", key)
	}
	if key, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	return nil, errors.New("neither PKCS#8 nor SEC 1 nor PKCS#1") // no detail: it would quote a key
}

func encodeCerts(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// newSerial has 127 random bits: unguessable, positive, and within the 20 octets of RFC 5280 §4.1.2.2.
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	return n.Add(n, big.NewInt(1)), nil
}
