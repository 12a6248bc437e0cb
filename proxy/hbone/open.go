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
	s, err := t.openLocked(req)
	if err != nil {
		t.mu.Unlock()
		return nil, nil, err
	}
	answer := make(chan error, 1)
	s.opening.answer, s.opening.waits = func(err error) { answer <- err }, true
	t.send()
	return s, answer, nil
}

// openLocked makes a stream and its CONNECT, which is to be sent.
func (t *tunnel) openLocked(req Request) (*Stream, error) {
	if t.err != nil || t.deaf || t.closing || t.drain.started {
		return nil, errStale
	}
	hs, err := t.h2.Open(req.Authority, req.Header)
	switch {
	case errors.Is(err, h2.ErrHeaderSize):
		return nil, fmt.Errorf("hbone: CONNECT %s: %w", req.Authority, err)
	case err != nil:
		t.changedLocked() // the pool hears of a lower limit before it is asked again
		return nil, errStale
	}
	s := newStream(t, hs)
	t.changedLocked()
	return s, nil
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
		return s.giveUp(answer, timeoutError(limit))
	}
}

// giveUp takes a CONNECT back because of err, unless it is answered in this very
// moment; it returns what became of it.
func (s *Stream) giveUp(answer <-chan error, err error) error {
	if s.takeBack() == nil {
		return <-answer
	}
	return err
}

// takeBack ends a stream whose CONNECT has not been answered, and returns who is to
// be told of it; nil: it has been answered.
func (s *Stream) takeBack() (answer func(error)) {
	t := s.t
	t.mu.Lock()
	if s.opening != nil {
		answer = s.opening.answer
	}
	if answer == nil {
		t.mu.Unlock()
		return nil
	}
	s.resetLocked(http2.ErrCodeCancel)
	t.changedLocked()
	t.kick()
	return answer
}
