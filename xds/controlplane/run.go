package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/mtls"
	caserver "github.com/warren-mesh/warren/ca/server"
	"github.com/warren-mesh/warren/xds/file"
	"github.com/warren-mesh/warren/xds/server"
)

// stopWithin is how long calls that are under way may go on at the end.
const stopWithin = 3 * time.Second

// Run runs a control plane until ctx ends; it returns nil then.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	p, err := New(cfg, log)
	if err != nil {
		return err
	}
	return p.Run(ctx)
}

// ControlPlane is one that has its listeners and its authority, and does not run yet.
type ControlPlane struct {
	cfg       Config
	log       *slog.Logger
	listeners listeners

	feeder    *file.Feeder
	model     *model
	ads       *server.Server // for nodes, with their tokens
	plain     *server.Server // for anybody; nil for none
	secure    *grpc.Server
	plaintext *grpc.Server // nil for none
	http      []httpServer
}

// New checks the config, reads the authority or makes one, and opens the listeners,
// which Run closes.
func New(cfg Config, log *slog.Logger) (_ *ControlPlane, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	options, err := cfg.options()
	if err != nil {
		return nil, err
	}
	log.Info("configuration", "config", cfg)
	td, err := spiffeid.TrustDomainFromString(cfg.TrustDomain)
	if err != nil {
		return nil, err
	}
	ca, err := caserver.LoadOrCreate(cfg.StateDir, td, authority.Policy{DefaultTTL: cfg.TTL, MaxTTL: cfg.MaxTTL}, time.Now())
	if err != nil {
		return nil, err
	}
	tokens, err := caserver.NewTokens(cfg.NodeTokens, log)
	if err != nil {
		return nil, err
	}
	cert, err := newServing(func(now time.Time) (*tls.Certificate, error) { return ca.Serving(cfg.hosts(), servingTTL, now) }, log, time.Now())
	if err != nil {
		return nil, err
	}
	p := &ControlPlane{cfg: cfg, log: log, feeder: file.Feed(cfg.KubeDir, log)}
	p.ads = server.New(server.Config{Authenticate: nodeOf(tokens), Log: log})
	if cfg.PlaintextListen != "" {
		p.plain = server.New(server.Config{Authenticate: anybody, Log: log, MaxStreamsPerCaller: maxPlaintextStreams})
	}
	p.model = newModel(options, p.publish, log)
	metrics := newMetrics(p.ads, p.model, ca.NotAfter())
	issuer, err := caserver.New(caserver.Config{
		Authority: ca, TrustDomain: td, Authenticator: tokens, Authorizer: p.model, Log: log, Observer: metrics,
	})
	if err != nil {
		return nil, err
	}
	p.secure = grpc.NewServer(append(server.ServerOptions(), grpc.Creds(credentials.NewTLS(
		mtls.ServerAuth(func() (*tls.Certificate, error) { return cert.certificate(time.Now()) }))))...)
	p.ads.Register(p.secure)
	issuer.Register(p.secure)
	if p.plain != nil {
		p.plaintext = grpc.NewServer(server.ServerOptions()...)
		p.plain.Register(p.plaintext) // the CA is on the TLS port only
	}
	if p.listeners, err = listen(cfg); err != nil {
		return nil, err
	}
	p.http = []httpServer{
		{p.listeners.health, p.healthHandler(ca.NotAfter())},
		{p.listeners.metrics, metrics.handler()},
	}
	return p, nil
}

// publish hands a snapshot to both servers.
func (p *ControlPlane) publish(s *server.Snapshot) {
	p.ads.SetSnapshot(s)
	if p.plain != nil {
		p.plain.SetSnapshot(s)
	}
}

// maxPlaintextStreams is for all clients of the plaintext port together, which has no
// callers to tell apart.
const maxPlaintextStreams = 100

func anybody(context.Context) (string, error) { return "anybody", nil }

// nodeOf authenticates a stream by the token of its node.
func nodeOf(tokens caserver.Authenticator) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		caller, err := tokens.Authenticate(ctx)
		if err != nil {
			return "", err
		}
		return caller.Node, nil
	}
}

// Addr is where the TLS port listens.
func (p *ControlPlane) Addr() net.Addr { return p.listeners.secure.Addr() }

// Close closes the listeners of a control plane that is not going to run.
func (p *ControlPlane) Close() { p.listeners.close() }

// Run serves until ctx ends or a part fails, and stops all parts then. It returns nil
// when ctx ended.
func (p *ControlPlane) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.feeder.Run(ctx) })
	group.Go(func() error {
		select {
		case <-p.feeder.Synced():
			return p.model.run(ctx, p.feeder)
		case <-ctx.Done():
			return nil
		}
	})
	p.serveGRPC(ctx, group, p.secure, p.ads, p.listeners.secure)
	if p.plaintext != nil {
		p.log.Warn("serving xDS without TLS and authentication: whoever reaches the port can read the mesh", "addr", p.listeners.plaintext.Addr().String())
		p.serveGRPC(ctx, group, p.plaintext, p.plain, p.listeners.plaintext)
	}
	for _, h := range p.http {
		h.serve(ctx, group)
	}
	p.log.Info("serving xDS and CA", "addr", p.Addr().String())
	err := group.Wait()
	p.log.Info("stopped", "err", err)
	return err
}

// serveGRPC serves until ctx ends; then calls that are under way may come to their end.
func (p *ControlPlane) serveGRPC(ctx context.Context, group *errgroup.Group, g *grpc.Server, ads *server.Server, l net.Listener) {
	group.Go(func() error {
		if err := g.Serve(l); err != nil {
			return fmt.Errorf("serve %s: %w", l.Addr(), err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		ads.Shutdown()
		force := time.AfterFunc(stopWithin, g.Stop)
		defer force.Stop()
		g.GracefulStop()
		ads.Wait()
		return nil
	})
}

// httpServer is a listener, nil for none, and what it serves.
type httpServer struct {
	l net.Listener
	h http.Handler
}

func (h httpServer) serve(ctx context.Context, group *errgroup.Group) {
	if h.l == nil {
		return
	}
	s := &http.Server{
		Handler:           h.h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	group.Go(func() error {
		if err := s.Serve(h.l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve %s: %w", h.l.Addr(), err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		return s.Close()
	})
}
