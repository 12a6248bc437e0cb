package proxy

import (
	"context"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// starving is a listener whose process is out of descriptors for some calls.
type starving struct {
	fails int
	calls []time.Duration // when accept was called
	start time.Time
}

func (s *starving) AcceptTCP() (*net.TCPConn, error) {
	s.calls = append(s.calls, time.Since(s.start))
	if len(s.calls) > s.fails {
		return nil, net.ErrClosed
	}
	return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
}

// A lack of descriptors costs pauses, which grow to a second; it ends no loop.
func TestAcceptSurvives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs, _ := testLogs(t, LogConfig{Filter: "off"})
		defer logs.sink.Close()
		p := &pod{log: logs.scope("x"), soft: context.Background()}
		l := &starving{fails: 10, start: time.Now()}
		p.accept(l, func(*net.TCPConn) { t.Error("nothing was accepted") })
		ms := time.Millisecond
		want := []time.Duration{0, 5 * ms, 15 * ms, 35 * ms, 75 * ms, 155 * ms, 315 * ms, 635 * ms, 1275 * ms, 2275 * ms, 3275 * ms}
		if d := cmp.Diff(want, l.calls); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	})
}

// The end of a pod does not wait for a pause.
func TestAcceptPauseEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs, _ := testLogs(t, LogConfig{Filter: "off"})
		defer logs.sink.Close()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		p := &pod{log: logs.scope("x"), soft: ctx}
		l := &starving{fails: 10, start: time.Now()}
		p.accept(l, nil)
		if d := l.calls[len(l.calls)-1]; d != 0 {
			t.Errorf("took %s", d)
		}
	})
}
