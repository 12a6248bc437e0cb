package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// deltaStream is one client's stream.
type deltaStream = discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer

// DeltaAggregatedResources serves one stream until it ends. It is called by gRPC.
func (s *Server) DeltaAggregatedResources(stream deltaStream) error {
	caller, release, err := s.admit(stream.Context())
	if err != nil {
		return err
	}
	c := &conn{
		server:  s,
		caller:  caller,
		log:     s.cfg.Log.With("caller", caller),
		session: newSession(time.Now(), s.cfg.AckTimeout),
		pump:    s.start(stream),
		leases:  leases{budget: s.sending},
	}
	defer c.leases.finish(min(lingering, s.cfg.AckTimeout), func() { hangUp(stream.Context()) }, release)
	defer func() { c.server.told.give(c.caller, c.told) }()
	c.log.Info("stream open")
	err = c.serve(stream.Context())
	c.log.Info("stream ended", "node", c.node, "err", err)
	return err
}

// pump is the two goroutines that a stream needs, since gRPC's Send and Recv block.
// Both end soon after the stream does.
type pump struct {
	in   <-chan message   // requests
	out  chan<- *response // taken one at a time
	sent <-chan error     // one for each taken
}

type message struct {
	req *discovery.DeltaDiscoveryRequest
	err error // the last one
}

func (s *Server) start(stream deltaStream) pump {
	done := stream.Context().Done()
	in, out, sent := make(chan message), make(chan *response), make(chan error, 1)
	s.pumps.Go(func() {
		for {
			req, err := stream.Recv()
			select {
			case in <- message{req: req, err: err}:
			case <-done:
				return
			}
			if err != nil {
				return
			}
		}
	})
	s.pumps.Go(func() {
		for {
			select {
			case r := <-out:
				sent <- stream.SendMsg(r) // never blocks: the next is taken after this was read
			case <-done:
				return
			}
		}
	})
	return pump{in: in, out: out, sent: sent}
}

// conn drives a session with what happens on its stream.
type conn struct {
	server  *Server
	caller  string
	log     *slog.Logger
	session *session
	pump    pump
	node    string    // as the client calls itself; only for the log
	sending bool      // a response is on its way into the stream; the session's deadline covers it
	ready   *response // that there is no room for yet
	leases  leases    // of what was sent
	told    int64     // counted of what the client said it has
}

func (c *conn) serve(ctx context.Context) error {
	timer := time.NewTimer(companion)
	defer timer.Stop()
	recheck := time.NewTicker(c.server.cfg.recheckEvery())
	defer recheck.Stop()
	for {
		newest, changed := c.server.states.newest()
		now := time.Now()
		var full <-chan struct{}
		if newest != nil && !c.sending {
			full = c.send(ctx, newest, now)
		}
		at, err := c.deadline(now)
		if err != nil {
			return err
		}
		if at.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(at.Sub(now))
		}
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-c.server.closing:
			return status.Error(codes.Unavailable, "the control plane is shutting down")
		case m := <-c.pump.in:
			if err := c.receive(m); err != nil || m.err != nil {
				return err
			}
		case err := <-c.pump.sent:
			c.sending = false
			if err != nil {
				return err
			}
		case <-recheck.C:
			if err := c.server.recheck(ctx, c.caller); err != nil {
				return err
			}
		case <-changed:
		case <-full:
		case <-timer.C:
		}
	}
}

// send starts sending the next response, if there is one. It stays in hand while there is
// no room for it, and the channel returned is closed when it is worth another try.
func (c *conn) send(ctx context.Context, newest *Snapshot, now time.Time) (full <-chan struct{}) {
	r := c.ready
	if r == nil {
		r = c.session.next(newest, now)
		_ = c.countTold() // an answer only gives back
	}
	if r == nil {
		return nil
	}
	c.session.subs[r.kind].since = now // to wait for others is not held against the client
	n := r.size()
	if n <= small {
		n = 0
	} else if full = c.server.sending.take(n); full != nil {
		c.ready = r
		return full
	}
	c.ready, r.end = nil, c.leases.add(n)
	c.server.stats.sent[r.kind].Add(1) // before the client can have it, and look
	select {
	case c.pump.out <- r:
	case <-ctx.Done():
		r.end()
		return nil
	}
	c.sending = true
	c.log.Debug("sent", "type", r.kind.typeURL(), "resources", len(r.resources), "removed", len(r.removed), "nonce", r.nonce)
	return nil
}

// receive takes one message; a nil error after the last one means that the client is done.
func (c *conn) receive(m message) error {
	if m.err != nil {
		if errors.Is(m.err, io.EOF) {
			return nil
		}
		return m.err
	}
	if c.node == "" {
		c.node = clip(m.req.GetNode().GetId(), 256)
	}
	rejected, err := c.session.request(m.req)
	if err == nil {
		err = c.countTold()
	}
	if err != nil {
		c.log.Warn("request refused", "node", c.node, "err", err)
		return err
	}
	if rejected != nil {
		c.log.Warn("the client did not take a response: it stays on what it had of the resources named",
			"node", c.node, "type", rejected.typeURL, "err", clip(rejected.message, 2048))
		if k, ok := kindOf(rejected.typeURL); ok {
			c.server.stats.rejected[k].Add(1)
		}
	}
	return nil
}

// deadline returns when to look again at the latest, or the error that cuts off a
// client that is too slow.
func (c *conn) deadline(now time.Time) (time.Time, error) {
	at, overdue := c.session.deadline(now)
	if !overdue {
		return at, nil
	}
	c.server.stats.cutOff.Add(1)
	return at, status.Error(codes.DeadlineExceeded, "the client takes or answers responses too slowly")
}

// clip keeps what a client says from filling the log.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}
