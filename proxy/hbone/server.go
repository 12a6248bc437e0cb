package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
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

// Serve runs one tunnel on an accepted connection until it ends: TLS, then
// HTTP/2, then a call of h for each CONNECT. It owns conn and closes it.
//
// When ctx is done the tunnel drains: the peer gets GOAWAY, streams go on, and
// Serve returns when the last one has ended. To end it at once, close conn.
// The error is nil after a drain, after the peer closed an idle tunnel and
// after it closed one in good order.
func Serve(ctx context.Context, conn net.Conn, tlsConfig *tls.Config, cfg Config, h Handler) error {
	conn.Close()
	return errors.ErrUnsupported
}

// Incoming is a CONNECT that waits for an answer. Exactly one of Accept and
// Reject must be called; later calls do nothing. Both may be called from any
// goroutine.
type Incoming struct {
	// Authority is the :authority of the request as received.
	Authority string
}

// Header returns the values of a request header, in order, for a name in lower case.
func (in *Incoming) Header(name string) []string { return nil }

// TLS returns the state of the tunnel's TLS connection.
func (in *Incoming) TLS() tls.ConnectionState { return tls.ConnectionState{} }

// RemoteAddr is the tunnel's peer.
func (in *Incoming) RemoteAddr() net.Addr { return nil }

// LocalAddr is our end of the tunnel.
func (in *Incoming) LocalAddr() net.Addr { return nil }

// Done is closed when the peer gave up the request or its tunnel ended, so
// that a dial under way for it can stop.
func (in *Incoming) Done() <-chan struct{} { return nil }

// Accept answers 200 with header and returns the stream. When the request is
// already gone the stream ends as soon as it is attached.
func (in *Incoming) Accept(header [][2]string) *Stream { return &Stream{} }

// Reject answers with status and ends the stream.
func (in *Incoming) Reject(status int) {}
