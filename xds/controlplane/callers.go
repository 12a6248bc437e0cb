package controlplane

import (
	"context"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/kubeauth"
	caserver "github.com/warren-mesh/warren/ca/server"
)

// callers says who may be served: the CA's two questions, and that of xDS, which
// returns a name to count streams by.
type callers struct {
	caserver.Authenticator
	caserver.Authorizer
	proxy func(context.Context) (string, error)
}

// nodesByToken knows nodes by a file of tokens.
func nodesByToken(tokens *caserver.Tokens, m *model) callers {
	return callers{Authenticator: tokens, Authorizer: m, proxy: func(ctx context.Context) (string, error) {
		caller, err := tokens.Authenticate(ctx)
		return caller.Node, err
	}}
}

// proxiesByAccount knows proxies by their service account tokens.
func proxiesByAccount(cfg kubeauth.Config, m *model) (callers, error) {
	a, err := kubeauth.New(cfg)
	if err != nil {
		return callers{}, err
	}
	return callers{Authenticator: tokenReviews{a}, Authorizer: onTheNode{a.Authorizer(m)}, proxy: a.Proxy}, nil
}

// tokenReviews is kubeauth's Authenticator as the CA's.
type tokenReviews struct{ *kubeauth.Authenticator }

// Authenticate implements caserver.Authenticator.
func (t tokenReviews) Authenticate(ctx context.Context) (caserver.Caller, error) {
	caller, err := t.Authenticator.Authenticate(ctx)
	return caserver.Caller(caller), err
}

// onTheNode is kubeauth's Authorizer as the CA's.
type onTheNode struct{ *kubeauth.Authorizer }

// Allowed implements caserver.Authorizer.
func (o onTheNode) Allowed(caller caserver.Caller, id spiffeid.ID) error {
	return o.Authorizer.Allowed(kubeauth.Caller(caller), id)
}

// trusted reads the accounts that may speak for others.
func (c *Config) trusted() ([]kubeauth.Account, error) {
	accounts, err := kubeauth.ParseAccounts(c.TrustedNodeAccounts)
	if err == nil && len(accounts) == 0 {
		err = fmt.Errorf("must name the service account of the proxies, such as %s", kubeauth.DefaultTrusted()[0])
	}
	return accounts, err
}
