package mtls

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// What a peer may make us work on. A usual chain is one or two certificates of 1 KiB.
const (
	maxChain      = 5
	maxChainBytes = 32 << 10
	minRSABits    = 2048
	maxRSABits    = 8192 // as crypto/tls: verifying grows with the square of it
)

// ErrOther is of peers whose certificates are good, and somebody else's than was expected.
var ErrOther = errors.New("somebody else")

// otherError is ErrOther in ztunnel's words.
type otherError struct{ text string }

func (e *otherError) Error() string        { return e.text }
func (e *otherError) Is(target error) bool { return target == ErrOther }

// VerifyError is why a peer's certificate was not accepted. Its text begins as ztunnel's does, so that the same log
// searches find both.
type VerifyError struct{ Reason error }

func (e *VerifyError) Error() string { return "identity verification error: " + e.Reason.Error() }

// Unwrap gives the reason, for example an x509.CertificateInvalidError.
func (e *VerifyError) Unwrap() error { return e.Reason }

// Peer is the SPIFFE ID in the certificate that the other end of a finished handshake presented. It reads and does
// not judge: the configurations of this package let no handshake finish whose peer did not verify.
func Peer(cs tls.ConnectionState) (spiffeid.ID, error) {
	if len(cs.PeerCertificates) == 0 {
		return spiffeid.ID{}, errors.New("mtls: the peer presented no certificate")
	}
	id, err := leafID(cs.PeerCertificates[0])
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("mtls: %w", err)
	}
	return id, nil
}

// Verify judges chain (leaf first) as an X.509-SVID (SPIFFE X509-SVID §3–§5) under roots at the time now, used by its
// holder for usage, and returns the identity in it. Which identities are welcome is the caller's question. Issuers must be
// CAs that may sign certificates, as crypto/x509 has it; that their SPIFFE IDs have no path (§3.2) is not asked, because
// plugged-in CAs of Istio meshes carry ns/istio-system/sa/citadel.
func Verify(chain []*x509.Certificate, roots *Roots, usage x509.ExtKeyUsage, now time.Time) (spiffeid.ID, error) {
	id, err := verify(chain, roots, nil, usage, now)
	if err != nil {
		return spiffeid.ID{}, &VerifyError{Reason: err}
	}
	return id, nil
}

func verify(chain []*x509.Certificate, roots *Roots, revoked *Revocations, usage x509.ExtKeyUsage, now time.Time) (spiffeid.ID, error) {
	if err := checkBounds(chain); err != nil {
		return spiffeid.ID{}, err
	}
	if roots == nil {
		return spiffeid.ID{}, errors.New("no root certificate present")
	}
	leaf := chain[0]
	id, err := checkLeaf(leaf, usage)
	if err != nil {
		return spiffeid.ID{}, err
	}
	opts := x509.VerifyOptions{
		Roots:         roots.pool, // never nil: nil would mean the system's roots
		Intermediates: x509.NewCertPool(),
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	paths, err := leaf.Verify(opts)
	if err != nil {
		return spiffeid.ID{}, err
	}
	paths = slices.DeleteFunc(paths, func(p []*x509.Certificate) bool { return !strongPath(p) })
	if len(paths) == 0 {
		return spiffeid.ID{}, errors.New("a signing certificate's key is too weak")
	}
	// One way to a root on which nothing is revoked is enough: an issuer that was signed anew is a new one.
	for _, p := range paths {
		if err = revoked.check(p); err == nil {
			return id, nil
		}
	}
	return spiffeid.ID{}, err
}

func checkBounds(chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return errors.New("no certificate presented")
	}
	if len(chain) > maxChain {
		return fmt.Errorf("chain of %d certificates, more than %d", len(chain), maxChain)
	}
	var size int
	for _, c := range chain {
		size += len(c.Raw)
	}
	if size > maxChainBytes {
		return fmt.Errorf("chain of %d bytes, more than %d", size, maxChainBytes)
	}
	return nil
}

