package event

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/warren-mesh/warren/internal/netns"
)

var (
	errPluginGone = errors.New("the plugin is gone")
	errTimeout    = errors.New("the time for this answer is over")
	errTurn       = errors.New("the plugin spoke when it was not its turn")
)

// converse holds one conversation. The caller closes c.
func (s *server) converse(ctx context.Context, uc *net.UnixConn) {
	if err := peerIsRoot(uc); err != nil {
		s.log.Warn("refused a peer on the CNI socket", "err", err)
		return
	}
	ctx, cancel := context.WithTimeoutCause(ctx, s.total, errTimeout)
	defer cancel()
	c := &talk{conn: conn{uc}, s: s, version: Version}
	m, file, err := c.first(ctx)
	if err != nil {
		switch {
		case errors.Is(err, io.EOF): // a plugin that changed its mind, a probe, or one that was answered
		case errors.Is(err, errTimeout):
			c.refuse(ctx, err)
		default:
			s.log.Warn("refused a message on the CNI socket", "err", err)
			c.refuse(ctx, &Error{Msg: "the node agent refused the plugin's request: " + err.Error(), Details: "is another program using the agent's socket?"})
		}
		return
	}
	c.version = m.Version
	if m.Kind == kindAdd {
		c.add(ctx, *m.Add, file)
		return
	}
	if file != nil {
		file.Close()
	}
	c.request(ctx, m)
}

// talk is one conversation.
type talk struct {
	conn
	s       *server
	version int // the plugin's
}

// first receives the request and checks that it is one, with a descriptor
// exactly if it is an add.
func (c *talk) first(ctx context.Context) (message, *os.File, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.s.first, errTimeout)
	defer cancel()
	m, file, err := c.recvFile(ctx)
	if errors.Is(err, errVersion) {
		c.refuse(ctx, versionError(m.Version))
		return m, nil, io.EOF // answered
	}
	switch {
	case err != nil:
	case m.Kind == kindAdd && file == nil:
		err = errors.New("an add without the descriptor of a network namespace")
	case m.Kind != kindAdd && file != nil:
		err = fmt.Errorf("a descriptor with a %s", m.Kind)
	}
	if err != nil && file != nil {
		file.Close()
		file = nil
	}
	return m, file, err
}

func versionError(v int) *Error {
	e := &Error{Msg: fmt.Sprintf("the node agent speaks versions %d to %d of the plugin's protocol, the plugin %d", oldest, Version, v)}
	if v > Version {
		e.Retryable, e.Details = true, "wait for the node agent to be upgraded"
	} else {
		e.Details = "let the node agent install its own plugin"
	}
	return e
}

// request serves everything but add.
func (c *talk) request(ctx context.Context, m message) {
	reply := message{Kind: kindDone}
	var err error
	switch m.Kind {
	case kindDel:
		err = c.work(ctx, func(ctx context.Context) error { return c.s.h.Del(ctx, m.Del.Key, m.Del.PodUID) })
	case kindCheck:
		err = c.work(ctx, func(ctx context.Context) error {
			a, err := c.s.h.Check(ctx, *m.Check)
			reply = message{Kind: kindAnswer, Answer: trim(a)}
			return err
		})
	case kindGC:
		var valid []Key
		if valid, err = c.valid(ctx, m.GC); err == nil {
			err = c.work(ctx, func(ctx context.Context) error { return c.s.h.GC(ctx, m.GC.Network, valid) })
		}
	case kindStatus:
		err = c.work(ctx, c.s.h.Status)
	default:
		err = fmt.Errorf("a conversation does not begin with %s", m.Kind)
	}
	if err != nil {
		c.refuse(ctx, err)
		return
	}
	c.say(ctx, reply) // one that is not heard was only asked for: nothing to undo
}

// valid receives the rest of a GC's attachments.
func (c *talk) valid(ctx context.Context, g *gcReq) ([]Key, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.s.first, errTimeout)
	defer cancel()
	keys, network := g.Valid, g.Network
	for g.More {
		m, err := c.recv(ctx)
		if err != nil {
			return nil, err
		}
		if m.Kind != kindGC || m.GC.Network != network {
			return nil, errTurn
		}
		g = m.GC
		if keys = append(keys, g.Valid...); len(keys) > maxValid {
			return nil, fmt.Errorf("more than %d attachments", maxValid)
		}
	}
	return keys, nil
}

