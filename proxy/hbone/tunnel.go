package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/warren-mesh/warren/proxy/hbone/h2"
	"github.com/warren-mesh/warren/proxy/hbone/record"
	"github.com/warren-mesh/warren/proxy/ready"
)

// The field list sizes we announce, as ztunnel does.
const (
	clientHeaderList = 16 << 10
	serverHeaderList = 64 << 10
)

// linger is how long a closed tunnel waits for the peer to close as well, so
// that closing does not destroy what is still on its way to the peer.
const linger = time.Second

// tunnel is one connection in either role. mu owns the protocol state and the
// streams' places in it; the wire is read by who holds the reader's role (read.go)
// and written by who holds the writer's (write.go): a readiness loop for little,
// a goroutine for bulk, nobody for nothing. Callbacks of streams are called
// without mu.
type tunnel struct {
	cfg   Config
	wire  wire
	set   *ready.Set
	own   bool // set is
	rec   record.Layer
	early []byte        // read with the handshake, not opened yet
	left  time.Duration // what the peer has left of its time for TLS and SETTINGS
	role  string        // the log's name for the peer: src.addr or dst.addr
	start time.Time
	done  chan struct{} // closed when run has returned

	// onConnect answers requests (server); onChange is called with mu held when
	// the number of streams, the peer's limit or the tunnel's fate changed.
	onConnect func(*Incoming)
	onChange  func()

	mu        sync.Mutex
	h2        *h2.Conn
	err       error       // why it ended; set once
	writing   bool        // the writer role is taken
	wrote     sync.Cond   // it was given back
	bulk      bool        // the last write filled its buffer
	closing   bool        // in good order: no streams, GOAWAY and close_notify next
	closed    bool        // close_notify is out
	deaf      bool        // the peer takes nothing any more
	greeted   bool        // the peer's SETTINGS came
	pinged    time.Time   // when the unanswered PING was sent; zero: none is
	heard     time.Time   // when anything came last
	timer     *time.Timer // ping, or the first SETTINGS
	lingering *time.Timer // after our last words, or those that could not be said; nil before
	drain     drainState

	batch              batch // for who has the writer role
	reader             reader
	sending, receiving bulkTime

	// For who has the reader's role.
	evs  []h2.Event
	segs [][]byte
}

// newTunnel runs the TLS handshake on conn. On error conn is closed.
func newTunnel(ctx context.Context, conn net.Conn, tc *tls.Config, cfg Config, client bool) (*tunnel, error) {
	rec, early, left, err := handshake(ctx, conn, tc, cfg, client)
	if err != nil {
		conn.Close()
		return nil, &TLSError{Peer: conn.RemoteAddr().String(), Err: err}
	}
	t := &tunnel{
		cfg: cfg, set: cfg.Ready, rec: rec, early: early, left: left, role: "src.addr", start: time.Now(), done: make(chan struct{}),
		reader: reader{busy: true, end: make(chan error, 1)},
	}
	if err := t.wire.take(conn); err != nil {
		conn.Close()
		return nil, err
	}
	if t.set == nil {
		if t.set, err = ready.New(1); err != nil {
			t.wire.close()
			return nil, err
		}
		t.own = true
	}
	hc := h2.Config{
		StreamWindow:  cfg.StreamWindow,
		InitialWindow: cfg.InitialWindow,
		ConnWindow:    cfg.ConnWindow,
		MaxFrame:      cfg.MaxFrame,
		MaxStreams:    cfg.MaxStreams,
		MaxHeaderList: serverHeaderList,
		Budget:        cfg.Budget,
	}
	if client {
		t.role = "dst.addr"
		hc.MaxStreams, hc.MaxHeaderList = uint32(cfg.PoolStreams), clientHeaderList
		t.h2 = h2.NewClient(hc)
	} else {
		t.h2 = h2.NewServer(hc)
	}
	t.onChange = func() {}
	t.wrote.L = &t.mu
	return t, nil
}

// now is the time that h2 sees.
func (t *tunnel) now() time.Duration { return time.Since(t.start) }

