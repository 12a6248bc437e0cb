package client

import (
	"context"
	"fmt"
	"time"
)

const (
	// maxGathered small responses become visible as one, when they come together.
	maxGathered = 64
	// small is what such a response holds at most, in bytes, and in resources or names of
	// what is removed: so many may be in memory that nobody has looked at.
	smallBytes, smallItems = 64 << 10, 1 << 10
	// gatherFor is how long the first waits for the others that were read with it.
	gatherFor = time.Millisecond
)

// received is what a stream gave.
type received struct {
	response *delivery
	err      error         // the last one
	taken    chan struct{} // of a large one: closed when it has been handled
}

func (r *delivery) small() bool {
	return r.size <= smallBytes && r.resources.n <= smallItems && len(r.removed) <= smallItems
}

// receive passes on what the stream gives. What is not handled yet stays with gRPC, which
// has a window, but for some small ones.
func (s *session) receive(ctx context.Context, in chan<- received) {
	for {
		r, err := s.stream.Recv()
		m := received{response: r, err: err}
		if r != nil && !r.small() {
			m.taken = make(chan struct{})
		}
		select {
		case in <- m:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
		if m.taken == nil {
			continue
		}
		select {
		case <-m.taken:
		case <-ctx.Done():
			return
		}
	}
}

// gather takes a response, and those that have come with it.
func (s *session) gather(ctx context.Context, m received, in <-chan received) error {
	calm := s.c.serving() && !s.c.cfg.OnDemand
	for n := 0; ; n++ {
		if m.err != nil {
			if err := s.flush(ctx); err != nil {
				return err
			}
			return fmt.Errorf("xds: %w", cause(ctx, m.err))
		}
		err := s.take(ctx, m.response)
		if m.taken != nil {
			close(m.taken)
		}
		if err != nil {
			// What came before it is in the ledger, and the control plane will be told so.
			_ = s.flush(ctx) // it is err that ends the stream
			return err
		}
		if calm && n == 0 && s.held == nil {
			time.Sleep(gatherFor)
		}
		if !calm || n == maxGathered {
			return s.flush(ctx)
		}
		select {
		case m = <-in:
		default:
			return s.flush(ctx)
		}
	}
}
