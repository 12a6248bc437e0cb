package authority

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
)

// MaxCSR bounds a certificate request in PEM; one with an RSA-4096 key is about 2 KiB.
const MaxCSR = 16 << 10

// maxID is what SPIFFE-ID §2.3 asks implementations to accept, and at most what we accept.
const maxID = 2048

// CSRError says what is wrong with a certificate request. The text names nothing but the request.
type CSRError struct{ Err error }

func (e *CSRError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *CSRError) Unwrap() error { return e.Err }

// TTLError says that a longer lifetime was asked for than the policy allows.
type TTLError struct{ Requested, Max time.Duration }

func (e *TTLError) Error() string {
	return fmt.Sprintf("requested TTL %s is greater than the max allowed TTL %s", e.Requested, e.Max)
}

// Leaf says what was signed, for the answer and for the audit log.
type Leaf struct {
	Chain    []string // leaf, intermediates, and the root bundle as the last element, all PEM
	Serial   string   // hex
	Issuer   string   // CertID of the issuing certificate
	NotAfter time.Time
}

// Sign answers a workload's request: a certificate for exactly id with the request's key, valid from two minutes
// before now until now+ttl or the issuer's end. ttl of zero or less means the default. Whether the caller may have id
// was decided before. Errors that are the caller's fault are *CSRError and *TTLError.
func (a *Authority) Sign(csrPEM []byte, id spiffeid.ID, ttl time.Duration, now time.Time) (Leaf, error) {
	csr, err := checkCSR(csrPEM, id)
	if err != nil {
		return Leaf{}, &CSRError{Err: err}
	}
	if ttl <= 0 {
		ttl = a.policy.DefaultTTL
	}
	if ttl > a.policy.MaxTTL {
		return Leaf{}, &TTLError{Requested: ttl, Max: a.policy.MaxTTL}
	}
	cert, err := a.leaf(csr.PublicKey, id, ttl, now)
	if err != nil {
		return Leaf{}, fmt.Errorf("authority: %w", err)
	}
	chain := []string{string(encodeCerts([]*x509.Certificate{cert}))}
	chain = append(chain, a.chain...)
	chain = append(chain, string(a.roots))
	return Leaf{Chain: chain, Serial: cert.SerialNumber.Text(16), Issuer: a.id, NotAfter: cert.NotAfter}, nil
}

// leaf is a workload's certificate.
func (a *Authority) leaf(pub crypto.PublicKey, id spiffeid.ID, ttl time.Duration, now time.Time) (*x509.Certificate, error) {
	return a.issue(&x509.Certificate{
		URIs: []*url.URL{id.URL()},
		// keyEncipherment means nothing for ECDSA keys; Istio's profile has it, and RSA workloads need it.
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, pub, ttl, now)
}

// issue completes tmpl with what all our leaves share and signs it. The empty subject makes crypto/x509 mark the SAN
// critical.
func (a *Authority) issue(tmpl *x509.Certificate, pub crypto.PublicKey, ttl time.Duration, now time.Time) (*x509.Certificate, error) {
	if !now.Before(a.until) {
		return nil, fmt.Errorf("the issuing certificate expired at %s", a.until.UTC().Format(time.RFC3339))
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl.SerialNumber = serial
	tmpl.NotBefore = now.Add(-backdate)
	if tmpl.NotAfter = now.Add(ttl); tmpl.NotAfter.After(a.until) {
		tmpl.NotAfter = a.until
	}
	tmpl.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, pub, a.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// checkCSR takes from a request only its key, and still wants the rest to be right: a request for another name than
// the one authorized is a confused or a lying client.
func checkCSR(text []byte, id spiffeid.ID) (*x509.CertificateRequest, error) {
	if len(text) > MaxCSR {
		return nil, fmt.Errorf("request of %d bytes, more than %d", len(text), MaxCSR)
	}
	if id.Path() == "" || len(id.String()) > maxID {
		return nil, errors.New("the requested identity is not a workload's SPIFFE ID")
	}
	block, rest := pem.Decode(text)
	if block == nil || (block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST") {
		return nil, errors.New("no PEM certificate request found")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("something follows the certificate request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, errors.New("the certificate request does not parse")
	}
	// The key before the signature: the work of checking one grows with the key.
	if err := mtls.CheckPublicKey(csr.PublicKey); err != nil {
		return nil, err
	}
	if a := csr.SignatureAlgorithm; a == x509.SHA1WithRSA || a == x509.ECDSAWithSHA1 {
		return nil, fmt.Errorf("the certificate request is signed with %s", a)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, errors.New("the certificate request is not signed by its own key")
	}
	if len(csr.URIs) != 1 || len(csr.DNSNames)+len(csr.EmailAddresses)+len(csr.IPAddresses) > 0 {
		return nil, errors.New("the request's SAN must be exactly one URI")
	}
	got, err := spiffeid.FromURI(csr.URIs[0])
	if err != nil || got != id {
		return nil, errors.New("the request's SAN is not the requested identity")
	}
	return csr, nil
}
