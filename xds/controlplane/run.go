package controlplane

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/rotation"
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

// ControlPlane is one that has its listeners, and does not run yet.
type ControlPlane struct {
	cfg       Config
	log       *slog.Logger
	td        spiffeid.TrustDomain
	listeners listeners

	feed      feed
	model     *model
	callers   callers
	cluster   *cluster       // nil without Kubernetes
	ads       *server.Server // for proxies
	plain     *server.Server // for anybody; nil for none
	plaintext *grpc.Server   // nil for none
	metrics   *metrics
	http      []httpServer

	keeper  *rotation.Keeper       // has no authority while the CA is not known
	noCA    atomic.Pointer[string] // why it is not
	secure  *grpc.Server           // nil before the CA is known
	serving *serving               // likewise
}

// New checks the config and opens the listeners, which Run closes. The authority of a
// folder is read or made here; that of Kubernetes is waited for in Run.
func New(cfg Config, log *slog.Logger) (*ControlPlane, error) {
	return newControlPlane(cfg, log, (*ControlPlane).useKubernetes)
}

func newControlPlane(cfg Config, log *slog.Logger, useKubernetes func(*ControlPlane, spiffeid.TrustDomain) error) (_ *ControlPlane, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	options, err := cfg.options()
	if err != nil {
		return nil, err
	}
	td, err := spiffeid.TrustDomainFromString(cfg.TrustDomain)
	if err != nil {
		return nil, err
	}
	if cfg.Kubernetes && cfg.Namespace == "" {
		cfg.Namespace = ownNamespace(log)
	}
	log.Info("configuration", "config", cfg)
	p := &ControlPlane{cfg: cfg, log: log, td: td}
	defer func() {
		if err != nil && p.keeper != nil {
			p.keeper.End(time.Now()) // a start that failed is not waited for by rotations
		}
	}()
	p.model = newModel(options, p.publish, log)
	use := (*ControlPlane).useFolder
	if cfg.Kubernetes {
		use = useKubernetes
	}
	if err := use(p, td); err != nil {
		return nil, err
	}
	p.ads = server.New(server.Config{Authenticate: p.callers.proxy, Log: log})
	p.metrics = newMetrics(p)
	if cfg.PlaintextListen != "" {
		p.plain = server.New(server.Config{Authenticate: anybody, Log: log, MaxStreamsPerCaller: maxPlaintextStreams})
		p.plaintext = grpc.NewServer(server.ServerOptions()...)
		p.plain.Register(p.plaintext) // the CA is on the TLS port only
	}
	if p.keeper.Authority() != nil {
		if err := p.issue(); err != nil {
			return nil, err
		}
	}
	if p.listeners, err = listen(cfg, log); err != nil {
		return nil, err
	}
	p.http = []httpServer{{p.listeners.health, p.healthHandler()}, {p.listeners.metrics, p.metrics.handler()}}
	return p, nil
}

// useFolder takes everything from folders and files.
func (p *ControlPlane) useFolder(td spiffeid.TrustDomain) error {
	p.keep(&caserver.StateDir{Path: p.cfg.StateDir, Plugged: p.cfg.CADir, TrustDomain: td})
	if err := p.keeper.Load(context.Background(), time.Now()); err != nil {
		return err
	}
	tokens, err := caserver.NewTokens(p.cfg.NodeTokens, p.log)
	if err != nil {
		return err
	}
	p.callers = nodesByToken(tokens, p.model)
	files := fileFeed{Feeder: file.Feed(p.cfg.KubeDir, p.log)}
	if p.cfg.AllocateAddresses {
		files.addresses = &fileAddresses{log: p.log}
	}
	p.feed = files
	return nil
}

// keep has the CA kept in a store, under a name that no other start has.
func (p *ControlPlane) keep(store rotation.Store) {
	host, err := os.Hostname()
	if err != nil {
		host = "controlplane"
	}
	p.keeper = rotation.New(rotation.Config{
		Store: store, Replica: host + "." + rand.Text()[:8], Lifetimes: p.cfg.lifetimes(), Overlap: p.cfg.CAOverlap, Log: p.log,
	})
}

