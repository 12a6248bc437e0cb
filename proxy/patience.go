package proxy

import (
	"context"
	"sync"
	"time"

	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/route"
)

// unansweredError says that an endpoint was left because it did not answer.
type unansweredError struct{ within time.Duration }

func (e unansweredError) Error() string {
	return "no answer within " + e.within.String() + ", and there was another endpoint"
}
func (unansweredError) Timeout() bool   { return true }
func (unansweredError) Temporary() bool { return true }

var (
	errUnanswered error = unansweredError{connectPatience} // no TCP connection came about
	errSilent     error = unansweredError{answerPatience}
)

// patience gives an endpoint up that takes too long while there is another.
type patience struct {
	c          *connection
	d          route.Decision
	search     search // as it is during the attempt: the connection's own goes on after it
	began      time.Time
	ctx        context.Context
	cancel     context.CancelCauseFunc
	connecting func() (since time.Time, yes bool)

	mu    sync.Mutex
	timer *time.Timer
}

// patiently is ctx for one attempt; done ends it. connecting says since when the
// endpoint has not answered, and whether it is that which is waited for.
func (c *connection) patiently(ctx context.Context, d route.Decision, connecting func() (time.Time, bool)) (attempt context.Context, done func()) {
	if c.search == nil {
		return ctx, func() {}
	}
	w := &patience{c: c, d: d, search: *c.search, began: time.Now(), connecting: connecting}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.mu.Lock()
	w.timer = time.AfterFunc(connectPatience, w.check)
	w.mu.Unlock()
	return w.ctx, w.done
}

func (w *patience) done() {
	w.cancel(nil)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
}

// check looks whether it is time. Where there is no other endpoint, or something
// else is waited for, it looks again later.
func (w *patience) check() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ctx.Err() != nil {
		return
	}
	if err := w.over(); err != nil && w.c.another(w.search, w.d) {
		w.cancel(err)
		return
	}
	w.timer.Reset(connectPatience / 4)
}

// over is not nil when the endpoint has had its time. While handshakes that the pod has
// begun wait for their turn it is not the endpoint that is waited for: another one would
// have to wait as long. Those of other pods, and with those who call this one, take turns
// with them, and say nothing of how long.
func (w *patience) over() error {
	since, connecting := w.connecting()
	switch {
	case connecting && time.Since(since) >= connectPatience:
		return errUnanswered
	case time.Since(w.began) >= answerPatience && w.c.p.s.gate.Waiting(w.c.p.uid) == 0:
		return errSilent
	}
	return nil
}

// late is what startStream's request asks when it has not been answered for a while: an
// error gives the endpoint up. It may still be asked when the answer has come, and the
// connection's search is over or goes on.
func (c *connection) late(d route.Decision) func() error {
	if c.search == nil {
		return nil
	}
	s := *c.search
	return func() error {
		if c.another(s, d) {
			return errSilent
		}
		return nil
	}
}

// since is a connect that begins now, for patiently.
func since() func() (time.Time, bool) {
	now := time.Now()
	return func() (time.Time, bool) { return now, true }
}

// connects are the TCP connections that the pool is making, and since when. A
// handshake is not among them: a peer that has much to do is to be waited for a while
// longer, or everybody would begin anew with another one, which has as much to do then.
type connects struct {
	mu sync.Mutex
	m  map[hbone.Key]time.Time
}

// begin notes a connect; end ends it. The next one to the same peer may have
// begun by then, if this one was given up.
func (t *connects) begin(k hbone.Key) (end func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		t.m = make(map[hbone.Key]time.Time)
	}
	at := time.Now()
	t.m[k] = at
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.m[k] == at {
			delete(t.m, k)
		}
	}
}

// of is what patiently wants to know of a key.
func (t *connects) of(k hbone.Key) func() (time.Time, bool) {
	return func() (time.Time, bool) {
		t.mu.Lock()
		defer t.mu.Unlock()
		at, ok := t.m[k]
		return at, ok
	}
}
