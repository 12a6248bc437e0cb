package svid

import (
	"context"
	"fmt"
)

// guardLocked waits for the end of the process that s was for, which has ended before: between streams nobody else would
// notice, and with a source that is away, or hangs, the next one may be long in coming. The certificate belongs to the
// process by which the pod was attested last: the wait ends with the first word of the next stream, which watches its own.
func (m *Manager) guardLocked(s *stream, lives *OutlivedError) {
	if lives == nil {
		return
	}
	e := s.e
	ctx, cancel := context.WithCancel(context.Background())
	if e.stream == s {
		e.unguardLocked()
		e.guard = cancel
	} else {
		cancel() // superseded
	}
	m.flights.Go(func() {
		defer cancel()
		if lives.Wait(ctx) != nil {
			return
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if ctx.Err() != nil {
			return
		}
		e.unguardLocked()
		m.processEndedLocked(e, fmt.Errorf("while the source was away: %w", ErrProcessEnded))
		m.soonLocked(e)
		e.tellLocked()
	})
}

func (e *entry) unguardLocked() {
	if e.guard != nil {
		e.guard()
		e.guard = nil
	}
}
