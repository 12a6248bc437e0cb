package hbone

import (
	"context"
	"crypto/tls"
	"net"
	"time"
)

// Over opens one stream through a tunnel of its own on conn, which the tunnel owns
// from here on: a TCP connection, or the end of one that leads into a stream of
// another tunnel. The tunnel ends after its stream, once the peer has got all of
// it; ended is called then, or before an error is returned. Errors are those of
// [Pool.Open].
func Over(ctx context.Context, conn net.Conn, tc *tls.Config, cfg Config, req Request, ended func()) (*Stream, error) {
	t, err := newTunnel(ctx, conn, tc, cfg.withDefaults(), true)
	if err != nil {
		ended()
		return nil, err
	}
	used := false // guarded by t.mu
	t.onChange = func() {
		n := t.h2.Streams()
		if used && n == 0 {
			t.leaveLocked()
		}
		used = used || n > 0
	}
	t.begin()
	over := make(chan struct{})
	go func() {
		defer close(over)
		_ = t.run() // its stream got the error
		ended()
	}()
	s, answer, err := t.request(req)
	if err == nil {
		err = s.await(ctx, answer)
	}
	if err != nil {
		t.fail(err)
		<-over
		return nil, err
	}
	return s, nil
}

// leaveLocked drains a tunnel that gets no more streams. Closing it at once could
// destroy what is still on its way through the other tunnel: the answer to a PING
// says that all before it has arrived.
func (t *tunnel) leaveLocked() {
	if t.drain.started || t.closing || t.closed || t.err != nil {
		return
	}
	t.drain.start()
	t.h2.Ping(drainPing)
	t.lingering = time.AfterFunc(t.cfg.PingTimeout, t.hangUp)
}
