package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/warren-mesh/warren/xds/workload"
)

// maxEcho bounds what is sent back as it came: nonces and type URLs.
const maxEcho = 4 << 10

// maxNamesSent bounds a message: servers take 4 MiB.
const maxNamesSent = 1 << 10

// nothing is a name that no resource has: it is asked for where names are given back.
const nothing = "warren/nothing"

// maxNamed is how many policies a line of the log names.
const maxNamed = 16

// stream is what a session needs of gRPC's.
type stream interface {
	Send(*discovery.DeltaDiscoveryRequest) error
	Recv() (*delivery, error)
}

// grpcStream has the codec's own type received.
type grpcStream struct {
	discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
}

// Recv implements stream.
func (s grpcStream) Recv() (*delivery, error) {
	r := &delivery{}
	if err := s.RecvMsg(r); err != nil {
		return nil, err
	}
	return r, nil
}

// session is one stream. Its run is in Run's goroutine; a second one receives.
type session struct {
	c      *Client
	stream stream
	cancel context.CancelCauseFunc

	firstAt time.Time // of the first response
	seen    [kinds]bool

	// held waits for policies: it is applied when they come, or at the deadline.
	held     *change
	deadline <-chan time.Time

	awaited map[string]time.Time // policies that were not there, and until when each is waited for

	leaving   leaving
	departure <-chan time.Time // of the first of them

	asked []string // with the first request, on demand; nil once there is a response

	// pending is what the ledgers have and the store is to get, from made.
	pending workload.Batch
	made    []*change
}

func newSession(c *Client, st stream, cancel context.CancelCauseFunc) *session {
	return &session{c: c, stream: st, cancel: cancel, awaited: map[string]time.Time{}, leaving: leaving{}}
}

// run subscribes and takes responses until the stream fails or the context ends.
// The error is never nil.
func (s *session) run(ctx context.Context) error {
	var receiving sync.WaitGroup
	defer receiving.Wait()
	defer s.cancel(nil)
	defer s.c.asks.stopped()
	for k := range kind(kinds) {
		if err := s.subscribe(ctx, k); err != nil {
			return err
		}
	}
	in := make(chan received, maxGathered)
	receiving.Go(func() { s.receive(ctx, in) })
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("xds: %w", context.Cause(ctx))
		case m := <-in:
			if err := s.gather(ctx, m, in); err != nil {
				return err
			}
		case <-s.c.asks.wake:
			if err := s.demand(ctx); err != nil {
				return err
			}
		case <-s.deadline:
			s.complain(s.held)
			if err := s.release(ctx, nil); err != nil {
				return err
			}
		case <-s.departure:
			if err := s.depart(ctx); err != nil {
				return err
			}
		}
	}
}

// subscribe is the first request of a type: for everything, or on demand.
func (s *session) subscribe(ctx context.Context, k kind) error {
	r := &discovery.DeltaDiscoveryRequest{
		Node: s.c.node, TypeUrl: k.typeURL(), InitialResourceVersions: s.c.ledgers[k].initial(initialBudget),
	}
	onDemand := k == addresses && s.c.cfg.OnDemand
	s.c.ledgers[k].retold = !onDemand
	if onDemand {
		// Both at once is how to say: to nothing yet.
		s.asked = s.c.asks.restart()
		r.ResourceNamesSubscribe = append([]string{"*"}, s.asked...)
		r.ResourceNamesUnsubscribe = []string{"*"}
	}
	return s.send(ctx, r)
}

// demand sends what was asked for since the last time. A name that was asked for
// before is given back first, in a message of its own: only then is it a new question.
// So is that of a resource that has come, with another or by itself: Istio's control
// plane subscribes us to what it sends, and is silent when we ask for that.
func (s *session) demand(ctx context.Context) error {
	leave, enter := s.c.asks.due()
	for _, name := range enter {
		if _, held := s.c.ledgers[addresses].find(name); held {
			leave = append(leave, name)
		}
	}
	for _, t := range turns(leave, enter) {
		if len(t.leave) > 0 {
			if err := s.send(ctx, &discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResourceNamesSubscribe: []string{nothing}, ResourceNamesUnsubscribe: t.leave}); err != nil {
				return err
			}
		}
		if len(t.enter) > 0 {
			if err := s.send(ctx, &discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResourceNamesSubscribe: t.enter}); err != nil {
				return err
			}
		}
	}
	return nil
}

// send does not wait forever for a peer that answers pings but reads nothing.
func (s *session) send(ctx context.Context, r *discovery.DeltaDiscoveryRequest) error {
	slow := time.AfterFunc(s.c.times.write, func() { s.cancel(errNotRead) })
	defer slow.Stop()
	err := s.stream.Send(r)
	if err == nil || errors.Is(err, io.EOF) {
		return nil // at io.EOF the stream is over, and receive is told why
	}
	return fmt.Errorf("xds: send: %w", cause(ctx, err))
}

