package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/server"
	"github.com/warren-mesh/warren/e2e/onehost"
	"github.com/warren-mesh/warren/nodeagent/zds"
)

// everyone may have any certificate: nothing but the bench's own pods reaches
// this CA.
type everyone struct{}

func (everyone) Authenticate(context.Context) (server.Caller, error) {
	return server.Caller{Node: "bench"}, nil
}
func (everyone) Allowed(server.Caller, spiffeid.ID) error { return nil }

// playCA serves CreateCertificate where the bed's proxies look for it, until
// stop is called. Its root is where they look for that. world, which may be nil,
// is served at the same place.
func playCA(m *onehost.Mesh, world *crowd) (stop func(), err error) {
	td := spiffeid.RequireTrustDomainFromString("cluster.local")
	now := time.Now()
	files, err := authority.Create(td, now)
	if err != nil {
		return nil, err
	}
	a, err := authority.Load(files, authority.Policy{}, now)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(m.RootCert()), 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(m.RootCert(), a.RootsPEM(), 0o644); err != nil {
		return nil, err
	}
	addr := m.ControlPlaneAddr()
	cert, err := a.Serving([]string{addr.Addr().String()}, 0, now)
	if err != nil {
		return nil, err
	}
	const plenty = 1e6 // signatures a second: the CA is not what is measured
	issuer, err := server.New(server.Config{
		Authority: a, TrustDomain: td, Authenticator: everyone{}, Authorizer: everyone{}, Rate: plenty, Burst: plenty,
	})
	if err != nil {
		return nil, err
	}
	var l net.Listener
	if err := m.FabricNS().Do(func() (err error) {
		l, err = net.Listen("tcp", addr.String())
		return err
	}); err != nil {
		return nil, err
	}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(mtls.ServerAuth(func() (*tls.Certificate, error) { return cert, nil }))))
	issuer.Register(g)
	if world != nil {
		world.register(g)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.Serve(l) // ends with Stop
	}()
	return func() {
		g.Stop()
		<-done
	}, nil
}

// playAgent is one node's agent as far as the proxy knows it: it names pods.
func playAgent(ctx context.Context, n *onehost.Node, pods []*onehost.Pod, wg *sync.WaitGroup) error {
	var all []zds.Workload
	for _, p := range pods {
		if p.Node() == n {
			all = append(all, zds.Workload{
				UID: p.UID, NS: p.NS,
				Info: zds.Info{Name: p.Spec.Name, Namespace: p.Spec.Namespace, ServiceAccount: p.Spec.ServiceAccount},
			})
		}
	}
	l, err := zds.Listen("unixpacket", n.ZDSSocket())
	if err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	s := zds.NewServer(n.ZDSSocket(), func() []zds.Workload { return all }, slog.New(slog.DiscardHandler))
	wg.Go(func() {
		if err := s.Serve(ctx, l); err != nil && !errors.Is(err, context.Canceled) {
			fmt.Fprintln(os.Stderr, "bench: zds:", err)
		}
	})
	return nil
}