// issue makes the server of the TLS port, whose own certificate the CA signs.
func (p *ControlPlane) issue() error {
	p.rootsChanged() // this replica may lead already, and have found none
	cert, err := newServing(func(now time.Time) (*tls.Certificate, string, error) {
		ca := p.keeper.Authority()
		cert, err := ca.Serving(p.cfg.hosts(), servingTTL, now)
		return cert, ca.ID(), err
	}, p.log, time.Now())
	if err != nil {
		return err
	}
	p.serving = cert
	issuer, err := caserver.New(caserver.Config{
		Authority: p.keeper, TrustDomain: p.td, Authenticator: p.callers, Authorizer: p.callers, Log: audit(p.log), Observer: p.metrics,
		Rate: p.cfg.CARate, Burst: p.cfg.CABurst,
	})
	if err != nil {
		return err
	}
	options := append(server.ServerOptions(), caserver.Bound()...)
	options = append(options, grpc.ForceServerCodecV2(server.Codec(caserver.Codec()))) // each has one
	p.secure = grpc.NewServer(append(options, grpc.Creds(credentials.NewTLS(
		mtls.ServerAuth(func() (*tls.Certificate, error) { return cert.certificate(time.Now()) }))))...)
	p.ads.Register(p.secure)
	issuer.Register(p.secure)
	return nil
}

// caChanged has the new CA, and its roots, reach those who do not ask for certificates.
func (p *ControlPlane) caChanged() {
	p.serving.renew()
	p.rootsChanged()
}

// rootsChanged has the root ConfigMaps looked at, where there are any.
func (p *ControlPlane) rootsChanged() {
	if p.cluster != nil && p.cluster.rootMaps != nil {
		p.cluster.rootMaps.changed()
	}
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

// Addr is where the TLS port listens.
func (p *ControlPlane) Addr() net.Addr { return p.listeners.secure.Addr() }

// Close closes the listeners of a control plane that is not going to run.
func (p *ControlPlane) Close() { p.listeners.close() }

// Run serves until ctx ends or a part fails, and stops all parts then. It returns nil
// when ctx ended.
func (p *ControlPlane) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.feed.Run(ctx) })
	group.Go(func() error {
		select {
		case <-p.feed.Synced():
			return p.model.run(ctx, p.feed)
		case <-ctx.Done():
			return nil
		}
	})
	group.Go(func() error { return p.serveSecure(ctx, group) })
	if p.cluster != nil {
		group.Go(func() error { return p.lead(ctx) })
	}
	if p.plaintext != nil {
		p.log.Warn("serving xDS without TLS and authentication: whoever reaches the port can read the mesh", "addr", p.listeners.plaintext.Addr().String())
		p.serveGRPC(ctx, group, p.plaintext, p.plain, p.listeners.plaintext)
	}
	for _, h := range p.http {
		h.serve(ctx, group)
	}
	err := group.Wait()
	p.keeper.End(time.Now())
	p.log.Info("stopped", "err", err)
	return err
}

// serveSecure serves the TLS port, as soon as there is a CA.
func (p *ControlPlane) serveSecure(ctx context.Context, group *errgroup.Group) error {
	if p.secure == nil {
		if !p.awaitCA(ctx) {
			return p.listeners.secure.Close()
		}
		if err := p.issue(); err != nil {
			return errors.Join(err, p.listeners.secure.Close())
		}
	}
	p.serveGRPC(ctx, group, p.secure, p.ads, p.listeners.secure)
	p.log.Info("serving xDS and CA", "addr", p.Addr().String())
	p.keeper.Run(ctx, p.caChanged)
	return nil
}

// serveGRPC serves until ctx ends; then calls that are under way may come to their end.
func (p *ControlPlane) serveGRPC(ctx context.Context, group *errgroup.Group, g *grpc.Server, ads *server.Server, l net.Listener) {
	group.Go(func() error {
		if err := g.Serve(server.Listener(l)); err != nil {
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