// leafID is the one SPIFFE ID of a leaf. More than one URI is refused even if only one of them is a SPIFFE ID
// (X509-SVID §2): two readers of one certificate must not see two identities.
func leafID(leaf *x509.Certificate) (spiffeid.ID, error) {
	switch len(leaf.URIs) {
	case 0:
		return spiffeid.ID{}, errors.New("the certificate has no SPIFFE ID")
	case 1:
	default:
		return spiffeid.ID{}, fmt.Errorf("the certificate has %d URIs, exactly one is allowed", len(leaf.URIs))
	}
	id, err := spiffeid.FromURI(leaf.URIs[0])
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("the certificate's URI is not a SPIFFE ID: %w", err)
	}
	if id.Path() == "" {
		return spiffeid.ID{}, fmt.Errorf("the certificate's SPIFFE ID %s names a trust domain, not a workload", id)
	}
	return id, nil
}

// checkLeaf applies the leaf rules of X509-SVID §4 and §5, which crypto/x509 and go-spiffe do not ask for.
func checkLeaf(leaf *x509.Certificate, usage x509.ExtKeyUsage) (spiffeid.ID, error) {
	id, err := leafID(leaf)
	if err != nil {
		return spiffeid.ID{}, err
	}
	if leaf.IsCA {
		return spiffeid.ID{}, errors.New("a CA certificate was presented as a workload's")
	}
	if leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 || !critical(leaf, oidKeyUsage) {
		return spiffeid.ID{}, errors.New("the certificate lacks a critical key usage with digitalSignature")
	}
	if leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return spiffeid.ID{}, errors.New("the certificate may sign certificates or revocation lists")
	}
	if !allows(leaf, usage) {
		return spiffeid.ID{}, fmt.Errorf("the certificate is not for %s", usageName(usage))
	}
	// RFC 5280 §4.2.1.6: the name is then only in the SAN.
	if emptySubject(leaf) && !critical(leaf, oidSubjectAltName) {
		return spiffeid.ID{}, errors.New("the certificate has neither a subject nor a critical SAN")
	}
	if err := CheckPublicKey(leaf.PublicKey); err != nil {
		return spiffeid.ID{}, err
	}
	return id, nil
}

func allows(leaf *x509.Certificate, usage x509.ExtKeyUsage) bool {
	if len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) == 0 {
		return true
	}
	return slices.Contains(leaf.ExtKeyUsage, usage) || slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny)
}

func usageName(u x509.ExtKeyUsage) string {
	switch u {
	case x509.ExtKeyUsageServerAuth:
		return "server authentication"
	case x509.ExtKeyUsageClientAuth:
		return "client authentication"
	default:
		return fmt.Sprintf("extended key usage %d", u)
	}
}

// CheckPublicKey is the floor for keys in certificates and certificate requests: ECDSA P-256 to P-521, RSA from 2048
// to 8192 bits, Ed25519.
func CheckPublicKey(pub any) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
		return fmt.Errorf("ECDSA key on %s: P-256, P-384 or P-521 is needed", k.Curve.Params().Name)
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return fmt.Errorf("RSA key of %d bits: from %d to %d are accepted", bits, minRSABits, maxRSABits)
		}
		return nil
	case ed25519.PublicKey:
		return nil
	default:
		return fmt.Errorf("key of type %T is not supported", pub)
	}
}

func strongPath(path []*x509.Certificate) bool {
	for _, c := range path {
		if CheckPublicKey(c.PublicKey) != nil {
			return false
		}
	}
	return true
}

var (
	oidKeyUsage       = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
)

func critical(c *x509.Certificate, oid asn1.ObjectIdentifier) bool {
	for _, e := range c.Extensions {
		if e.Id.Equal(oid) {
			return e.Critical
		}
	}
	return false
}

// emptySubject compares with the DER of an empty sequence: pkix.Name drops what it does not know.
func emptySubject(c *x509.Certificate) bool { return bytes.Equal(c.RawSubject, []byte{0x30, 0x00}) }

func join(ids []spiffeid.ID) string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.String()
	}
	return strings.Join(names, ", ")
}
