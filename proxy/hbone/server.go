package hbone

import (
	"context"
	"crypto/tls"
	"net"
	"sync/atomic"

	"golang.org/x/net/http2/hpack"
)

// Handler answers the CONNECTs of a tunnel. Connect is called by the tunnel's
// reader and must not block: it starts a goroutine, or decides at once.
type Handler interface {
	Connect(*Incoming)
}

// HandlerFunc is a func as a Handler.
type HandlerFunc func(*Incoming)

// Connect calls f.
func (f HandlerFunc) Connect(in *Incoming) { f(in) }

// Serve runs one tunnel on an accepted TCP connection until it ends: TLS, then
// HTTP/2, then a call of h for each CONNECT. It owns conn and closes it.
//
// When ctx is done the tunnel ends at once. When drain is, it drains: the peer
// gets GOAWAY, streams go on, and Serve returns when the last one has ended. The
// error is nil after a drain, after the peer closed an idle tunnel and after it
// closed one in good order; else a *TLSError or what broke.
func Serve(ctx, drain context.Context, conn net.Conn, tlsConfig *tls.Config, cfg Config, h Handler) error {
	closeIt := context.AfterFunc(ctx, func() { conn.Close() })
	t, err := newTunnel(drain, conn, tlsConfig, cfg.withDefaults(), false)
	closeIt()
	if err != nil {
		return err
	}
	t.onConnect = h.Connect
	t.begin()
	defer context.AfterFunc(ctx, func() { t.fail(context.Cause(ctx)) })()
	defer context.AfterFunc(drain, t.startDrain)()
	return t.run()
}

// Incoming is a CONNECT that waits for an answer. Exactly one of Accept and
// Reject must be called; later calls do nothing. Both may be called from any
// goroutine.
type Incoming struct {
	// Authority is the :authority of the request as received.
	Authority string

	header   []hpack.HeaderField
	s        *Stream
	gone     <-chan struct{}
	answered atomic.Bool
}

// newIncoming makes the request out of its stream; only the reader calls it.
func newIncoming(s *Stream, header []hpack.HeaderField) *Incoming {
	in := &Incoming{header: header, s: s}
	if a := values(header, ":authority"); len(a) == 1 {
		in.Authority = a[0]
	}
	gone := make(chan struct{})
	in.gone = gone
	s.t.mu.Lock()
	if s.opening != nil {
		s.opening.gone = gone
	}
	s.t.mu.Unlock()
	return in
}

// Header returns the values of a request header, in order, for a name in lower case.
func (in *Incoming) Header(name string) []string { return values(in.header, name) }

// TLS returns the state of the tunnel's TLS connection.
func (in *Incoming) TLS() tls.ConnectionState { return in.s.t.state() }

// RemoteAddr is the tunnel's peer.
func (in *Incoming) RemoteAddr() net.Addr { return in.s.t.wire.remote }

// LocalAddr is our end of the tunnel.
func (in *Incoming) LocalAddr() net.Addr { return in.s.t.wire.local }

// Done is closed when the peer gave up the request or its tunnel ended before
// the answer, so that a dial under way for it can stop.
func (in *Incoming) Done() <-chan struct{} { return in.gone }

// OnGone has f called when Done is closed, at once if it is. f must not block.
func (in *Incoming) OnGone(f func()) {
	t := in.s.t
	t.mu.Lock()
	select {
	case <-in.gone:
		t.mu.Unlock()
		f()
		return
	default:
	}
	if o := in.s.opening; o != nil {
		o.onGone = f
	}
	t.mu.Unlock()
}

// Accept answers 200 with header and returns the stream. When the request is
// already gone the stream ends as soon as it is attached. A second call returns
// the same stream; after Reject it is one that has ended.
func (in *Incoming) Accept(header [][2]string) *Stream {
	t := in.s.t
	if in.answered.Swap(true) {
		return in.s
	}
	t.mu.Lock()
	in.s.answered()
	if t.err == nil {
		t.h2.Accept(in.s.h, header)
	}
	t.send()
	return in.s
}

// Reject answers with status and ends the stream.
func (in *Incoming) Reject(status int) {
	t := in.s.t
	if in.answered.Swap(true) {
		return
	}
	t.mu.Lock()
	in.s.answered()
	if t.err == nil {
		t.h2.Refuse(in.s.h, status)
	}
	in.s.muted = true
	t.changedLocked()
	t.kick()
}

// answered ends the time in which the request may be given up; t.mu is held.
func (s *Stream) answered() {
	if s.opening != nil {
		s.opening.gone, s.opening.onGone = nil, nil
	}
}
