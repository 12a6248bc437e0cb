package event

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"
)

// limits are the server's bounds; tests make them short.
type limits struct {
	conversations int           // at a time; further peers wait in the listen queue
	first         time.Duration // for the first message to come, and a farewell to be read
	answer        time.Duration // for each call of the handler
	total         time.Duration // for a conversation
}

func defaultLimits() limits {
	return limits{
		// A node that boots starts all its pods at once.
		conversations: 256,
		first:         AgentTimeout,
		answer:        AgentTimeout,
		total:         PluginTimeout - 500*time.Millisecond,
	}
}

type server struct {
	limits
	h   Handler
	log *slog.Logger
}

var errStopping = errors.New("the node agent is stopping")

// Serve holds conversations with plugins on l, of network "unixpacket", until
// ctx ends; then it refuses those that it holds and returns nil after the last
// one. It closes l.
func Serve(ctx context.Context, l *net.UnixListener, h Handler, log *slog.Logger) error {
	return (&server{limits: defaultLimits(), h: h, log: log}).serve(ctx, l)
}

func (s *server) serve(ctx context.Context, l *net.UnixListener) error {
	stopped := ctx
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(stopped))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(errStopping)
	defer l.Close()
	defer context.AfterFunc(stopped, func() {
		cancel(errStopping) // the cause tells plugins why they are refused
		l.Close()
	})()

	slots := make(chan struct{}, s.conversations)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		c, err := s.accept(ctx, l)
		if err != nil || ctx.Err() != nil {
			if c != nil {
				c.Close()
			}
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		wg.Go(func() {
			defer func() { <-slots }()
			defer c.Close()
			s.converse(ctx, c)
		})
	}
}

// accept outlives a lack of descriptors; only the listener's end stops it.
func (s *server) accept(ctx context.Context, l *net.UnixListener) (*net.UnixConn, error) {
	const least, most = 5 * time.Millisecond, time.Second
	for wait := least; ; wait = min(2*wait, most) {
		c, err := l.AcceptUnix()
		if err == nil || errors.Is(err, net.ErrClosed) {
			return c, err
		}
		s.log.Warn("cannot accept a CNI plugin", "err", err, "retry", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
