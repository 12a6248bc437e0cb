package zds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/warren-mesh/warren/internal/netns"
)

// How long the proxy waits before it connects again: doubled with every failure,
// and none at all after a connection that worked.
const (
	backoffMin = 20 * time.Millisecond
	backoffMax = 15 * time.Second
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
func (c *Client) Run(ctx context.Context) error {
	wait := time.Duration(0)
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		acked, err := c.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		// An agent that hangs up on us again and again must not be met by a
		// busy loop, hence a connection counts only once something was acked.
		if acked > 0 {
			wait = 0
		} else {
			wait = min(max(2*wait, backoffMin), backoffMax)
		}
		c.Log.Info("no connection to the node agent", "path", c.Path, "acked", acked, "retry", wait, "err", err)
	}
}

func (c *Client) state(connected, synced bool) {
	if c.OnState != nil {
		c.OnState(connected, synced)
	}
}

// session is one connection: its end is its error. acked counts the messages
// answered.
func (c *Client) session(ctx context.Context) (acked int, err error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, c.Path)
	if err != nil {
		return 0, fmt.Errorf("zds: %w", err)
	}
	defer nc.Close()
	defer context.AfterFunc(ctx, func() { nc.Close() })()
	s := &clientSession{conn: conn{UnixConn: nc.(*net.UnixConn)}, client: c}
	hello, err := encodeHello()
	if err != nil {
		return 0, fmt.Errorf("zds: hello: %w", err)
	}
	if err := s.send(hello, nil); err != nil {
		return 0, fmt.Errorf("zds: hello: %w", err)
	}
	c.Log.Info("connected to the node agent", "path", c.Path)
	c.state(true, false)
	defer c.state(false, false)
	for {
		if err := s.step(ctx); err != nil {
			return s.acked, err
		}
		s.acked++
	}
}

type clientSession struct {
	conn
	client *Client
	synced bool
	acked  int
}

// step takes one message and answers it. What cannot be read is answered too,
// but ends the connection: the agent's next snapshot starts afresh.
func (s *clientSession) step(ctx context.Context) error {
	r, ns, err := s.read()
	if errors.Is(err, io.EOF) {
		return errors.New("zds: the agent closed the connection")
	}
	if e := (protocolError{}); errors.As(err, &e) {
		err = fmt.Errorf("failure to read message: %w", err)
		return errors.Join(err, s.ack(err.Error()))
	}
	if err != nil {
		return fmt.Errorf("zds: receive: %w", err)
	}
	text := ""
	if err := s.handle(ctx, r, ns); err != nil {
		s.client.Log.Warn("refused a message of the node agent", "message", r.kind.String(), "uid", r.uid, "err", err)
		text = err.Error()
	}
	return s.ack(text)
}

// read returns a message with the descriptor that belongs to it. The caller
// owns the namespace.
func (s *clientSession) read() (request, *netns.NS, error) {
	b, files, err := s.receive()
	if err != nil {
		return request{}, nil, err
	}
	r, err := decodeRequest(b)
	if err == nil {
		err = s.fits(r, len(files))
	}
	if err != nil {
		closeAll(files)
		return request{}, nil, protocolError{err}
	}
	if len(files) == 0 {
		return r, nil, nil
	}
	ns, err := netns.FromFile(files[0])
	if err != nil {
		return request{}, nil, protocolError{fmt.Errorf("%s for uid %q: %w", r.kind, r.uid, err)}
	}
	return r, ns, nil
}

// fits says whether a message may come now, and with so many descriptors.
func (s *clientSession) fits(r request, fds int) error {
	want := 0
	if r.kind == kindAdd {
		want = 1
	}
	switch {
	case fds != want:
		return fmt.Errorf("%s with %d file descriptors instead of %d", r.kind, fds, want)
	case s.synced && (r.kind == kindKeep || r.kind == kindSnapshot):
		return fmt.Errorf("%s after the snapshot was complete", r.kind)
	default:
		return nil
	}
}

func (s *clientSession) handle(ctx context.Context, r request, ns *netns.NS) error {
	ctx, cancel := context.WithTimeout(ctx, handleTimeout)
	defer cancel()
	h := s.client.Handler
	switch r.kind {
	case kindAdd:
		return h.Add(ctx, Workload{UID: r.uid, Info: r.info, NS: ns})
	case kindKeep:
		h.Keep(r.uid)
		return nil
	case kindDel:
		return h.Del(ctx, r.uid)
	default:
		if err := h.Snapshot(ctx); err != nil {
			return err
		}
		s.synced = true
		s.client.state(true, true)
		return nil
	}
}

func (s *clientSession) ack(text string) error {
	b, err := encodeAck(text)
	if err == nil {
		err = s.send(b, nil)
	}
	if err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("zds: ack: %w", err)
	}
	return err
}
