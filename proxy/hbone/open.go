package hbone

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/warren-mesh/warren/proxy/hbone/h2"
	"golang.org/x/net/http2"
)

// errStale says that a tunnel was lost, closing or full when a stream was to be
// opened: another has to be found.
var errStale = errors.New("tunnel takes no more streams")

// request sends a CONNECT; await says what became of it.
func (t *tunnel) request(req Request) (*Stream, <-chan error, error) {
	t.mu.Lock()
	if t.err != nil || t.deaf || t.closing || t.drain.started {
		t.mu.Unlock()
		return nil, nil, errStale
	}
	hs, err := t.h2.Open(req.Authority, req.Header)
	if err != nil {
		t.mu.Unlock()
		if errors.Is(err, h2.ErrHeaderSize) {
			return nil, nil, fmt.Errorf("hbone: CONNECT %s: %w", req.Authority, err)
		}
		return nil, nil, errStale
	}
	s := newStream(t, hs)
	answer := make(chan error, 1)
	s.opening.answer = answer
	t.changedLocked()
	t.send()
	return s, answer, nil
}

// await waits for the answer to the CONNECT of s.
func (s *Stream) await(ctx context.Context, answer <-chan error) error {
	limit := s.t.cfg.ResponseTimeout
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return s.giveUp(answer, context.Cause(ctx))
	case <-timeout.C:
		return s.giveUp(answer, fmt.Errorf("hbone: no answer to CONNECT: %w after %s", ErrTimeout, limit))
	}
}

// giveUp takes a CONNECT back because of err, unless it is answered in this very
// moment; it returns what became of it.
func (s *Stream) giveUp(answer <-chan error, err error) error {
	t := s.t
	t.mu.Lock()
	if s.opening == nil || s.opening.answer == nil {
		t.mu.Unlock()
		return <-answer
	}
	s.opening.answer = nil
	s.resetLocked(http2.ErrCodeCancel)
	t.changedLocked()
	t.kick()
	return err
}
