package hbone

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"

	"golang.org/x/net/http2"
)

// ErrClosed is returned by a Pool that was closed or is draining.
var ErrClosed = errors.New("hbone: pool is closed")

// ErrTimeout is wrapped by errors about a peer that did not answer in time.
var ErrTimeout = errors.New("timed out")

// StatusError is an answer to CONNECT other than 200.
type StatusError struct{ Code int }

func (e *StatusError) Error() string {
	if t := http.StatusText(e.Code); t != "" {
		return fmt.Sprintf("http status: %d %s", e.Code, t)
	}
	return fmt.Sprintf("http status: %d", e.Code)
}

// ConnectError says that no TCP connection to the peer's HBONE port came about.
type ConnectError struct {
	Dst netip.AddrPort
	Err error
}

func (e *ConnectError) Error() string { return fmt.Sprintf("hbone: connect to %s: %v", e.Dst, e.Err) }
func (e *ConnectError) Unwrap() error { return e.Err }

// TLSError says that the handshake with the peer failed, or that its record
// layer reported an error later.
type TLSError struct {
	Peer string // the peer's address
	Err  error
}

func (e *TLSError) Error() string { return fmt.Sprintf("hbone: TLS with %s: %v", e.Peer, e.Err) }
func (e *TLSError) Unwrap() error { return e.Err }

// ResetError says that the peer reset the stream (RFC 9113 §7 codes).
type ResetError struct{ Code http2.ErrCode }

func (e *ResetError) Error() string {
	return fmt.Sprintf("hbone: stream reset by peer: %v", e.Code)
}

// TunnelError says that the tunnel under a stream ended.
type TunnelError struct{ Err error }

func (e *TunnelError) Error() string { return fmt.Sprintf("hbone: tunnel lost: %v", e.Err) }
func (e *TunnelError) Unwrap() error { return e.Err }
