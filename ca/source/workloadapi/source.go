package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/internal/owner"
)

// header is asked of every call, so that no request forged through a web server gets an answer.
const header = "workload.spiffe.io"

// Source is a svid.Watcher. Whoever makes it closes it.
type Source struct {
	conn *grpc.ClientConn
}

// New checks address (SPIFFE_ENDPOINT_SOCKET): unix:///absolute/path, or tcp://ip:port inside a host. It connects when
// first used. agents are users, beside root and our own, whose processes may serve a Unix socket: nothing else proves who
// is there.
func New(address string, agents owner.Trusted) (*Source, error) {
	target, err := target(address)
	if err != nil {
		return nil, err
	}
	options := []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	if strings.HasPrefix(target, "unix:") {
		options = append(options, grpc.WithContextDialer(agents.Dial))
	}
	conn, err := grpc.NewClient(target, options...)
	if err != nil {
		return nil, fmt.Errorf("workload API: %w", err)
	}
	return &Source{conn: conn}, nil
}

func target(address string) (string, error) {
	if path, ok := strings.CutPrefix(address, "unix://"); ok && strings.HasPrefix(path, "/") {
		return address, nil
	}
	if hostport, ok := strings.CutPrefix(address, "tcp://"); ok && hostport != "" {
		return "passthrough:///" + hostport, nil
	}
	return "", fmt.Errorf("workload API: address %q: want unix:///absolute/path or tcp://ip:port", address)
}

// Close ends the connection and the streams on it.
func (s *Source) Close() error { return s.conn.Close() }

// Watch implements svid.Watcher. Everything that the API gives this process is emitted, whoever pod is: use it where
// there is one workload.
func (s *Source) Watch(ctx context.Context, _ svid.Pod, _ spiffeid.ID, emit func(svid.Update)) error {
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, header, "true"))
	defer cancel()
	stream, err := workload.NewSpiffeWorkloadAPIClient(s.conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
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
			return fmt.Errorf("workload API: %w", err)
		}
		emit(u)
	}
}

// failure sorts errors.
func failure(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("workload API: the agent closed the stream")
	}
	return svid.Denied(fmt.Errorf("workload API: %w", err))
}
