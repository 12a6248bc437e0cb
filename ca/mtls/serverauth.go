package mtls

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ToServer is a client that authenticates a server by name and presents nothing: for xDS and CA connections.
//
// rootsPEM is called in each handshake and parsed only when its bytes changed, so that a renewed root file is used
// without a restart; nil means the system's roots. serverName is the host being dialled, a DNS name or an address;
// empty leaves it to the caller's stack (gRPC and tls.Dial fill ServerName in), which works for DNS names only because
// an address is not sent as SNI and so cannot be read back. altName is a further DNS name that the server may have.
func ToServer(rootsPEM func() ([]byte, error), serverName, altName string) *tls.Config {
	r := &rootReader{read: rootsPEM}
	c := base()
	c.ServerName = serverName
	c.InsecureSkipVerify = true // judged below: the standard check knows neither altName nor changing roots
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		name := serverName
		if name == "" {
			name = cs.ServerName
		}
		pool, err := r.pool()
		if err != nil {
			return err
		}
		return verifyNamed(cs.PeerCertificates, pool, name, altName)
	}
	return c
}

func verifyNamed(chain []*x509.Certificate, roots *x509.CertPool, name, altName string) error {
	if err := checkBounds(chain); err != nil {
		return fmt.Errorf("mtls: server certificate: %w", err)
	}
	if name == "" && altName == "" {
		return errors.New("mtls: no server name to compare the certificate with")
	}
	opts := x509.VerifyOptions{
		Roots:         roots,
		Intermediates: x509.NewCertPool(),
		CurrentTime:   time.Now(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := chain[0].Verify(opts); err != nil {
		return fmt.Errorf("mtls: server certificate: %w", err)
	}
	var errs []error
	for _, n := range []string{name, altName} {
		if n == "" {
			continue
		}
		err := chain[0].VerifyHostname(n)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("mtls: server certificate: %w", errors.Join(errs...))
}

// rootReader keeps the last parsed pool, so that a handshake compares bytes instead of parsing certificates.
type rootReader struct {
	read func() ([]byte, error)

	mu   sync.Mutex
	text []byte
	last *x509.CertPool
}

func (r *rootReader) pool() (*x509.CertPool, error) {
	if r.read == nil {
		return nil, nil // the system's roots
	}
	text, err := r.read()
	if err != nil {
		return nil, fmt.Errorf("mtls: root certificates: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last != nil && bytes.Equal(text, r.text) {
		return r.last, nil
	}
	certs, err := ParsePEM(text, maxRoots)
	if err != nil {
		return nil, fmt.Errorf("mtls: root certificates: %w", err)
	}
	if len(certs) == 0 {
		return nil, errors.New("mtls: root certificates: the file is empty")
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	r.text, r.last = bytes.Clone(text), pool
	return pool, nil
}

// ServerAuth is the listener of the control plane: cert is asked in each handshake for the certificate to present, so
// that it can be renewed; clients prove themselves by token, inside.
func ServerAuth(cert func() (*tls.Certificate, error)) *tls.Config {
	c := base()
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert() }
	return c
}
