package event

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// dialRetry is the pause before connecting again when the agent's listen queue
// is full.
const dialRetry = 20 * time.Millisecond

// Client is the plugin's end. The zero value but for Path is ready. Its errors
// are an *Error (the agent's refusal), or match ErrAway or ErrLost; others say
// that what was to be sent is not fit to be.
type Client struct {
	Path string // of the agent's socket
}

// Add holds the conversation of one ADD. If the agent wants the pod redirected
// it calls program, which says who programmed it, ByPlugin or ByAgent, or fails;
// its error is returned as it is. netns stays the caller's. After any error the
// caller undoes what program did.
func (c *Client) Add(ctx context.Context, add Add, netns *os.File, program func(Redirect) (how string, err error)) (Answer, error) {
	if netns == nil {
		return Answer{}, errors.New("event: add without a network namespace")
	}
	t, err := c.dial(ctx, message{Kind: kindAdd, Add: &add}, netns)
	if err != nil {
		return Answer{}, err
	}
	defer t.c.Close()
	answer, err := t.answer(ctx)
	if err != nil || answer.Action == Leave {
		return answer, err
	}
	how, err := program(*answer.Redirect)
	if err != nil {
		// The agent learns why; if it cannot be told, the end of the connection says enough.
		_ = t.send(ctx, message{Version: Version, Kind: kindFailed, Error: &Error{Msg: cut(err.Error())}}, nil)
		return answer, err
	}
	if err := t.send(ctx, message{Version: Version, Kind: kindProgrammed, How: how}, nil); err != nil {
		// The agent may have refused in the meantime: its reason is the better one.
		if refusal := new(Error); errors.As(t.done(ctx), &refusal) {
			return answer, refusal
		}
		return answer, lost(err)
	}
	return answer, t.done(ctx)
}

// Del ends an attachment.
func (c *Client) Del(ctx context.Context, key Key, podUID string) error {
	return c.ask(ctx, message{Kind: kindDel, Del: &delReq{Key: key, PodUID: podUID}})
}

// Check asks what an attachment must look like.
func (c *Client) Check(ctx context.Context, key Key) (Answer, error) {
	t, err := c.dial(ctx, message{Kind: kindCheck, Check: &key}, nil)
	if err != nil {
		return Answer{}, err
	}
	defer t.c.Close()
	return t.answer(ctx)
}

// GC names the network's valid attachments; the others are ended.
func (c *Client) GC(ctx context.Context, network string, valid []Key) error {
	if len(valid) > maxValid {
		return fmt.Errorf("event: %d attachments, at most %d are allowed", len(valid), maxValid)
	}
	var rest []message
	for _, part := range chunk(network, valid) {
		rest = append(rest, message{Kind: kindGC, GC: &part})
	}
	return c.ask(ctx, rest...)
}

// Status asks whether the agent could decide about a pod.
func (c *Client) Status(ctx context.Context) error {
	return c.ask(ctx, message{Kind: kindStatus})
}

// ask sends a request that is answered by done.
func (c *Client) ask(ctx context.Context, request ...message) error {
	t, err := c.dial(ctx, request[0], nil)
	if err != nil {
		return err
	}
	defer t.c.Close()
	for _, m := range request[1:] {
		m.Version = Version
		if err := t.send(ctx, m, nil); err != nil {
			return away(err)
		}
	}
	if err := t.done(ctx); !errors.Is(err, ErrLost) {
		return err
	}
	return away(errors.New("no answer"))
}

// dial connects and sends the first message. The caller closes the connection.
func (c *Client) dial(ctx context.Context, m message, file *os.File) (conn, error) {
	m.Version = Version
	if err := m.check(); err != nil {
		return conn{}, fmt.Errorf("event: %s: %w", m.Kind, err)
	}
	uc, err := c.connect(ctx)
	if err != nil {
		return conn{}, away(err)
	}
	t := conn{uc}
	if err := t.send(ctx, m, file); err != nil {
		uc.Close()
		return conn{}, away(err)
	}
	return t, nil
}

func (c *Client) connect(ctx context.Context) (*net.UnixConn, error) {
	var d net.Dialer
	for {
		nc, err := d.DialContext(ctx, "unixpacket", c.Path)
		if err == nil {
			return nc.(*net.UnixConn), nil
		}
		// A full queue is a busy agent, not one that is away.
		if !errors.Is(err, syscall.EAGAIN) {
			return nil, err
		}
		select {
		case <-time.After(dialRetry):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}

// answer receives the decision.
func (c conn) answer(ctx context.Context) (Answer, error) {
	m, err := c.recv(ctx)
	switch {
	case err != nil:
		return Answer{}, away(err)
	case m.Kind == kindError:
		return Answer{}, m.Error
	case m.Kind != kindAnswer:
		return Answer{}, away(fmt.Errorf("it sent %s for an answer", m.Kind))
	}
	return *m.Answer, nil
}

// done receives the end.
func (c conn) done(ctx context.Context) error {
	m, err := c.recv(ctx)
	switch {
	case err != nil:
		return lost(err)
	case m.Kind == kindError:
		return m.Error
	case m.Kind != kindDone:
		return lost(fmt.Errorf("it sent %s for done", m.Kind))
	}
	return nil
}

func away(err error) error { return fmt.Errorf("%w: %w", ErrAway, err) }
func lost(err error) error { return fmt.Errorf("%w: %w", ErrLost, err) }