// take handles one response.
func (s *session) take(ctx context.Context, r *delivery) error {
	if s.firstAt.IsZero() {
		s.firstAt = time.Now()
		s.c.line.set(Connected)
		s.c.cfg.Log.Info("connected to the control plane", "address", s.c.cfg.Address)
	}
	if n := max(len(r.nonce), len(r.typeURL)); n > maxEcho {
		return fmt.Errorf("xds: the control plane sent a nonce or type of %d bytes, the limit is %d", n, maxEcho)
	}
	k, ok := kindOf(r.typeURL)
	if !ok {
		s.c.complaints.Do(func() {
			s.c.cfg.Log.Error("the control plane sent a type that was not asked for", "type", clip(r.typeURL, 128))
		})
		return s.send(ctx, &discovery.DeltaDiscoveryRequest{TypeUrl: r.typeURL, ResponseNonce: r.nonce})
	}
	if k == addresses && s.held != nil {
		// Changes of one type keep their order.
		if err := s.release(ctx, nil); err != nil {
			return err
		}
	}
	rest := s.c.resting(&s.c.applying)
	c := s.c.ledgers[k].read(k, r, rest)
	rest.end()
	if k == addresses && s.c.cfg.OnDemand {
		c.answers = answersOf(r, &c.refusals)
	}
	if s.c.cfg.Observer != nil {
		s.c.cfg.Observer.Received(k.typeURL(), c.received)
	}
	if k == policies {
		s.keep(c)
		return s.release(ctx, c)
	}
	if wait := s.lacking(c); wait > 0 {
		if err := s.flush(ctx); err != nil {
			return err
		}
		s.held, s.deadline = c, time.After(wait)
		return nil
	}
	s.add(c)
	return nil
}

// release applies what is held together with a change of policies, which may be
// nil.
func (s *session) release(ctx context.Context, c *change) error {
	held := s.held
	s.held, s.deadline = nil, nil
	if held != nil || c != nil && c.kind == policies {
		if err := s.flush(ctx); err != nil { // in the order in which they came
			return err
		}
	}
	for _, x := range []*change{held, c} {
		if x != nil {
			s.add(x)
		}
	}
	return s.flush(ctx)
}

// add notes a change for the next view.
func (s *session) add(c *change) {
	s.pending.Merge(c.batch)
	rest := s.c.resting(&s.c.applying)
	s.c.ledgers[c.kind].record(c, rest)
	rest.end()
	s.made = append(s.made, c)
}

// flush makes what was added visible as one, then answers.
func (s *session) flush(ctx context.Context) error {
	changes := s.made
	if len(changes) == 0 {
		return nil
	}
	rest := s.c.resting(&s.c.applying)
	s.c.store.ApplyGently(s.pending, rest.item)
	rest.end()
	s.pending, s.made = workload.Batch{}, nil
	for _, c := range changes {
		s.seen[c.kind] = true
	}
	s.c.applied(changes)
	for _, c := range changes {
		if o := s.c.cfg.Observer; o != nil {
			o.Applied(c.kind.typeURL(), c.refusals.count, s.c.ledgers[c.kind].unheld())
		}
		s.c.answer(c.answers)
		if c.answered {
			continue
		}
		if err := s.answer(ctx, c); err != nil {
			return err
		}
	}
	if s.seen[addresses] && s.asked != nil {
		s.c.asks.repeat(s.asked)
		s.asked = nil
	}
	return s.depart(ctx)
}

func (s *session) answer(ctx context.Context, c *change) error {
	ack := &discovery.DeltaDiscoveryRequest{TypeUrl: c.kind.typeURL(), ResponseNonce: c.nonce}
	if text := c.refusals.message(); text != "" {
		ack.ErrorDetail = &rpcstatus.Status{Message: text}
		s.c.complaints.Do(func() {
			s.c.cfg.Log.Warn("resources refused; their earlier versions stay", "type", c.kind.typeURL(),
				"refused", c.refusals.count, "taken", len(c.set)-len(c.standIns), "err", clip(text, maxLastError))
			if n := len(c.standIns); n > 0 { // in the same breath: the first line must not cost the second
				s.c.cfg.Log.Error("policies refused that have no earlier version; until a valid one comes, what they guard is closed",
					"count", n, "policies", clip(strings.Join(c.standIns[:min(n, maxNamed)], " "), maxLastError))
			}
		})
	} else {
		s.c.cfg.Log.Debug("response taken", "type", c.kind.typeURL(), "set", len(c.set), "removed", len(c.gone))
	}
	return s.send(ctx, ack)
}

// applied notes that changes are in the store.
func (c *Client) applied(changes []*change) {
	c.line.succeeded()
	for _, x := range changes {
		c.answered[x.kind] = true
	}
	if c.answered[addresses] && c.answered[policies] {
		c.once.Do(func() { close(c.synced) })
	}
}
