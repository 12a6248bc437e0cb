package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/metadata"

	"github.com/warren-mesh/warren/xds/workload"
)

// Client follows one control plane. Its methods may be called from any goroutine.
type Client struct {
	cfg    Config
	target target
	node   *corev3.Node
	store  *workload.Store
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
	times  times

	line    line
	running atomic.Bool
	synced  chan struct{}
	once    sync.Once // closes synced
	asks    *asks

	// complaints about responses, as many as the log can take from a peer that
	// never stops giving reason.
	complaints rate.Sometimes

	// Of who receives, one session after the other.
	share     workload.Sharer
	receiving breath

	// Of Run's goroutine: what the store was given, over all connections.
	ledgers  [kinds]*ledger
	answered [kinds]bool
	applying breath
}

// times are the waits of one connection.
type times struct {
	connect time.Duration // to be connected and let in
	open    time.Duration // to be connected and allowed a stream
	write   time.Duration // until the peer must have made room for what is sent
	first   time.Duration // workloads wait for the first response about policies
	policy  time.Duration // workloads wait for policies that they name
	leave   time.Duration // policies that are gone wait for workloads that name them
}

func defaultTimes() times {
	return times{
		connect: connectTimeout, open: 2 * connectTimeout, write: 30 * time.Second,
		first: 5 * time.Second, policy: time.Second, leave: 5 * time.Second,
	}
}

// New returns a client that writes to the store. It does not connect yet.
func New(cfg Config, store *workload.Store) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	t, err := parseTarget(cfg.Address)
	if err != nil {
		return nil, err
	}
	node, err := cfg.Node.proto()
	if err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{
		cfg: cfg, target: t, node: node, store: store, times: defaultTimes(),
		dial: dialer().DialContext, synced: make(chan struct{}), asks: newAsks(),
		complaints: rate.Sometimes{First: 20, Interval: time.Second},
		line:       line{s: Status{Address: cfg.Address, State: Idle, Since: time.Now()}},
	}
	for k := range c.ledgers {
		c.ledgers[k] = newLedger(limits{resources: maxResources, bytes: maxBytes})
	}
	return c, nil
}

// Run follows the control plane until the context ends; then it returns nil. It
// never gives up. An error means that it was running already.
func (c *Client) Run(ctx context.Context) error {
	if !c.running.CompareAndSwap(false, true) {
		return errors.New("xds: the client is running already")
	}
	defer c.running.Store(false)
	defer c.line.set(Idle)
	var pause pace
	for {
		c.line.set(Connecting)
		lasted, err := c.attempt(ctx)
		if ctx.Err() != nil {
			return nil
		}
		wait := c.ended(ctx, &pause, lasted, err)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// ended takes note of a failure and says how long to wait.
func (c *Client) ended(ctx context.Context, pause *pace, lasted time.Duration, err error) time.Duration {
	reason := reasonOf(lasted >= 0, err)
	if c.cfg.Observer != nil {
		c.cfg.Observer.Ended(reason)
	}
	if lasted >= stable {
		pause.reset()
	}
	wait := pause.wait()
	c.line.failed(err)
	c.line.set(Waiting)
	level := slog.LevelWarn
	if reason == Reconnect || reason == Complete {
		level = slog.LevelInfo // control planes restart, and limit the age of connections
	}
	c.cfg.Log.Log(ctx, level, "no connection to the control plane", "address", c.cfg.Address,
		"reason", string(reason), "retry", wait, "err", clip(err.Error(), maxLastError))
	return wait
}

// attempt is one connection, from its beginning to its end. lasted is the time
// since the first response, negative if there was none.
func (c *Client) attempt(ctx context.Context) (lasted time.Duration, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	md, err := c.headers()
	if err != nil {
		return -1, err
	}
	conn, err := c.connect()
	if err != nil {
		return -1, err
	}
	defer func() { _ = conn.Close() }() // it only complains when closed twice
	// Opening waits also for the peer to allow streams, which it may never do.
	opened := time.AfterFunc(c.times.open, func() { cancel(errNotOpened) })
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).
		DeltaAggregatedResources(metadata.NewOutgoingContext(ctx, md))
	opened.Stop()
	if err != nil {
		return -1, fmt.Errorf("xds: connect: %w", cause(ctx, err))
	}
	s := newSession(c, grpcStream{stream}, cancel)
	err = s.run(ctx)
	if s.firstAt.IsZero() {
		return -1, err
	}
	return time.Since(s.firstAt), err
}

var (
	errNotOpened = errors.New("the control plane did not let us open a stream in time")
	errNotRead   = errors.New("the control plane does not read what it is sent")
)

// cause prefers why the context was cancelled to what gRPC made of it.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Synced is closed once a response of each type has been applied, even if some
// of its resources were refused.
func (c *Client) Synced() <-chan struct{} { return c.synced }

// Status describes the line.
func (c *Client) Status() Status { return c.line.get() }
