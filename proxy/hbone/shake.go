package hbone

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/warren-mesh/warren/proxy/hbone/record"
)

// Parts of a TLS record's header (RFC 8446 §5.1). It is read here only to know
// when there is something to compute.
const (
	recordHeader        = 5
	maxRecord           = 16<<10 + 256
	firstType, lastType = 20, 24
	// helloRoom is what the first flight of a peer fits in.
	helloRoom = 2 << 10
)

// shake is the connection under a handshake: it takes turns at the gate for the
// computing and gives them back while the peer is waited for, and holds the peer
// to its time. The time spent waiting for turns is not the peer's.
//
// A turn begins when a whole record is there, so that a peer which sends bytes
// one by one costs none. What was read and not given out is in rest afterwards.
type shake struct {
	net.Conn
	gate    *Gate // nil: no turns
	owner   string
	client  bool
	peer    netip.Addr
	entered bool // has a slot of the peer's
	held    bool // has a place
	begun   bool // its work would be lost; a client's first step is small, and a server waits for it

	ctx      context.Context
	cancel   context.CancelCauseFunc
	stop     func() bool
	limit    time.Duration // what the peer was given
	left     time.Duration // what is left of it
	clock    *time.Timer   // runs while the peer is waited for
	patience time.Duration // what is left of ours

	rest  []byte // read, not given out
	whole int    // how much of it belongs to records that are all there
	err   error  // what reading ended with
}

// newShake prepares a handshake on conn; end must follow.
func newShake(ctx context.Context, conn net.Conn, cfg Config, client bool) *shake {
	s := &shake{Conn: conn, gate: cfg.Gate, owner: cfg.Owner, client: client, begun: client, limit: cfg.HandshakeTimeout}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	s.stop = context.AfterFunc(s.ctx, func() {
		// In the past: Read and Write return at once. An error means that conn
		// is closed, which has the same effect.
		_ = conn.SetDeadline(time.Unix(1, 0))
	})
	if s.gate != nil {
		s.patience = s.gate.patience
		s.peer = addrOf(conn.RemoteAddr())
		if client {
			s.limit += s.gate.patience // the peer may have as long a queue as we have
		}
	}
	s.left = s.limit
	return s
}

func addrOf(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// handshake runs TLS on conn. It returns, besides the record layer, what was read
// with the handshake and belongs behind what is in the layer, and how much of its
// time the peer has left.
func handshake(ctx context.Context, conn net.Conn, tc *tls.Config, cfg Config, client bool) (record.Layer, []byte, time.Duration, error) {
	s := newShake(ctx, conn, cfg, client)
	err := s.start()
	var rec record.Layer
	if err == nil {
		rec, err = record.Handshake(s.ctx, s, s.config(tc), client, cfg.Records)
	}
	if end := s.end(); err == nil {
		err = end
	}
	return rec, s.rest, s.left, err
}

// start waits for the first turn: of a server when the client's first record is
// there. A client that says nothing is not counted as one of its peer's. (Where
// we are the client, the pool counts, before it connects: the peer is not to be
// kept waiting.)
func (s *shake) start() error {
	if s.gate == nil || s.client {
		return s.take()
	}
	if s.onClock(s.fill); s.whole == 0 {
		return nil // Read will say why
	}
	if s.peer.IsValid() {
		k := peerKey{addr: s.peer}
		if err := s.waits(func() error { return s.gate.enter(s.ctx, k, s.patience) }); err != nil {
			return err
		}
		s.entered = true
	}
	return s.take()
}

// end gives back what the handshake holds. An error means that its time was up
// in the last moment, and that the connection is of no use.
func (s *shake) end() (err error) {
	if !s.stop() {
		err = fmt.Errorf("handshake not finished: %w", context.Cause(s.ctx))
	}
	s.give()
	if s.entered {
		s.gate.leave(peerKey{addr: s.peer})
		s.entered = false
	}
	s.cancel(nil)
	return err
}

// waits runs f, which waits for a turn of a kind, on our own time.
func (s *shake) waits(f func() error) error {
	start := time.Now()
	err := f()
	s.patience = max(0, s.patience-time.Since(start))
	return err
}

func (s *shake) take() error {
	if s.gate == nil || s.held {
		return nil
	}
	err := s.waits(func() error { return s.gate.take(s.ctx, laneKey{s.owner, s.client}, s.begun, s.patience) })
	s.held = err == nil
	s.begun = s.begun || s.held
	return err
}

func (s *shake) give() {
	if s.held {
		s.held = false
		s.gate.give()
	}
}

// onClock runs f, which waits for others, and ends the handshake when that takes
// what is left of their time.
func (s *shake) onClock(f func()) {
	start := time.Now()
	if s.clock == nil {
		late := func() { s.cancel(fmt.Errorf("%w after %s", ErrTimeout, s.limit)) }
		s.clock = time.AfterFunc(s.left, late)
	} else {
		s.clock.Reset(s.left)
	}
	f()
	s.clock.Stop()
	s.left = max(0, s.left-time.Since(start))
}

// Read gives out what belongs to whole records and waits for the next one,
// without a place.
func (s *shake) Read(p []byte) (int, error) {
	if s.whole == 0 && s.err == nil {
		s.give()
		s.onClock(s.fill)
	}
	if s.whole == 0 {
		return 0, s.err
	}
	if err := s.take(); err != nil {
		return 0, err
	}
	n := copy(p, s.rest[:s.whole])
	s.rest, s.whole = s.rest[n:], s.whole-n
	return n, nil
}

// Write sends, on the peer's time: it blocks when the peer's window is closed.
func (s *shake) Write(p []byte) (n int, err error) {
	s.onClock(func() { n, err = s.Conn.Write(p) })
	return n, err
}

// fill reads until a whole record is there, or the end. An error of the
// connection is kept until what came before it is given out.
func (s *shake) fill() {
	for s.err == nil {
		if s.whole = wholeRecords(s.rest); s.whole > 0 {
			return
		}
		room := helloRoom
		if len(s.rest) >= recordHeader {
			room = max(room, recordSize(s.rest))
		}
		if cap(s.rest) < room || cap(s.rest) == len(s.rest) {
			s.rest = append(make([]byte, 0, room), s.rest...)
		}
		n, err := s.Conn.Read(s.rest[len(s.rest):cap(s.rest)])
		s.rest, s.err = s.rest[:len(s.rest)+n], err
	}
	s.whole = len(s.rest)
}

func recordSize(b []byte) int { return recordHeader + int(b[3])<<8 + int(b[4]) }

// wholeRecords is how much of b belongs to records that are all there. What
// cannot be a record counts as one, for crypto/tls to refuse.
func wholeRecords(b []byte) int {
	n := 0
	for len(b)-n >= recordHeader {
		typ, size := b[n], recordSize(b[n:])
		if typ < firstType || typ > lastType || size > recordHeader+maxRecord {
			return len(b)
		}
		if n+size > len(b) {
			break
		}
		n += size
	}
	return n
}

// config has the certificate for a connection waited for without a place.
func (s *shake) config(tc *tls.Config) *tls.Config {
	if s.gate == nil || tc == nil || tc.GetConfigForClient == nil {
		return tc
	}
	per := tc.GetConfigForClient
	tc = tc.Clone()
	tc.GetConfigForClient = func(hello *tls.ClientHelloInfo) (c *tls.Config, err error) {
		s.give()
		s.onClock(func() { c, err = per(hello) })
		if err == nil {
			err = s.take()
		}
		return c, err
	}
	return tc
}