// add serves an ADD. It owns file.
func (c *talk) add(ctx context.Context, a Add, file *os.File) {
	ns, err := netns.FromFile(file)
	if err != nil {
		c.refuse(ctx, &Error{Msg: "the pod's network namespace: " + err.Error(), Details: "the runtime's CNI_NETNS must be a network namespace"})
		return
	}
	a.Version = c.version
	var session Session
	var answer Answer
	err = c.work(ctx, func(ctx context.Context) (err error) {
		session, answer, err = c.s.h.Decide(ctx, a, ns)
		return err
	})
	if err == nil && (session != nil) != (answer.Action == RedirectSo) {
		err = fmt.Errorf("the node agent's answer %q and its session do not belong together", answer.Action)
	}
	if err == nil {
		err = c.say(ctx, message{Kind: kindAnswer, Answer: trim(answer)})
	}
	if err != nil {
		if session != nil {
			session.Abort(err)
		}
		c.refuse(ctx, err)
		return
	}
	if session != nil {
		c.redirected(ctx, session)
	}
}

// redirected is the second half of an ADD: after the answer.
func (c *talk) redirected(ctx context.Context, session Session) {
	m, err := c.recv(ctx)
	switch {
	case errors.Is(err, io.EOF):
		err = errPluginGone
	case err != nil:
	case m.Kind == kindFailed:
		err = m.Error
	case m.Kind != kindProgrammed:
		err = errTurn
	}
	if err != nil {
		session.Abort(err)
		c.refuse(ctx, err)
		return
	}
	if err := c.work(ctx, func(ctx context.Context) error { return session.Programmed(ctx, m.How) }); err != nil {
		c.refuse(ctx, err)
		return
	}
	err = c.say(ctx, message{Kind: kindDone})
	if err == nil {
		err = c.farewell(ctx)
	}
	if err != nil {
		session.Abort(err)
	}
}

// work calls the handler, within the time for an answer. Meanwhile the plugin
// has nothing to say: if it does, or is gone, the call's context ends.
func (c *talk) work(ctx context.Context, fn func(context.Context) error) error {
	ctx, stop := context.WithTimeoutCause(ctx, c.s.answer, errTimeout)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	watch, unwatch := context.WithCancel(context.Background())
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		switch _, file, err := c.packet(watch); {
		case watch.Err() != nil && err != nil:
		case err != nil:
			cancel(errPluginGone)
		default:
			if file != nil {
				file.Close()
			}
			cancel(errTurn)
		}
	}()
	err := fn(ctx)
	unwatch()
	<-watched
	if err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return context.Cause(ctx)
	}
	return err
}

// farewell waits until the plugin has read everything and closed. It fails if
// the plugin ended before it read.
func (c *talk) farewell(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.s.first, errTimeout)
	defer cancel()
	_, file, err := c.packet(ctx)
	if file != nil {
		file.Close()
	}
	if err == nil || errors.Is(err, io.EOF) || ctx.Err() != nil {
		return nil // read, or a plugin that stays: it will see what it was told
	}
	return fmt.Errorf("%w: %w", errPluginGone, err)
}

// say sends a message in the plugin's version.
func (c *talk) say(ctx context.Context, m message) error {
	m.Version = c.version
	return c.send(ctx, m, nil)
}

// refuse tells the plugin of an error, if it is still there to hear it.
func (c *talk) refuse(ctx context.Context, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.s.first)
	defer cancel()
	if err := c.say(ctx, message{Kind: kindError, Error: toWire(err)}); err != nil {
		c.s.log.Debug("the plugin did not hear of an error", "err", err)
	}
}

// toWire makes an error fit for the wire.
func toWire(err error) *Error {
	var e *Error
	switch {
	case errors.As(err, &e):
		return &Error{Retryable: e.Retryable, Msg: cut(e.Msg), Details: cut(e.Details)}
	case errors.Is(err, errStopping):
		return &Error{Retryable: true, Msg: err.Error(), Details: "it will be tried again when the agent is back"}
	case errors.Is(err, errTimeout), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &Error{Retryable: true, Msg: cut("the node agent was not done in time: " + err.Error()), Details: "it will be tried again; `nodeagent status` says what it waits for"}
	}
	return &Error{Msg: cut(err.Error())}
}

// trim makes an answer fit for the wire.
func trim(a Answer) *Answer {
	a.Reason = cut(a.Reason)
	return &a
}
