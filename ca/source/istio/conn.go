package istio

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

const (
	maxAnswer      = 1 << 20
	connectTimeout = 5 * time.Second
	// idle connections are closed: certificates of a day are asked for in bursts, hours apart.
	idleTimeout = 5 * time.Minute
)

func newConn(cfg Config) (*grpc.ClientConn, error) {
	network, address, secure, err := parseAddress(cfg.Address)
	if err != nil {
		return nil, err
	}
	creds := insecure.NewCredentials()
	if secure {
		if cfg.TLS == nil {
			return nil, fmt.Errorf("address %s needs a TLS configuration", cfg.Address)
		}
		creds = &freshTLS{TransportCredentials: credentials.NewTLS(nil), config: cfg.TLS}
	}
	dial := cfg.Dial
	if dial == nil {
		d := &net.Dialer{}
		dial = d.DialContext
	}
	target := address
	if network == "unix" {
		target = "localhost" // becomes the authority
	}
	// passthrough: the dialer resolves the name in each attempt, so a Service that moved is found.
	return grpc.NewClient("passthrough:///"+target,
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx, network, address) }),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.DefaultConfig, // see Signer.client
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithIdleTimeout(idleTimeout),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
	)
}

func parseAddress(text string) (network, address string, secure bool, err error) {
	u, err := url.Parse(text)
	if err != nil {
		return "", "", false, fmt.Errorf("address: %w", err)
	}
	switch u.Scheme {
	case "unix":
		if u.Path == "" || u.Host != "" {
			return "", "", false, fmt.Errorf("address %q: want unix:///path", text)
		}
		return "unix", u.Path, false, nil
	case "https", "http":
		if u.Hostname() == "" || u.Port() == "" {
			return "", "", false, fmt.Errorf("address %q: want %s://host:port", text, u.Scheme)
		}
		return "tcp", u.Host, u.Scheme == "https", nil
	default:
		return "", "", false, fmt.Errorf("address %q: want https://host:port, http://host:port or unix:///path", text)
	}
}

// freshTLS asks for its configuration in each handshake instead of keeping the first.
type freshTLS struct {
	credentials.TransportCredentials
	config func() (*tls.Config, error)
}

func (f *freshTLS) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cfg, err := f.config()
	if err != nil {
		return nil, nil, err
	}
	if cfg == nil {
		return nil, nil, errors.New("no TLS configuration")
	}
	return credentials.NewTLS(cfg).ClientHandshake(ctx, authority, conn)
}

func (f *freshTLS) Clone() credentials.TransportCredentials {
	return &freshTLS{TransportCredentials: f.TransportCredentials.Clone(), config: f.config}
}
