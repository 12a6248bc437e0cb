// Package istio gets certificates from an Istio CA, istiod or Warren's control plane, by
// istio.v1.auth.IstioCertificateService/CreateCertificate.
//
// Kind: adapter. Used by proxy as the Signer of ca/svid.
package istio

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	pb "istio.io/api/security/v1alpha1"

	"github.com/warren-mesh/warren/ca/svid"
)

const (
	defaultTimeout = 10 * time.Second
	defaultPause   = time.Second // when the CA is exhausted and says no time
	maxToken       = 64 << 10
	maxMessage     = 512
)

// Config says where the CA is and how to speak to it. Address is required, TLS with https.
type Config struct {
	// Address is https://host:port, or http://host:port or unix:///path without TLS. Those two send the token in the
	// clear: use them inside a host only.
	Address string
	// TLS is asked in each handshake, usually mtls.ToServer.
	TLS func() (*tls.Config, error)
	// Token is asked in each call; white space around it is removed. Nil sends none. See TokenFile.
	Token     func() (string, error)
	ClusterID string            // sent as clusterid unless empty
	Own       bool              // certificates are the caller's own, whose token it is: nobody is impersonated
	Headers   map[string]string // sent in addition
	Timeout   time.Duration     // of one call; default 10 s
	// Dial makes connections; default net.Dialer. network is tcp or unix.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Signer is a svid.Signer. Whoever makes it closes it.
type Signer struct {
	cfg Config

	mu     sync.Mutex
	conn   *grpc.ClientConn
	closed bool
}

// New checks cfg. It connects when first used.
func New(cfg Config) (*Signer, error) {
	if cfg.Timeout <= 0 {
		cfg.Timeout = defaultTimeout
	}
	conn, err := newConn(cfg)
	if err != nil {
		return nil, fmt.Errorf("ca source: %w", err)
	}
	return &Signer{cfg: cfg, conn: conn}, nil
}

// Close ends the connection and the calls on it. Again, it does nothing.
func (s *Signer) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return s.conn.Close()
}

// client is the service on a connection that has not failed. A failed channel of gRPC answers with the failure that it
// remembers until it has connected again by itself; the manager paces requests already, and wants each to be a try.
func (s *Signer) client() (pb.IstioCertificateServiceClient, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed && s.conn.GetState() == connectivity.TransientFailure {
		conn, err := newConn(s.cfg)
		if err != nil {
			return nil, fmt.Errorf("ca source: %w", err)
		}
		if err := s.conn.Close(); err != nil {
			return nil, errors.Join(fmt.Errorf("ca source: %w", err), conn.Close())
		}
		s.conn = conn
	}
	return pb.NewIstioCertificateServiceClient(s.conn), nil
}

// TokenFile reads a token from a file in each call, because kubelet replaces it. An empty file is an error.
func TokenFile(path string) func() (string, error) {
	return func() (string, error) {
		text, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		if len(strings.TrimSpace(string(text))) == 0 {
			return "", fmt.Errorf("token file %s is empty", path)
		}
		return string(text), nil
	}
}

// Sign implements svid.Signer.
func (s *Signer) Sign(ctx context.Context, id spiffeid.ID, csrPEM []byte, ttl time.Duration) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	ctx, err := s.headers(ctx)
	if err != nil {
		return nil, fmt.Errorf("ca source: %w", err)
	}
	req := &pb.IstioCertificateRequest{
		Csr:              string(csrPEM),
		ValidityDuration: int64(ttl / time.Second),
	}
	if !s.cfg.Own {
		req.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{
			"ImpersonatedIdentity": structpb.NewStringValue(id.String()),
		}}
	}
	client, err := s.client()
	if err != nil {
		return nil, err
	}
	resp, err := client.CreateCertificate(ctx, req)
	if err != nil && ctx.Err() != nil { // also where it is our own time that is over, not the caller's
		return nil, fmt.Errorf("%w: %w", svid.ErrSilent, callError(err))
	}
	if err != nil {
		return nil, callError(err)
	}
	if len(resp.GetCertChain()) == 0 {
		return nil, fmt.Errorf("chain returned from CA is empty for: %s", id)
	}
	return resp.GetCertChain(), nil
}

func (s *Signer) headers(ctx context.Context) (context.Context, error) {
	var kv []string
	if s.cfg.ClusterID != "" {
		kv = append(kv, "clusterid", s.cfg.ClusterID)
	}
	for k, v := range s.cfg.Headers {
		kv = append(kv, strings.ToLower(k), v)
	}
	if s.cfg.Token != nil {
		token, err := s.cfg.Token()
		if err != nil {
			return nil, fmt.Errorf("token: %w", err)
		}
		// A newline at the end of the file is usual, and would break the header.
		if token, err = checkToken(strings.TrimSpace(token)); err != nil {
			return nil, err
		}
		kv = append(kv, "authorization", "Bearer "+token)
	}
	return metadata.AppendToOutgoingContext(ctx, kv...), nil
}

// checkToken never quotes the token.
func checkToken(token string) (string, error) {
	if token == "" {
		return "", errors.New("the token is empty")
	}
	if len(token) > maxToken {
		return "", fmt.Errorf("token of %d bytes, more than %d", len(token), maxToken)
	}
	for i := range len(token) {
		if token[i] <= ' ' || token[i] > '~' {
			return "", fmt.Errorf("the token has a byte at %d that cannot be in a header", i)
		}
	}
	return token, nil
}

// CallError is the CA's refusal, or the failure to reach it.
type CallError struct {
	Code    codes.Code
	Message string
	err     error
}

func (e *CallError) Error() string {
	return fmt.Sprintf("signing gRPC error (%s): %s", e.Code, e.Message)
}

// Unwrap gives gRPC's error.
func (e *CallError) Unwrap() error { return e.err }

// callError sorts answers into those worth repeating, those that want a pause and those that will not change.
// Unauthenticated is worth repeating: istiod answers so while it does not know of a new pod yet.
func callError(err error) error {
	st := status.Convert(err)
	msg := st.Message()
	if len(msg) > maxMessage {
		msg = msg[:maxMessage] + "…"
	}
	e := &CallError{Code: st.Code(), Message: msg, err: err}
	switch st.Code() {
	case codes.ResourceExhausted:
		if strings.Contains(st.Message(), tooLarge) {
			return e // of this one answer; it says nothing of how often we may ask
		}
		return &svid.RetryAfterError{After: retryDelay(st), Err: e}
	case codes.InvalidArgument, codes.Unimplemented:
		return &svid.PermanentError{Err: e}
	default:
		return e
	}
}

// tooLarge is in what gRPC's client says of an answer that it does not take, with the code of an exhausted server.
const tooLarge = "larger than max"

func retryDelay(st *status.Status) time.Duration {
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			if after := info.GetRetryDelay().AsDuration(); after > 0 {
				return after
			}
		}
	}
	return defaultPause
}
