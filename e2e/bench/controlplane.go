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

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
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

// Play is the program that is a bed's control plane: it serves CreateCertificate and, if
// size is not zero, a crowd of so many workloads at addr, and takes orders at a Unix
// socket, until ctx ends. Its root is in rootFile by the time it takes them. It is a
// process of its own, on one processor, so that its rest disturbs nobody's.
func Play(ctx context.Context, addr, rootFile, orders string, size int) error {
	cert, issuer, err := newCA(addr, rootFile)
	if err != nil {
		return err
	}
	all, err := newCrowd(size)
	if err != nil {
		return err
	}
	plane := &crowdPlane{crowd: all}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	g := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(mtls.ServerAuth(func() (*tls.Certificate, error) { return cert, nil }))),
		grpc.ForceServerCodecV2(newRawCodec()),
		grpc.StaticStreamWindowSize(window), grpc.StaticConnWindowSize(window),
	)
	issuer.Register(g)
	discovery.RegisterAggregatedDiscoveryServiceServer(g, plane)
	if err := takeOrders(ctx, orders, plane); err != nil {
		return errors.Join(err, l.Close())
	}
	defer context.AfterFunc(ctx, g.Stop)()
	return g.Serve(lazyListener{l, &plane.telling})
}

// newCA makes a CA, and a certificate for its own address.
func newCA(addr, rootFile string) (*tls.Certificate, *server.Server, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, nil, err
	}
	td := spiffeid.RequireTrustDomainFromString("cluster.local")
	now := time.Now()
	files, err := authority.Create(td, now)
	if err != nil {
		return nil, nil, err
	}
	a, err := authority.Load(files, authority.Policy{}, now)
	if err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(filepath.Dir(rootFile), 0o755); err != nil {
		return nil, nil, err
	}
	if err := os.WriteFile(rootFile, a.RootsPEM(), 0o644); err != nil {
		return nil, nil, err
	}
	cert, err := a.Serving([]string{host}, 0, now)
	if err != nil {
		return nil, nil, err
	}
	const plenty = 1e6 // signatures a second: the CA is not what is measured
	issuer, err := server.New(server.Config{
		Authority: a, TrustDomain: td, Authenticator: everyone{}, Authorizer: everyone{}, Rate: plenty, Burst: plenty,
	})
	return cert, issuer, err
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
