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

// trust is the bundles by trust domain.
type trust = map[spiffeid.TrustDomain][]*x509.Certificate

// bundles are the newest that the agent sent.
type bundles struct {
	mu      sync.Mutex
	known   trust
	changed chan struct{}
}

func newBundles() bundles { return bundles{changed: make(chan struct{})} }

// get returns what is known, nil before the first message, and what is closed when that changes.
func (b *bundles) get() (trust, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.known, b.changed
}

func (b *bundles) set(known trust) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.known = known
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
		known, err := svid.ParseBundles(msg.GetCaCertificates())
		if err != nil {
			return err
		}
		s.bundles.set(known)
	}
}
