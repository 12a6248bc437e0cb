// Package fake is a certificate authority in memory, for tests and demonstrations. Whoever uses it has no security: it
// signs anything for anybody, and its root is gone when the process ends. It says so in the log when it starts.
//
// Kind: adapter. Used by tests, and by the proxy where FAKE_CA asks for it.
package fake

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/authority"
)

// Signer is a svid.Signer. Managers that are to trust each other share one.
type Signer struct {
	// TTL, if set, is the lifetime given whatever is asked for. Set it before first use.
	TTL time.Duration
	// Before, if set, is called in each Sign, and its error is the answer; it may wait. Set it before first use.
	Before func(ctx context.Context, id spiffeid.ID) error

	authority *authority.Authority
}

// New makes a root for a trust domain and warns in log, which may be nil.
func New(td spiffeid.TrustDomain, log *slog.Logger) (*Signer, error) {
	files, err := authority.Create(td, time.Now())
	if err != nil {
		return nil, fmt.Errorf("fake: %w", err)
	}
	a, err := authority.Load(files, authority.Policy{}, time.Now())
	if err != nil {
		return nil, fmt.Errorf("fake: %w", err)
	}
	if log != nil {
		log.Warn("THE FAKE CERTIFICATE AUTHORITY IS IN USE: every identity is given to anybody, nothing is secure",
			"trust_domain", td.Name())
	}
	return &Signer{authority: a}, nil
}

// Sign implements svid.Signer.
func (s *Signer) Sign(ctx context.Context, id spiffeid.ID, csrPEM []byte, ttl time.Duration) ([]string, error) {
	if s.Before != nil {
		if err := s.Before(ctx, id); err != nil {
			return nil, err
		}
	}
	if s.TTL > 0 {
		ttl = s.TTL
	}
	leaf, err := s.authority.Sign(csrPEM, id, ttl, time.Now())
	if err != nil {
		return nil, fmt.Errorf("fake: %w", err)
	}
	return leaf.Chain, nil
}

// RootsPEM is the root. The caller owns the bytes.
func (s *Signer) RootsPEM() []byte { return s.authority.RootsPEM() }
