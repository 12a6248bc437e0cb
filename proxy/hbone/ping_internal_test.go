package hbone

import (
	"errors"
	"io"
	"testing"
	"time"
)

// TestPauseOfOurs: a PING that could not be answered in time is the peer's fault only if
// we were there to hear the answer.
func TestPauseOfOurs(t *testing.T) {
	for _, tt := range []struct {
		name  string
		late  time.Duration
		fails bool
	}{{"on time", 0, true}, {"held up", 3 * time.Second, false}} {
		t.Run(tt.name, func(t *testing.T) {
			u, peer := writer(t, plainLayer{})
			go func() { _, _ = io.Copy(io.Discard, peer) }()
			u.cfg.PingTimeout, u.cfg.PingInterval = time.Minute, time.Minute
			u.greeted, u.timer = true, time.NewTimer(time.Hour)
			asked := time.Now().Add(-u.cfg.PingTimeout - tt.late)
			u.pinged = asked
			u.tick()
			u.mu.Lock()
			defer u.mu.Unlock()
			if failed := errors.Is(u.err, ErrTimeout); failed != tt.fails {
				t.Errorf("the tunnel ended: %v, %v", failed, u.err)
			}
			if again := u.pinged.After(asked); again == tt.fails {
				t.Errorf("asked again: %v", again)
			}
		})
	}
}
