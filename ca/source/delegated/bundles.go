package delegated

import (
	"context"
	"crypto/x509"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	api "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	"google.golang.org/grpc"

	"github.com/warren-mesh/warren/ca/svid"
)

const (
	// An agent only ever adds to what a bundle stream says; a new stream lacks what is gone.
	bundlesReopen = 10 * time.Minute
	bundlesRetry  = 2 * time.Second
)

// trust is the bundles by trust domain, and why those that could not be read were not.
type trust struct {
	roots   map[spiffeid.TrustDomain][]*x509.Certificate
	refused map[string]error
	// former are the last that could be read, of the refused: our own SVIDs are judged by them meanwhile. They let in
	// nobody of another trust domain.
	former map[spiffeid.TrustDomain][]*x509.Certificate
}

// own are the roots to judge SVIDs of td by.
func (t *trust) own(td spiffeid.TrustDomain) []*x509.Certificate {
	if certs, ok := t.roots[td]; ok {
		return certs
	}
	return t.former[td]
}

// after is t with what is remembered of the trust known before.
func (t *trust) after(before *trust) *trust {
	if before == nil {
		return t
	}
	for name := range t.refused {
		if td, err := spiffeid.TrustDomainFromString(name); err == nil && len(before.own(td)) > 0 {
			t.former[td] = before.own(td)
		}
	}
	return t
}

// bundles are the newest that the agent sent.
type bundles struct {
	mu      sync.Mutex
	known   *trust
	changed chan struct{}
}

func newBundles() bundles { return bundles{changed: make(chan struct{})} }

// get returns what is known, nil before the first message, and what is closed when that changes.
func (b *bundles) get() (*trust, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.known, b.changed
}

func (b *bundles) set(known *trust) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.known = known.after(b.known)
	close(b.changed)
	b.changed = make(chan struct{})
}

// watchBundles keeps a stream of bundles open until ctx ends.
func (s *Source) watchBundles(ctx context.Context) {
	for ctx.Err() == nil {
		age := bundlesReopen*4/5 + rand.N(bundlesReopen*2/5)
		streamCtx, cancel := context.WithTimeout(ctx, age)
		err := s.receiveBundles(streamCtx)
		aged := streamCtx.Err() != nil
		cancel()
		if ctx.Err() != nil || aged {
			continue
		}
		s.cfg.Log.Warn("trust bundles are not watched", "err", failure(err))
		select {
		case <-ctx.Done():
		case <-time.After(bundlesRetry/2 + rand.N(bundlesRetry)):
		}
	}
}

func (s *Source) receiveBundles(ctx context.Context) error {
	stream, err := api.NewDelegatedIdentityClient(s.conn).SubscribeToX509Bundles(ctx, &api.SubscribeToX509BundlesRequest{},
		grpc.MaxCallRecvMsgSize(maxBundleMessage))
	if err != nil {
		return err
	}
	for {
		msg, err := stream.Recv()
		if err != nil {
			return err
		}
		known := &trust{former: map[spiffeid.TrustDomain][]*x509.Certificate{}}
		known.roots, known.refused = svid.ParseBundles(msg.GetCaCertificates())
		s.bundles.set(known)
	}
}
