package kubeauth

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc/peer"
	"k8s.io/client-go/kubernetes"

	"github.com/warren-mesh/warren/ca/bearer"
)

const (
	// DefaultAudience is the audience of the tokens that Istio's proxies are given.
	DefaultAudience = "istio-ca"

	defaultTimeout = 5 * time.Second
	// keepGood is short, since a token that is revoked meanwhile is still taken; a node that starts asks for all its
	// certificates within it.
	keepGood = 30 * time.Second
	// keepBad spares the API server from callers that come again and again with one token.
	keepBad = 5 * time.Second

	maxGood     = 20_000
	maxBad      = 10_000
	maxToken    = 8 << 10
	maxReviews  = 32 // under way at a time, of all callers
	maxPeerWork = 4  // of them, for callers at one address
)

// Config is what an Authenticator needs.
type Config struct {
	Client      kubernetes.Interface
	TrustDomain spiffeid.TrustDomain
	Audience    string        // that a token must be for; default istio-ca
	Trusted     []Account     // the accounts of nodes' proxies; default DefaultTrusted
	Timeout     time.Duration // of one review; default 5 s
}

// Authenticator knows callers by their service account tokens. Safe for concurrent use.
type Authenticator struct {
	cfg     Config
	flights singleflight.Group // one review a token at a time
	work    *work
	good    *cache[Caller]
	bad     *cache[error]
}

// New checks cfg and fills its blanks.
func New(cfg Config) (*Authenticator, error) {
	if cfg.Client == nil {
		return nil, errors.New("ca/kubeauth: no client of the API server")
	}
	if cfg.TrustDomain.IsZero() {
		return nil, errors.New("ca/kubeauth: no trust domain")
	}
	if cfg.Audience == "" {
		cfg.Audience = DefaultAudience
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = defaultTimeout
	}
	if len(cfg.Trusted) == 0 {
		trusted, err := ParseAccounts(DefaultTrusted())
		if err != nil {
			return nil, err
		}
		cfg.Trusted = trusted
	}
	cfg.Trusted = slices.Clone(cfg.Trusted)
	return &Authenticator{cfg: cfg, work: newWork(maxReviews, maxPeerWork), good: newCache[Caller](maxGood), bad: newCache[error](maxBad)}, nil
}

// Authenticate names the caller by the bearer token in the metadata of ctx. Its error is for the log.
func (a *Authenticator) Authenticate(ctx context.Context) (Caller, error) {
	token, err := bearer.Token(ctx, maxToken)
	if err != nil {
		return Caller{}, err
	}
	claims, err := readClaims(token)
	if err != nil {
		return Caller{}, err
	}
	// The API server would find that out as well, at the price of a request for every stranger.
	if !slices.Contains(claims.Audiences, a.cfg.Audience) {
		return Caller{}, fmt.Errorf("the token is for the audiences %.200q, %q is needed: mount a projected service account token with that audience", claims.Audiences, a.cfg.Audience)
	}
	sum := sha256.Sum256([]byte(token))
	now := time.Now()
	if caller, ok := a.good.get(sum, now); ok {
		return caller, nil
	}
	if err, ok := a.bad.get(sum, now); ok {
		return Caller{}, err
	}
	return a.review(ctx, token, sum, claims)
}

// Proxy names the caller for xDS, if it is a node's proxy.
func (a *Authenticator) Proxy(ctx context.Context) (string, error) {
	caller, err := a.Authenticate(ctx)
	if err != nil {
		return "", err
	}
	if err := a.cfg.checkTrusted(caller); err != nil {
		return "", err
	}
	if caller.Node != "" {
		return caller.Node, nil
	}
	return caller.Pod, nil
}

// checkTrusted says why a caller is not a node's proxy.
func (c *Config) checkTrusted(caller Caller) error {
	acc, ok := account(caller.Identity)
	if !ok || !slices.Contains(c.Trusted, acc) {
		return fmt.Errorf("%s is not the account of a node's proxy: only %s are trusted to speak for others", acc, c.Trusted)
	}
	if caller.Pod == "" || caller.PodUID == "" {
		return fmt.Errorf("the token of %s is not bound to a pod: use a projected token", acc)
	}
	return nil
}

// from is the address of a caller, the zero one when it cannot be told.
func from(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return netip.Addr{}
	}
	if tcp, ok := p.Addr.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
