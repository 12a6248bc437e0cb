package zds

import (
	"context"
	"errors"
	"log/slog"
)

// Client is the proxy's end. All fields but OnState are required.
type Client struct {
	Path    string
	Handler Handler
	Log     *slog.Logger
	// OnState is told, from Run's goroutine, when a connection is there, when its
	// snapshot has been taken, and when it is gone. OnState(true, false) comes
	// before the first message of a connection.
	OnState func(connected, synced bool)
}

// Run connects, and connects again, until ctx ends; then it returns nil. No
// mistake of the agent's ends it.
func (c *Client) Run(ctx context.Context) error { return errors.New("zds: not built yet") }
