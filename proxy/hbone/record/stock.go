package record

import (
	"context"
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
func Handshake(ctx context.Context, conn net.Conn, cfg *tls.Config, client bool) (Layer, error) {
	cfg = fullRecords(cfg)
	stop := context.AfterFunc(ctx, func() {
		// In the past: Read and Write return at once. An error means that conn
		// is closed, which has the same effect.
		_ = conn.SetDeadline(time.Unix(1, 0))
	})
	s := &stock{mem: memConn{Conn: conn}}
	if client {
		s.tls = tls.Client(&s.mem, cfg)
	} else {
		s.tls = tls.Server(&s.mem, cfg)
	}
	err := s.tls.HandshakeContext(ctx)
	if !stop() {
		// The deadline may be set already or be set yet: conn is of no use.
		return nil, fmt.Errorf("handshake not finished: %w", context.Cause(ctx))
	}
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("peer closed the connection during the handshake: %w", err)
		}
		return nil, clarify(err)
	}
	if p := s.tls.ConnectionState().NegotiatedProtocol; p != "" && p != alpn {
		return nil, fmt.Errorf("peer negotiated %q, not HTTP/2", p)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	s.mem.detached = true
	return s, nil
}

// fullRecords turns dynamic record sizing off: small first records are for
// browsers; here they cost a system call and an AEAD operation each.
func fullRecords(cfg *tls.Config) *tls.Config {
	if cfg == nil || cfg.DynamicRecordSizingDisabled {
		return cfg
	}
	cfg = cfg.Clone()
	cfg.DynamicRecordSizingDisabled = true
	if per := cfg.GetConfigForClient; per != nil {
		cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := per(hello)
			return fullRecords(c), err
		}
	}
	return cfg
}

// stock is the Layer over crypto/tls's own record layer.
type stock struct {
	mem memConn
	tls *tls.Conn
}

func (s *stock) Seal(dst, plain []byte) ([]byte, error) {
	s.mem.begin(dst)
	var err error
	if len(plain) > 0 {
		_, err = s.tls.Write(plain)
	}
	return s.mem.end(), err
}

func (s *stock) Open(dst, src []byte) ([]byte, int, error) {
	s.mem.src = src
	for cap(dst)-len(dst) >= MaxPlain {
		n, err := s.tls.Read(dst[len(dst):cap(dst)])
		dst = dst[:len(dst)+n]
		if _, empty := err.(errEmpty); empty {
			break
		}
		if err != nil {
			return dst, len(src), clarify(err)
		}
	}
	n := len(src) - len(s.mem.src)
	s.mem.src = nil
	return dst, n, nil
}

func (s *stock) CloseWrite(dst []byte) ([]byte, error) {
	s.mem.begin(dst)
	err := s.tls.CloseWrite()
	return s.mem.end(), err
}

func (s *stock) Pending() bool { return s.mem.pending() }

func (s *stock) State() tls.ConnectionState { return s.tls.ConnectionState() }
