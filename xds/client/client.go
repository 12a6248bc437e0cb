package client

import (
	"context"
	"errors"
	"time"

	"github.com/warren-mesh/warren/xds/workload"
)

// State of the line to the control plane.
type State string

// States.
const (
	Idle       State = "idle" // Run has not been called, or has returned
	Connecting State = "connecting"
	Connected  State = "connected"
	Waiting    State = "waiting" // until the next attempt
)

// Status is what operators see of the line.
type Status struct {
	Address     string
	State       State
	Since       time.Time // of the state
	LastError   string    // the latest failure; kept when the line works again
	LastSuccess time.Time // when a response was last applied
}

// Client follows one control plane. Its methods may be called from any goroutine.
type Client struct {
	cfg   Config
	store *workload.Store

	synced chan struct{}
}

// New returns a client that writes to the store. It does not connect yet.
func New(cfg Config, store *workload.Store) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Client{cfg: cfg, store: store, synced: make(chan struct{})}, nil
}

// Run follows the control plane until the context ends. It never gives up.
func (c *Client) Run(ctx context.Context) error { return errors.New("xds: not built yet") }

// Synced is closed once a response of each type has been applied, even if some
// of its resources were refused.
func (c *Client) Synced() <-chan struct{} { return c.synced }

// Status describes the line.
func (c *Client) Status() Status { return Status{Address: c.cfg.Address, State: Idle} }
