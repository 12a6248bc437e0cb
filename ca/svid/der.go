package svid

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bounds on what an agent sends of one SVID. A usual one has 3 KiB.
const (
	maxDER      = 64 << 10
	maxBundle   = 256 << 10
	maxDERCerts = 64
	maxName     = 255 // of a trust domain
)

// maxSVIDs bounds what one message may bring.
const maxSVIDs = 64

// Message is an SVID in the protobuf of the SPIFFE APIs, which are of different types and the same fields.
type Message interface {
	GetSpiffeId() string
	GetX509Svid() []byte
	GetX509SvidKey() []byte
	GetBundle() []byte
}

// ParseUpdate reads a whole message of the SPIFFE APIs. What is wrong with one SVID is wrong with the message: half of
// it would be taken for a withdrawal of the rest. What is wrong with a foreign bundle is so with that bundle alone.
func ParseUpdate[M Message](svids []M, federated map[string][]byte) (u Update, err error) {
	if len(svids) > maxSVIDs {
		return u, fmt.Errorf("message with %d SVIDs, more than %d", len(svids), maxSVIDs)
	}
	for _, m := range svids {
		s, err := ParseDER(m.GetSpiffeId(), m.GetX509Svid(), m.GetX509SvidKey(), m.GetBundle())
		if err != nil {
			return Update{}, err
		}
		u.SVIDs = append(u.SVIDs, s)
	}
	u.Federated, u.Refused = ParseBundles(federated)
	return u, nil
}

// ParseDER reads an SVID as the SPIFFE APIs carry it: certificates one after the other, leaf first, and a PKCS #8 key.
// The roots are read in the same way; it may be empty where they come by another way.
func ParseDER(id string, chain, key, roots []byte) (SVID, error) {
	var s SVID
	var err error
	if s.ID, err = spiffeid.FromString(id); err != nil {
		return SVID{}, fmt.Errorf("SPIFFE ID %.100q: %w", id, err)
	}
	if s.Chain, err = ParseCertsDER(chain); err != nil {
		return SVID{}, fmt.Errorf("%s: certificates: %w", s.ID, err)
	}
	if s.Key, err = ParseKey(key); err != nil {
		return SVID{}, fmt.Errorf("%s: private key: %w", s.ID, err)
	}
	if s.Roots, err = ParseBundleDER(roots); err != nil {
		return SVID{}, fmt.Errorf("%s: bundle: %w", s.ID, err)
	}
	return s, nil
}

// ParseCertsDER reads a chain of at least one certificate.
func ParseCertsDER(der []byte) ([]*x509.Certificate, error) {
	if len(der) > maxDER {
		return nil, fmt.Errorf("%d bytes, more than %d", len(der), maxDER)
	}
	certs, err := x509.ParseCertificates(der)
	if err == nil && len(certs) == 0 {
		err = errors.New("there are none")
	}
	return certs, err
}

// ParseBundleDER reads a trust domain's roots, of which there may be none.
func ParseBundleDER(der []byte) ([]*x509.Certificate, error) {
	if len(der) > maxBundle {
		return nil, fmt.Errorf("%d bytes, more than %d", len(der), maxBundle)
	}
	certs, err := x509.ParseCertificates(der)
	if err == nil && len(certs) > maxDERCerts {
		err = fmt.Errorf("%d certificates, more than %d", len(certs), maxDERCerts)
	}
	return certs, err
}

// ParseKey reads a PKCS #8 key. What it read is never part of an error.
func ParseKey(der []byte) (crypto.Signer, error) {
	if len(der) == 0 || len(der) > maxDER {
		return nil, fmt.Errorf("%d bytes", len(der))
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("it is not in PKCS #8")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T cannot sign", key)
	}
	return signer, nil
}

// ParseBundles reads bundles by trust domain, as the SPIFFE APIs carry them: the name is "spiffe://td" or "td". Those
// that cannot be read are left out; refused says why, by the name "td" or, where it is none, the one given.
func ParseBundles(in map[string][]byte) (out map[spiffeid.TrustDomain][]*x509.Certificate, refused map[string]error) {
	out, refused = make(map[spiffeid.TrustDomain][]*x509.Certificate, len(in)), map[string]error{}
	for name, der := range in {
		td, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			refused[name[:min(len(name), maxName)]] = err
			continue
		}
		certs, err := ParseBundleDER(der)
		if err != nil {
			refused[td.Name()] = err
			continue
		}
		out[td] = certs
	}
	return out, refused
}
