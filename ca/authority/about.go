package authority

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
)

// CertID names a certificate by the SHA-256 of its DER in hex; empty for text that is no PEM.
func CertID(text []byte) string {
	block, _ := pem.Decode(text)
	if block == nil {
		return ""
	}
	return idOf(block.Bytes)
}

func idOf(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// FromTLS takes an authority apart that was written in the manner of a TLS Secret: the certificate is followed by those
// above it.
func FromTLS(cert, key, roots []byte) (Files, error) {
	switch {
	case len(cert) == 0:
		return Files{}, errors.New("tls.crt is missing")
	case len(key) == 0:
		return Files{}, errors.New("tls.key is missing")
	}
	block, above := pem.Decode(cert)
	if block == nil {
		return Files{}, errors.New("tls.crt is not PEM")
	}
	return Files{Cert: pem.EncodeToMemory(block), Key: key, Chain: above, Roots: roots}, nil
}

// ID is CertID of the issuing certificate.
func (a *Authority) ID() string { return a.id }

// RootIDs are CertID of the roots that go with every certificate. Not to be changed.
func (a *Authority) RootIDs() []string { return a.rootIDs }

// About is what a certificate is known by.
type About struct {
	ID       string    `json:"id"`
	Subject  string    `json:"subject"`
	Serial   string    `json:"serial"`
	NotAfter time.Time `json:"notAfter"`
}

// Describe tells of a certificate in PEM; zero for one that does not parse.
func Describe(text []byte) About {
	c, err := parseOne(text)
	if err != nil {
		return About{}
	}
	return About{ID: idOf(c.Raw), Subject: c.Subject.String(), Serial: c.SerialNumber.Text(16), NotAfter: c.NotAfter.UTC()}
}

func parseOne(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no PEM block found")
	}
	return x509.ParseCertificate(block.Bytes)
}

// Successor makes a new root for the trust domain of one that Create made.
func Successor(f Files, now time.Time) (Files, error) {
	c, err := parseOne(f.Cert)
	if err != nil {
		return Files{}, fmt.Errorf("authority: ca-cert.pem: %w", err)
	}
	// A signature of its own makes a root; CheckSignatureFrom wants the same name as well.
	if c.CheckSignatureFrom(c) != nil || len(c.Subject.Organization) != 1 {
		return Files{}, fmt.Errorf("authority: the CA (%s) is not a root that was made here; what issued it rotates it", c.Subject)
	}
	td, err := spiffeid.TrustDomainFromString(c.Subject.Organization[0])
	if err != nil {
		return Files{}, fmt.Errorf("authority: the CA (%s) is not a root that was made here: its organization is no trust domain", c.Subject)
	}
	return Create(td, now)
}

func idsOf(certs []*x509.Certificate) []string {
	out := make([]string, len(certs))
	for i, c := range certs {
		out[i] = idOf(c.Raw)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// SameBundle says whether two bundles in PEM hold the same roots.
func SameBundle(a, b []byte) bool {
	x, err := mtls.ParsePEM(a, maxRoots)
	if err != nil {
		return false
	}
	y, err := mtls.ParsePEM(b, maxRoots)
	return err == nil && slices.Equal(idsOf(x), idsOf(y))
}

// InBundle says whether a bundle in PEM holds the root of that CertID.
func InBundle(bundle []byte, id string) bool {
	certs, err := mtls.ParsePEM(bundle, maxRoots)
	return err == nil && slices.Contains(idsOf(certs), id)
}
