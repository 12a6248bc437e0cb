package event

import (
	"context"
	"errors"
	"log/slog"
	"net"
)

// Serve holds conversations with plugins on l, of network "unixpacket", until
// ctx ends; then it returns nil, after the last one ended. It closes l.
func Serve(ctx context.Context, l *net.UnixListener, h Handler, log *slog.Logger) error {
	return errors.New("event: not built yet")
}

// Listen makes the agent's socket at path, for root only, in the place of one
// that is there. Closing the listener leaves the file, which may be a
// successor's by then.
func Listen(path string) (*net.UnixListener, error) {
	return nil, errors.New("event: not built yet")
}
