package fakeagent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"path/filepath"
	"strings"

	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	delegated "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Sockets are the addresses of a serving agent.
type Sockets struct {
	Public string // Workload API
	Admin  string // Delegated Identity API
	Broker string // Broker API, with TLS by the agent's own SVID
}

// ID is the agent's own identity.
func (a *Agent) ID() spiffeid.ID { return spiffeid.RequireFromPath(a.TD, "/spire/agent/fake") }

// Serve serves in dir until ctx ends. stop waits for that.
func (a *Agent) Serve(ctx context.Context, dir string) (at Sockets, stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	plain, admin, brokers := grpc.NewServer(), grpc.NewServer(), grpc.NewServer(grpc.Creds(credentials.NewTLS(a.tls())))
	workload.RegisterSpiffeWorkloadAPIServer(plain, &workloadAPI{a: a})
	delegated.RegisterDelegatedIdentityServer(admin, &delegatedAPI{a: a})
	broker.RegisterAPIServer(brokers, &brokerAPI{a: a})
	done := make(chan struct{}, 3)
	started := 0
	stop = func() {
		cancel()
		for range started {
			<-done
		}
	}
	for name, s := range map[string]*grpc.Server{"public": plain, "admin": admin, "broker": brokers} {
		l, err := net.Listen("unix", filepath.Join(dir, name+".sock"))
		if err != nil {
			stop()
			return at, nil, err
		}
		started++
		go func() {
			go func() { <-ctx.Done(); s.Stop() }()
			_ = s.Serve(l) // ends by Stop
			done <- struct{}{}
		}()
	}
	at = Sockets{"unix://" + dir + "/public.sock", "unix://" + dir + "/admin.sock", "unix://" + dir + "/broker.sock"}
	return at, stop, nil
}

// tls presents the agent's SVID and wants one of its trust domain, as SPIRE's broker endpoint.
func (a *Agent) tls() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAnyClientCert, SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			s, err := a.Issue(a.ID())
			if err != nil {
				return nil, err
			}
			key, err := x509.ParsePKCS8PrivateKey(s.Key)
			return &tls.Certificate{Certificate: [][]byte{s.Chain[0].Raw}, PrivateKey: key}, err
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			pool := x509.NewCertPool()
			for _, c := range a.Roots() {
				pool.AddCert(c)
			}
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
			return err
		},
	}
}

func withHeader(ctx context.Context, name string) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get(name); len(v) != 1 || v[0] != "true" {
		return status.Error(codes.InvalidArgument, errHeader.Error())
	}
	return nil
}

type workloadAPI struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	a *Agent
}

func (s *workloadAPI) FetchX509SVID(_ *workload.X509SVIDRequest, out grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	if err := withHeader(out.Context(), "workload.spiffe.io"); err != nil {
		return err
	}
	return s.a.stream(out.Context(), "self", func(st state) error {
		if len(st.svids) == 0 {
			return status.Error(codes.PermissionDenied, "no identity issued")
		}
		msg := &workload.X509SVIDResponse{FederatedBundles: rawByName(st.federated)}
		for _, v := range st.svids {
			msg.Svids = append(msg.Svids, &workload.X509SVID{SpiffeId: v.ID.String(), X509Svid: raw(v.Chain), X509SvidKey: v.Key, Bundle: raw(v.Roots)})
		}
		return out.Send(msg)
	})
}

type brokerAPI struct {
	broker.UnimplementedAPIServer
	a *Agent
}

func (s *brokerAPI) SubscribeToX509SVID(req *broker.SubscribeToX509SVIDRequest, out grpc.ServerStreamingServer[broker.SubscribeToX509SVIDResponse]) error {
	if err := withHeader(out.Context(), "broker.spiffe.io"); err != nil {
		return err
	}
	var pod broker.KubernetesObjectReference
	if err := req.GetReference().GetReference().UnmarshalTo(&pod); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if pod.GetType().GetPlural() != "pods" || pod.GetType().GetGroup() != "core" {
		return status.Error(codes.InvalidArgument, "only pods are known here")
	}
	return s.a.stream(out.Context(), refOf("pod", pod.GetUid()), func(st state) error {
		msg := &broker.SubscribeToX509SVIDResponse{FederatedBundles: rawByName(st.federated)}
		for _, v := range st.svids {
			msg.Svids = append(msg.Svids, &broker.X509SVID{SpiffeId: v.ID.String(), X509Svid: raw(v.Chain), X509SvidKey: v.Key, Bundle: raw(v.Roots)})
		}
		return out.Send(msg)
	})
}

type delegatedAPI struct {
	delegated.UnimplementedDelegatedIdentityServer
	a *Agent
}

func (s *delegatedAPI) SubscribeToX509SVIDs(req *delegated.SubscribeToX509SVIDsRequest, out grpc.ServerStreamingServer[delegated.SubscribeToX509SVIDsResponse]) error {
	ref := refOf("pid", req.GetPid())
	if sel := req.GetSelectors(); len(sel) > 0 {
		if req.GetPid() != 0 {
			return status.Error(codes.InvalidArgument, "must provide either selectors or non-zero PID, but not both")
		}
		ref = refOf("selectors", join(sel))
	}
	return s.a.stream(out.Context(), ref, func(st state) error {
		msg := &delegated.SubscribeToX509SVIDsResponse{FederatesWith: names(st.federated)}
		for _, v := range st.svids {
			one := &types.X509SVID{Id: &types.SPIFFEID{TrustDomain: v.ID.TrustDomain().Name(), Path: v.ID.Path()}, ExpiresAt: v.Chain[0].NotAfter.Unix()}
			for _, c := range v.Chain {
				one.CertChain = append(one.CertChain, c.Raw)
			}
			msg.X509Svids = append(msg.X509Svids, &delegated.X509SVIDWithKey{X509Svid: one, X509SvidKey: v.Key})
		}
		return out.Send(msg)
	})
}

func join(selectors []*types.Selector) string {
	parts := make([]string, 0, len(selectors))
	for _, s := range selectors {
		parts = append(parts, s.GetType()+":"+s.GetValue())
	}
	return strings.Join(parts, ",")
}

// SubscribeToX509Bundles never forgets a trust domain while a stream lasts, as SPIRE's.
func (s *delegatedAPI) SubscribeToX509Bundles(_ *delegated.SubscribeToX509BundlesRequest, out grpc.ServerStreamingServer[delegated.SubscribeToX509BundlesResponse]) error {
	all := map[string][]byte{}
	err := s.a.stream(out.Context(), "bundles", func(st state) error {
		all[s.a.TD.ID().String()] = raw(s.a.Roots())
		for name, der := range rawByName(st.federated) {
			all[name] = der
		}
		return out.Send(&delegated.SubscribeToX509BundlesResponse{CaCertificates: all})
	})
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
