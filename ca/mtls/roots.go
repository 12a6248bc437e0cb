package mtls

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
)

// maxRoots bounds a trust bundle: a root rotation needs two or three, a mesh of meshes a few more.
const maxRoots = 64

// Roots is an immutable set of trust anchors, built once and shared by every Identity that trusts it.
type Roots struct {
	certs []*x509.Certificate
	pool  *x509.CertPool
}

// NewRoots refuses an empty set (everything of the trust domain revoked: fail closed) and certificates that may not
// sign. Repeated certificates are kept once.
func NewRoots(certs []*x509.Certificate) (*Roots, error) {
	if len(certs) == 0 {
		return nil, errors.New("no root certificate present")
	}
	if len(certs) > maxRoots {
		return nil, fmt.Errorf("%d root certificates, more than %d", len(certs), maxRoots)
	}
	r := &Roots{pool: x509.NewCertPool()}
	seen := make(map[[sha256.Size]byte]bool, len(certs))
	for _, c := range certs {
		if !c.IsCA || !c.BasicConstraintsValid {
			return nil, fmt.Errorf("root certificate %.200q is not a CA", c.Subject)
		}
		// RFC 5280 §4.2.1.3 lets a CA leave key usage out; one that has it must be allowed to sign certificates.
		if c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0 {
			return nil, fmt.Errorf("root certificate %.200q may not sign certificates", c.Subject)
		}
		sum := sha256.Sum256(c.Raw)
		if seen[sum] {
			continue
		}
		seen[sum] = true
		r.certs = append(r.certs, c)
		r.pool.AddCert(c)
	}
	return r, nil
}

// Certificates lists the set in the order given. The caller owns the slice.
func (r *Roots) Certificates() []*x509.Certificate {
	if r == nil {
		return nil
	}
	return slices.Clone(r.certs)
}

// ParsePEM reads the certificates of a PEM text, refusing other block types, text that is no PEM, blocks that are damaged
// or cut off and more than limit certificates. An empty text gives none.
func ParsePEM(text []byte, limit int) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for rest := text; ; {
		var block *pem.Block
		var err error
		if block, rest, err = nextBlock(rest); err != nil {
			return nil, err
		}
		if block == nil {
			if len(out) == 0 && len(bytes.TrimSpace(text)) > 0 {
				return nil, errors.New("no PEM block found")
			}
			return out, nil
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block %q is not a certificate", block.Type)
		}
		if len(out) == limit {
			return nil, fmt.Errorf("more than %d certificates", limit)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
}

// nextBlock is pem.Decode, which passes over blocks that it cannot read, without doing so: what a writer has written half
// of, or a disk has damaged, is not a shorter list.
func nextBlock(text []byte) (*pem.Block, []byte, error) {
	block, rest := pem.Decode(text)
	looked, begun := text, 0
	if block != nil {
		looked, begun = text[:len(text)-len(rest)], 1
	}
	if bytes.Count(looked, []byte("-----BEGIN")) != begun {
		return nil, nil, errors.New("a PEM block is damaged or cut off")
	}
	return block, rest, nil
}
