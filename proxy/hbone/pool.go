package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Key names the tunnels that may carry a stream: who speaks, whom we accept
// as the peer, where it listens and which source address the tunnel has.
type Key struct {
	Src      spiffeid.ID
	Expected string // the accepted peer identities, joined by the caller
	Dst      netip.AddrPort
	SrcIP    netip.Addr
}

// Request is what a CONNECT carries besides its stream. Header names are
// lower case and must not start with a colon; order and repetition are kept.
type Request struct {
	Authority string
	Header    [][2]string
}

// Pool opens streams and keeps the tunnels for them: one dialer a key at a
// time, streams spread over a key's tunnels, idle ones released.
type Pool struct{}

// NewPool returns a pool that makes connections with dial. dial is called on a
// goroutine of its own; its context ends when nobody waits for the result any
// more or the pool is closed. The pool owns the connection it returns.
func NewPool(cfg Config, dial func(context.Context, Key) (net.Conn, *tls.Config, error)) *Pool {
	return &Pool{}
}

// Open sends a CONNECT through a tunnel for key and returns once the peer
// answered 200. A stream that the peer refused unprocessed is tried once more
// on a fresh tunnel. Errors: *StatusError, *ConnectError, *TLSError,
// *ResetError, *TunnelError, ErrTimeout, ErrClosed or ctx's.
func (p *Pool) Open(ctx context.Context, key Key, req Request) (*Stream, error) {
	return nil, errors.ErrUnsupported
}

// Close resets all streams, closes all tunnels and waits for them. Later Opens
// fail with ErrClosed.
func (p *Pool) Close() error { return nil }

// Drain refuses new streams, waits until the last one has ended or ctx is
// done, and closes the pool. It returns ctx's error if streams were cut.
func (p *Pool) Drain(ctx context.Context) error { return nil }

// Stats describes the pool for a dump.
type Stats struct {
	Keys, Tunnels, Streams int
}

// Stats counts what the pool holds now.
func (p *Pool) Stats() Stats { return Stats{} }
