package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/internal/owner"
)

// header is asked of every call, so that no request forged through a web server gets an answer.
const header = "broker.spiffe.io"

// Config says where the agent is. Address and TLS are required.
type Config struct {
	// Address (SPIFFE_BROKER_SOCKET) is unix:///absolute/path or tcp://host-or-ip:port.
	Address string
	// TLS presents this proxy's own SVID and checks the agent's: mtls.ToAgent.
	TLS *tls.Config
	// Agents are users, beside root and our own, whose processes may serve a Unix socket.
	Agents owner.Trusted
}

// Source is a svid.Watcher. Whoever makes it closes it.
type Source struct {
	conn *grpc.ClientConn
}

// New checks cfg. It connects when first used.
func New(cfg Config) (*Source, error) {
	target, err := target(cfg.Address)
	if err != nil {
		return nil, err
	}
	pace := backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.5, MaxDelay: 3 * time.Second}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(cfg.TLS)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: pace, MinConnectTimeout: 10 * time.Second}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: time.Minute, Timeout: 20 * time.Second}),
	}
	if strings.HasPrefix(target, "unix:") {
		options = append(options, grpc.WithContextDialer(cfg.Agents.Dial))
	}
	conn, err := grpc.NewClient(target, options...)
	if err != nil {
		return nil, fmt.Errorf("broker API: %w", err)
	}
	return &Source{conn: conn}, nil
}

func target(address string) (string, error) {
	if p, ok := strings.CutPrefix(address, "unix://"); ok && path.IsAbs(p) {
		return address, nil
	}
	if hostport, ok := strings.CutPrefix(address, "tcp://"); ok && hostport != "" {
		return "dns:///" + hostport, nil
	}
	return "", fmt.Errorf("broker API: address %q: want unix:///absolute/path or tcp://host:port", address)
}

// Close ends the connection and the streams on it.
func (s *Source) Close() error { return s.conn.Close() }

// AgentID checks the identity of the agent: it is want or, where want is zero, one that SPIRE gives its agents.
func AgentID(want spiffeid.ID) func(spiffeid.ID) error {
	return func(id spiffeid.ID) error {
		if id == want || want.IsZero() && strings.HasPrefix(id.Path(), "/spire/agent/") {
			return nil
		}
		if want.IsZero() {
			return fmt.Errorf("the broker endpoint is served by %s, which is no agent of SPIRE's", id)
		}
		return fmt.Errorf("the broker endpoint is served by %s, not by %s", id, want)
	}
}

// Watch implements svid.Watcher.
func (s *Source) Watch(ctx context.Context, pod svid.Pod, _ spiffeid.ID, emit func(svid.Update)) error {
	ref, err := reference(pod)
	if err != nil {
		return &svid.PermanentError{Err: err}
	}
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, header, "true"))
	defer cancel()
	stream, err := broker.NewAPIClient(s.conn).SubscribeToX509SVID(ctx, &broker.SubscribeToX509SVIDRequest{Reference: ref})
	if err != nil {
		return failure(err)
	}
	for {
		msg, err := stream.Recv()
		if err != nil {
			return failure(err)
		}
		u, err := svid.ParseUpdate(msg.GetSvids(), msg.GetFederatedBundles())
		if err != nil {
			return fmt.Errorf("broker API: %w", err)
		}
		emit(u)
	}
}

// reference names the pod by UID and by name, which must both be right.
func reference(pod svid.Pod) (*broker.WorkloadReference, error) {
	if pod.UID == "" {
		return nil, errors.New("broker API: the pod has no UID to ask by")
	}
	ref := &broker.KubernetesObjectReference{
		Type: &broker.KubernetesObjectType{Plural: "pods", Group: "core"},
		Uid:  pod.UID,
	}
	if pod.Namespace != "" && pod.Name != "" {
		ref.Key = &broker.KubernetesObjectKey{Namespace: pod.Namespace, Name: pod.Name}
	}
	packed, err := anypb.New(ref)
	if err != nil {
		return nil, fmt.Errorf("broker API: %w", err)
	}
	return &broker.WorkloadReference{Reference: packed}, nil
}

// failure sorts errors.
func failure(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("broker API: the agent closed the stream")
	}
	return svid.Denied(fmt.Errorf("broker API: %w", err))
}
