package record

import (
	"context"
	"crypto/fips140"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// alpn is the protocol that tunnels speak. A peer that negotiates nothing is
// taken to speak it too, as ztunnel does.
const alpn = "h2"

// Handshake runs the TLS handshake in the role asked for and returns the record
// layer. It gives up when ctx is done; it does not close conn, whose deadlines
// it clears before it returns without error. What the peer sent right after
// the handshake may already be inside the layer: open an empty buffer first.
func Handshake(ctx context.Context, conn net.Conn, cfg *tls.Config, client bool, choice Choice) (Layer, error) {
	mem := &memConn{Conn: conn}
	var keys *secrets
	// In FIPS mode protection is to stay inside Go's module, which makes the
	// nonces there.
	if choice == Own && cfg != nil && !fips140.Enabled() {
		mem.measured = &measured{}
		keys = &secrets{mem: mem}
	}
	cfg = prepare(cfg, keys)
	t := tls.Server(mem, cfg)
	if client {
		t = tls.Client(mem, cfg)
	}
	if err := shake(ctx, conn, t); err != nil {
		return nil, err
	}
	state := t.ConnectionState()
	if p := state.NegotiatedProtocol; p != "" && p != alpn {
		return nil, fmt.Errorf("peer negotiated %q, not HTTP/2", p)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	rest := mem.detach()
	if keys != nil {
		if l, err := keys.layer(state, client, rest); l != nil || err != nil {
			return l, err
		}
	}
	mem.early = rest
	return &stock{mem: mem, tls: t}, nil
}

// shake runs the handshake of t over conn.
func shake(ctx context.Context, conn net.Conn, t *tls.Conn) error {
	stop := context.AfterFunc(ctx, func() {
		// In the past: Read and Write return at once. An error means that conn
		// is closed, which has the same effect.
		_ = conn.SetDeadline(time.Unix(1, 0))
	})
	err := t.HandshakeContext(ctx)
	// The end of ctx may have reached HandshakeContext before it reaches stop.
	if !stop() || err != nil && ctx.Err() != nil {
		// The deadline may be set already or be set yet: conn is of no use.
		return fmt.Errorf("handshake not finished: %w", context.Cause(ctx))
	}
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("peer closed the connection during the handshake: %w", err)
	}
	return clarify(err)
}

// prepare returns a copy of cfg for one connection: without dynamic record
// sizes, because small first records are for browsers and cost a system call
// and an AEAD operation each here; and with keys, if not nil, told the secrets.
// The configuration that GetConfigForClient returns is shared by connections
// and is copied as well.
func prepare(cfg *tls.Config, keys *secrets) *tls.Config {
	if cfg == nil || keys == nil && cfg.DynamicRecordSizingDisabled && cfg.GetConfigForClient == nil {
		return cfg
	}
	cfg = cfg.Clone()
	cfg.DynamicRecordSizingDisabled = true
	if keys != nil {
		cfg.KeyLogWriter = &tap{keys: keys, next: cfg.KeyLogWriter}
		// A ticket would be sealed with the key that we take over.
		cfg.SessionTicketsDisabled = true
	}
	if per := cfg.GetConfigForClient; per != nil {
		cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := per(hello)
			return prepare(c, keys), err
		}
	}
	return cfg
}
