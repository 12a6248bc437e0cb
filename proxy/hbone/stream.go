package hbone

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/warren-mesh/warren/proxy/hbone/h2"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Stream is one CONNECT stream, after its 200. It satisfies relay.Far, which
// says what the callbacks of Attach owe each other. A stream must be attached
// or reset, or it holds its place in the tunnel for ever.
type Stream struct {
	t *tunnel
	h *h2.Stream

	// The rest is guarded by t.mu.
	opening *opening // nil once it is attached or reset
	muted   bool     // over: nothing is called back any more
	lenient bool     // see TakeResetsAsEnds
	pushing bool     // near takes what comes, at once
	near    Near
}

// Near is what a stream is attached to, relay.Near.
type Near = interface {
	Pull(dst []byte) (int, error)
	Push(bufs [][]byte) (int, error)
	End(error)
}

// opening is what a stream needs until it is attached.
type opening struct {
	header []hpack.HeaderField // of the response
	answer func(error)         // client: is told the outcome of the CONNECT; nil once it was
	waits  bool                // client: a goroutine does, for answer
	gone   chan struct{}       // server: closed when an unanswered request is over
	onGone func()              // server: called then
	early  []byte              // what has come, at most one window
	ends   []error             // calls of end that are due
}

// newStream makes the owner of hs; t.mu is held.
func newStream(t *tunnel, hs *h2.Stream) *Stream {
	s := &Stream{t: t, h: hs, opening: new(opening)}
	hs.User = s
	return s
}

// Header returns the values of a header of the peer's response, in order, for a
// name in lower case. It is empty for an accepted request, whose headers are
// the Incoming's, and after Attach.
func (s *Stream) Header(name string) []string {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if s.opening == nil {
		return nil
	}
	return values(s.opening.header, name)
}

func values(header []hpack.HeaderField, name string) []string {
	var v []string
	for _, f := range header {
		if f.Name == name {
			v = append(v, f.Value)
		}
	}
	return v
}

// TLS returns the state of the tunnel's TLS connection, the peer's certificate in it.
func (s *Stream) TLS() tls.ConnectionState { return s.t.state() }

// RemoteAddr is the tunnel's peer.
func (s *Stream) RemoteAddr() net.Addr { return s.t.wire.remote }

// LocalAddr is our end of the tunnel.
func (s *Stream) LocalAddr() net.Addr { return s.t.wire.local }

// Attach starts the traffic of the stream; see relay.Far. What arrived before
// is pushed, and an end that came is reported, before Attach returns.
func (s *Stream) Attach(near Near) {
	t := s.t
	t.mu.Lock()
	s.near = near
	// Until pushing is set the reader goes on adding to early: the order holds.
	for s.opening != nil && len(s.opening.early) > 0 {
		bytes := s.opening.early
		s.opening.early = nil
		t.mu.Unlock()
		s.pushed([][]byte{bytes})
		t.mu.Lock()
	}
	s.pushing = true
	for s.opening != nil && len(s.opening.ends) > 0 {
		err := s.opening.ends[0]
		s.opening.ends = s.opening.ends[1:]
		t.mu.Unlock()
		near.End(err)
		t.mu.Lock()
	}
	s.opening = nil
	t.changedLocked()
	t.kick()
}

// pushed hands bytes on and settles the credit of what was taken.
func (s *Stream) pushed(bufs [][]byte) {
	n, err := s.near.Push(bufs)
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if err != nil {
		s.resetLocked(http2.ErrCodeConnect)
		return
	}
	s.t.h2.Consumed(s.h, n)
}

// deliver hands received bytes to the attached end, or keeps a copy for it.
// Only the tunnel's reader calls it.
func (s *Stream) deliver(segs [][]byte) {
	s.t.mu.Lock()
	switch {
	case s.muted:
		s.t.mu.Unlock()
		return
	case !s.pushing:
		for _, b := range segs {
			s.opening.early = append(s.opening.early, b...)
		}
		s.t.mu.Unlock()
		return
	}
	s.t.mu.Unlock()
	s.pushed(segs)
}