// begin greets the peer and starts the timers.
func (t *tunnel) begin() {
	t.mu.Lock()
	t.timer = time.AfterFunc(t.left, t.tick)
	t.kick()
}

// fail ends the tunnel for good. Its reader notices, and ends the streams.
func (t *tunnel) fail(err error) {
	t.mu.Lock()
	t.failLocked(err)
	t.mu.Unlock()
}

func (t *tunnel) failLocked(err error) {
	if t.err == nil {
		t.err = err
		t.hangUpLocked()
	}
}

// free ends what the tunnel holds, after run or in its place.
func (t *tunnel) free() {
	t.wire.close()
	if t.own {
		_ = t.set.Close() // nothing of it can fail
	}
}

// run reads until the tunnel ends, ends its streams and returns why: nil when
// it was closed in good order by either side.
func (t *tunnel) run() error {
	t.watch()
	ended := <-t.reader.end
	t.mu.Lock()
	err := t.err
	if err == nil {
		err = t.verdictLocked(ended)
	}
	t.timer.Stop()
	if t.lingering != nil {
		t.lingering.Stop()
	}
	t.mu.Unlock()
	said := t.lastWords(ended)
	t.mu.Lock()
	t.err = err
	var streams []*Stream
	t.h2.Each(func(s *h2.Stream) { streams = append(streams, s.User.(*Stream)) })
	t.h2.Close()
	t.onChange()
	t.mu.Unlock()
	for _, s := range streams {
		s.deliverEnd(&TunnelError{Err: or(err, io.ErrUnexpectedEOF)})
	}
	if said {
		t.drainSocket()
	}
	t.free()
	close(t.done)
	return err
}

// verdictLocked decides what an end of reading means.
func (t *tunnel) verdictLocked(err error) error {
	if t.closing || t.closed {
		return nil
	}
	eof := isEOF(err)
	switch {
	case eof && t.h2.Streams() == 0 && t.greeted:
		return nil
	case eof:
		return fmt.Errorf("peer closed the connection: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// lastWords sends what is left to say, a GOAWAY or an alert: best effort, and not
// for long. It says whether they are out.
func (t *tunnel) lastWords(err error) bool {
	defer time.AfterFunc(linger, t.wire.close).Stop()
	t.mu.Lock()
	for t.writing && isOffence(err) {
		t.wrote.Wait() // the time is the writer's, too
	}
	if t.writing || t.err != nil || t.closed || t.deaf {
		t.mu.Unlock()
		return false
	}
	t.writing = true // for ever: nobody writes after this
	plain := t.h2.AppendControl(nil)
	t.mu.Unlock()
	// An error leaves the alert in out.
	out, serr := t.rec.Seal(nil, plain)
	if serr == nil && isEOF(err) {
		out, _ = t.rec.CloseWrite(out)
	}
	if len(out) == 0 {
		return false
	}
	return t.wire.writeAll(out) == nil
}

// isOffence says whether err is about what the peer sent, which it is to be told.
func isOffence(err error) bool {
	var tlsErr *TLSError
	var h2Err *h2.ConnError
	return errors.As(err, &tlsErr) || errors.As(err, &h2Err)
}

// drainSocket gives the peer a moment to read our last words: closing a socket
// that holds unread bytes resets the connection, and destroys them.
func (t *tunnel) drainSocket() {
	if t.wire.sock.CloseWrite() != nil {
		return
	}
	over := time.NewTimer(linger)
	defer over.Stop()
	after := make(chan struct{}, 1)
	t.mu.Lock()
	t.reader.after = after
	t.mu.Unlock()
	buf := getBuffer(smallPlain)
	defer putBuffer(buf)
	for left := bulkPlain; left > 0; {
		n, again, err := t.wire.sock.Read(buf.b[:smallPlain])
		if err != nil {
			return
		}
		left -= n
		if !again {
			continue
		}
		select {
		case <-after:
		case <-over.C:
			return
		}
	}
}

// state is the TLS state of the tunnel.
func (t *tunnel) state() tls.ConnectionState { return t.rec.State() }

// peer is the peer's address for the log.
func (t *tunnel) peer() slog.Attr {
	return slog.String(t.role, t.wire.remote.String())
}
