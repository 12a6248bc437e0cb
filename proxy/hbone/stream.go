package hbone

import (
	"crypto/tls"
	"net"
)

// Stream is one CONNECT stream, after its 200. It satisfies relay.Far, which
// says what the callbacks of Attach owe each other. A stream must be attached
// or reset, or it holds its place in the tunnel for ever.
type Stream struct{}

// Header returns the values of a header of the peer's request or response, in
// order, for a name in lower case.
func (s *Stream) Header(name string) []string { return nil }

// TLS returns the state of the tunnel's TLS connection, the peer's certificate in it.
func (s *Stream) TLS() tls.ConnectionState { return tls.ConnectionState{} }

// RemoteAddr is the tunnel's peer.
func (s *Stream) RemoteAddr() net.Addr { return nil }

// LocalAddr is our end of the tunnel.
func (s *Stream) LocalAddr() net.Addr { return nil }

// Attach starts the traffic of the stream; see relay.Far.
func (s *Stream) Attach(pull func(dst []byte) (int, error), push func(bufs [][]byte) (int, error), end func(error)) {
}

// Ready says that pull has something; see relay.Far.
func (s *Stream) Ready() {}

// Took returns credit for n bytes; see relay.Far.
func (s *Stream) Took(n int) {}

// Reset ends the stream as an abnormal close: the peer gets RST_STREAM with
// CONNECT_ERROR (RFC 9113 §8.5).
func (s *Stream) Reset(err error) {}