// deliverEnd reports that no more bytes come. Only the tunnel's reader calls it.
func (s *Stream) deliverEnd(err error) {
	s.t.mu.Lock()
	half := err == io.EOF
	var answer func(error)
	var onGone func()
	if o := s.opening; o != nil && !half {
		if o.answer != nil {
			answer, o.answer = o.answer, nil
			s.muted = true
		}
		if o.gone != nil {
			close(o.gone)
			onGone, o.gone, o.onGone = o.onGone, nil, nil
		}
	}
	if s.muted || !s.pushing {
		if !s.muted {
			s.opening.ends = append(s.opening.ends, err)
		}
		s.t.mu.Unlock()
		if answer != nil {
			answer(err)
		}
		if onGone != nil {
			onGone()
		}
		return
	}
	s.muted = !half
	s.t.mu.Unlock()
	s.near.End(err)
}

// refused marks a stream that the peer did nothing with.
type refused struct{ *ResetError }

func (r refused) Unwrap() error { return r.ResetError }

// TakeResetsAsEnds has resets by the peer reported as ends: with an error, for the log,
// that has a method Closed. It is for peers like Envoy, which resets the stream of a
// CONNECT when what it connects to is closed, after an answer that was whole, too, and
// so leaves no way to tell a close from a reset. It comes before Attach.
func (s *Stream) TakeResetsAsEnds() {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	s.lenient = true
	if s.opening == nil {
		return
	}
	for i, err := range s.opening.ends {
		if reset, ok := err.(*ResetError); ok { // it came before this call
			s.opening.ends[i] = closedError{reset}
		}
	}
}

// closedError is a reset that is taken as an end.
type closedError struct{ *ResetError }

func (closedError) Closed()         {}
func (c closedError) Unwrap() error { return c.ResetError }

// deliverReset reports a reset. A peer that has ended its own direction and then
// drops the stream without calling it an error wants no more from us, as
// ztunnel's server does (RFC 9113 §8.1): all it had to say has arrived. From one
// that has not, as when ztunnel cuts a connection, the rest is missing.
func (s *Stream) deliverReset(e *h2.Event) {
	reset := &ResetError{Code: e.Code}
	s.t.mu.Lock()
	waiting, lenient := s.opening != nil && s.opening.answer != nil, s.lenient
	s.t.mu.Unlock()
	switch {
	case e.Unprocessed:
		s.deliverEnd(refused{reset})
	case e.Local:
		s.deliverEnd(fmt.Errorf("hbone: peer broke the protocol on the stream: %v", e.Code))
	case !waiting && e.Ended && (e.Code == http2.ErrCodeNo || e.Code == http2.ErrCodeCancel):
		s.deliverEnd(nil)
	case lenient:
		s.deliverEnd(closedError{reset})
	default:
		s.deliverEnd(reset)
	}
}

// respond takes the answer to our CONNECT. It says whether that woke a goroutine.
func (s *Stream) respond(status int, header []hpack.HeaderField) (woke bool) {
	s.t.mu.Lock()
	o := s.opening
	if o == nil || o.answer == nil {
		s.t.mu.Unlock()
		return false
	}
	answer := o.answer
	o.answer = nil
	var err error
	if status == 200 {
		o.header = header
	} else {
		err = &StatusError{Code: status}
		s.muted = true
		s.t.h2.Reset(s.h, http2.ErrCodeCancel) // unless it is over already
	}
	s.t.mu.Unlock()
	answer(err)
	return o.waits
}

// Ready says that near has something; see relay.Far. The writer role goes to who
// calls, for one small write that does not wait, which saves a switch of
// goroutines; bulk, which takes its time, has a goroutine.
func (s *Stream) Ready() interface{ Flush() } {
	t := s.t
	t.mu.Lock()
	if s.near == nil || s.muted {
		t.mu.Unlock()
		return nil
	}
	t.h2.Ready(s.h)
	return t.later()
}

// Took returns credit for n bytes; see relay.Far.
func (s *Stream) Took(n int) {
	t := s.t
	t.mu.Lock()
	t.h2.Consumed(s.h, n)
	t.kick()
}

// Reset ends the stream as an abnormal close: the peer gets RST_STREAM with
// CONNECT_ERROR (RFC 9113 §8.5). A stream that has ended stays as it is.
func (s *Stream) Reset(err error) {
	t := s.t
	t.mu.Lock()
	if !s.h.Done() && !errors.Is(err, io.EOF) {
		t.cfg.Log.Debug("HBONE stream reset", t.peer(), "err", err)
	}
	s.resetLocked(http2.ErrCodeConnect)
	t.changedLocked()
	t.kick()
}

func (s *Stream) resetLocked(code http2.ErrCode) {
	s.t.h2.Reset(s.h, code)
	s.muted = true
	s.opening = nil
}
