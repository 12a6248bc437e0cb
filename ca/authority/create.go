package authority

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	rootTTL       = 10 * 365 * 24 * time.Hour
	maxServingTTL = 365 * 24 * time.Hour
	maxHosts      = 64
)

// Create makes a self-signed root for a trust domain, valid for ten years. Only Cert and Key are filled: it is its own
// root.
func Create(td spiffeid.TrustDomain, now time.Time) (Files, error) {
	if td.IsZero() {
		return Files{}, errors.New("authority: a root needs a trust domain")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Files{}, fmt.Errorf("authority: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Files{}, fmt.Errorf("authority: %w", err)
	}
	f := Files{Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})}
	if f.Cert, err = selfSigned(td, key, now); err != nil {
		return Files{}, fmt.Errorf("authority: %w", err)
	}
	return f, nil
}

// Recreate makes the certificate for a key that was written without one, which is what a crash between the two
// writes of a first start leaves.
func Recreate(td spiffeid.TrustDomain, keyPEM []byte, now time.Time) (Files, error) {
	key, err := parseKey(keyPEM)
	if err != nil {
		return Files{}, fmt.Errorf("authority: ca-key.pem: %w", err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return Files{}, errors.New("authority: ca-key.pem has no certificate beside it and was not made here; put ca-cert.pem back")
	}
	cert, err := selfSigned(td, ec, now)
	if err != nil {
		return Files{}, fmt.Errorf("authority: %w", err)
	}
	return Files{Cert: cert, Key: keyPEM}, nil
}

func selfSigned(td spiffeid.TrustDomain, key *ecdsa.PrivateKey, now time.Time) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{td.Name()}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(rootTTL),
		IsCA:                  true,
		BasicConstraintsValid: true,
		// We sign no revocation list; whoever has the key can, and a list by a root without cRLSign counts nowhere.
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// Serving makes a server certificate with a fresh key for hosts, which are DNS names or addresses. ttl of zero means
// the default; a longer one than a year is refused.
func (a *Authority) Serving(hosts []string, ttl time.Duration, now time.Time) (*tls.Certificate, error) {
	cert, err := a.serving(hosts, ttl, now)
	if err != nil {
		return nil, fmt.Errorf("authority: serving certificate: %w", err)
	}
	return cert, nil
}

func (a *Authority) serving(hosts []string, ttl time.Duration, now time.Time) (*tls.Certificate, error) {
	if len(hosts) == 0 || len(hosts) > maxHosts {
		return nil, fmt.Errorf("%d host names, from 1 to %d are possible", len(hosts), maxHosts)
	}
	if ttl <= 0 {
		ttl = a.policy.DefaultTTL
	}
	if ttl > maxServingTTL {
		return nil, fmt.Errorf("requested TTL %s is greater than %s", ttl, maxServingTTL)
	}
	tmpl := &x509.Certificate{
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range hosts {
		if ip, err := netip.ParseAddr(h); err == nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, net.IP(ip.Unmap().AsSlice()))
			continue
		}
		tmpl.DNSNames = append(tmpl.DNSNames, h)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf, err := a.issue(tmpl, key.Public(), ttl, now)
	if err != nil {
		return nil, err
	}
	out := &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	for _, text := range a.chain {
		block, _ := pem.Decode([]byte(text))
		out.Certificate = append(out.Certificate, block.Bytes)
	}
	return out, nil
}
