// Package fake is a certificate authority in memory, for tests and demonstrations. Whoever uses it has no security:
// it signs anything for anybody, and says so when it starts.
//
// Kind: adapter. Used by tests and by the proxy with FAKE_CA.
package fake

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Signer is a svid.Signer.
type Signer struct{}

// New makes a root for a trust domain and warns.
func New(td spiffeid.TrustDomain, log *slog.Logger) (*Signer, error) { return nil, errors.New("stub") }

// Sign implements svid.Signer.
func (s *Signer) Sign(ctx context.Context, id spiffeid.ID, csrPEM []byte, ttl time.Duration) ([]string, error) {
	return nil, errors.New("stub")
}

// RootsPEM is the fake root.
func (s *Signer) RootsPEM() []byte { return nil }
