// Package istio gets certificates from an Istio CA (istiod or Warren's control plane) by CreateCertificate.
//
// Kind: adapter. Used by proxy as the Signer of ca/svid.
package istio

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Config says where the CA is and how to speak to it.
type Config struct {
	Address   string                                                               // https://host:port, http://host:port or unix:///path
	TLS       func() (*tls.Config, error)                                          // asked for each connection; required for https
	Token     func() (string, error)                                               // asked for each call; nil sends none
	ClusterID string                                                               // clusterid header
	Headers   map[string]string                                                    // further headers
	Timeout   time.Duration                                                        // of one call, default 10 s
	Dial      func(ctx context.Context, network, address string) (net.Conn, error) // default net.Dialer
}

// Signer is a svid.Signer.
type Signer struct{}

// New checks cfg; it connects on first use.
func New(cfg Config) (*Signer, error) { return nil, errors.New("stub") }

// Sign implements svid.Signer.
func (s *Signer) Sign(ctx context.Context, id spiffeid.ID, csrPEM []byte, ttl time.Duration) ([]string, error) {
	return nil, errors.New("stub")
}

// Close ends the connection.
func (s *Signer) Close() error { return nil }
