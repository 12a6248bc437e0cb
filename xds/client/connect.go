package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
)

const (
	maxMessage     = 200 << 20 // the whole of a large mesh comes as one response
	maxHeaders     = 64 << 10
	inFlight       = 16 << 20 // of a message, what may be on its way
	maxToken       = 64 << 10
	connectTimeout = 5 * time.Second // TCP, TLS and HTTP/2 together
)

// connect makes a connection for one attempt. A new one each time, because gRPC
// would pace attempts by itself, and keep the TLS configuration it was made with.
// The caller closes it. Nothing is sent before it is used.
func (c *Client) connect() (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if c.target.tls {
		cfg, err := c.cfg.TLS()
		if err != nil {
			return nil, fmt.Errorf("xds: tls: %w", err)
		}
		if cfg == nil {
			return nil, errors.New("xds: tls: there is no configuration")
		}
		creds = credentials.NewTLS(cfg)
	}
	// passthrough: the dialer resolves the name, in each attempt, and tries all its
	// addresses.
	conn, err := grpc.NewClient("passthrough:///"+c.target.authority,
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return c.dialCalmly(ctx)
		}),
		// A connection is waited for until the later of the two; there is no second try.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: c.times.connect, MaxDelay: c.times.connect}, MinConnectTimeout: c.times.connect,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.ForceCodecV2(newCodec(&c.share, func() *breath { return c.resting(&c.receiving) }))),
		grpc.WithMaxHeaderListSize(maxHeaders),
		// Sizes that are given are not found out by a PING with each message.
		grpc.WithInitialWindowSize(inFlight), grpc.WithInitialConnWindowSize(inFlight),
		grpc.WithIdleTimeout(0),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithNoProxy(),
	)
	if err != nil {
		return nil, fmt.Errorf("xds: %w", err)
	}
	return conn, nil
}

// dialer's keepalive finds a dead peer while HTTP/2 is not up yet.
func dialer() *net.Dialer {
	return &net.Dialer{
		Timeout: connectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: 300 * time.Second, Interval: 75 * time.Second, Count: 9,
		},
	}
}

// headers are what goes with the stream, the token read anew.
func (c *Client) headers() (metadata.MD, error) {
	md := metadata.MD{}
	for _, h := range c.cfg.Headers {
		md.Append(h[0], h[1])
	}
	if c.cfg.Node.ClusterID != "" {
		md.Set("clusterid", c.cfg.Node.ClusterID)
	}
	if c.cfg.Token == nil {
		return md, nil
	}
	token, err := c.cfg.Token()
	if err != nil {
		return nil, fmt.Errorf("xds: token: %w", err)
	}
	// A line end at the end of the file is usual, and would break the header.
	token = strings.TrimSpace(token)
	if token == "" {
		return md, nil
	}
	// What is wrong with it is said without quoting it.
	if len(token) > maxToken {
		return nil, fmt.Errorf("xds: token: %d bytes, the limit is %d", len(token), maxToken)
	}
	if i := notPrintable(token); i >= 0 {
		return nil, fmt.Errorf("xds: token: a byte at %d cannot be in a header", i)
	}
	md.Set("authorization", "Bearer "+token)
	return md, nil
}
