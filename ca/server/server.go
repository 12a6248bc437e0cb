// Package server is the Istio CA service (istio.v1.auth.IstioCertificateService) over an authority.
//
// Kind: adapter. Used by xds/controlplane, which supplies the gRPC server, TLS, and who may have which identity.
package server

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/warren-mesh/warren/ca/authority"
)

// Caller is who presented credentials.
type Caller struct {
	Node     string      // the node that it runs on
	Identity spiffeid.ID // its own identity; zero for a caller that is only a node
}

// Authenticator says who calls, from the gRPC metadata and peer in ctx. Its error is logged, not sent.
type Authenticator interface {
	Authenticate(ctx context.Context) (Caller, error)
}

// Authorizer says whether caller may have a certificate for id. Its error is logged, not sent.
type Authorizer interface {
	Allowed(caller Caller, id spiffeid.ID) error
}

// Config is what a Server needs.
type Config struct {
	Authority     *authority.Authority
	TrustDomain   spiffeid.TrustDomain // of the identities that may be asked for
	Authenticator Authenticator
	Authorizer    Authorizer
	Log           *slog.Logger
	Rate          float64 // signatures a second for one caller, default 50
	Burst         int     // default 500
}

// Server implements CreateCertificate.
type Server struct{ cfg Config }

// New checks cfg.
func New(cfg Config) (*Server, error) { return nil, errors.New("stub") }

// Register adds the service to g.
func (s *Server) Register(g grpc.ServiceRegistrar) {}

// Tokens authenticates nodes by a file of lines `<token> <node>`.
type Tokens struct{}

// NewTokens reads the file once, so that a mistake is found at start.
func NewTokens(path string, log *slog.Logger) (*Tokens, error) { return nil, errors.New("stub") }

// Authenticate implements Authenticator.
func (t *Tokens) Authenticate(ctx context.Context) (Caller, error) {
	return Caller{}, errors.New("stub")
}

// LoadOrCreate reads the authority kept in dir (ca-cert.pem, ca-key.pem, root-cert.pem), making it on the first start.
func LoadOrCreate(dir string, td spiffeid.TrustDomain, p authority.Policy, now time.Time) (*authority.Authority, error) {
	return nil, errors.New("stub")
}
