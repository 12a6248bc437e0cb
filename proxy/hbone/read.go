package hbone

import (
	"errors"
	"io"
	"time"

	"github.com/warren-mesh/warren/proxy/hbone/h2"
	"github.com/warren-mesh/warren/proxy/hbone/record"
	"golang.org/x/net/http2"
)

// idleRead is the read buffer of a tunnel that carries little; idleAfter is how
// long a larger one is kept without need. The PONG that comes every few seconds
// is what makes an idle tunnel shrink.
const (
	idleRead  = 4 << 10
	idleAfter = time.Second
)

// read takes bytes from the socket until it fails. The buffer it waits with
// follows the traffic: four times as large when a read filled it, back to the
// idle size after a while of small reads.
func (t *tunnel) read() error {
	if err := t.opened(nil); err != nil { // what came along with the handshake
		return err
	}
	if early := t.early; len(early) > 0 {
		t.early = nil
		if err := t.opened(early); err != nil {
			return err
		}
	}
	in := make([]byte, idleRead)
	var needed time.Time // when a read last used the size of in
	for {
		n, err := t.conn.Read(in)
		if n > 0 {
			if err := t.opened(in[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
		size := len(in)
		switch {
		case n == size && size < bulkPlain:
			in = make([]byte, min(size*4, bulkPlain))
			needed = time.Now()
		case size == idleRead:
		case n >= size/8:
			needed = time.Now()
		case time.Since(needed) > idleAfter:
			in = make([]byte, idleRead)
		}
	}
}

// opened opens records and hands the plaintext on.
func (t *tunnel) opened(src []byte) error {
	buf := getBuffer(len(src))
	defer putBuffer(buf)
	for {
		plain, n, err := t.rec.Open(buf.b, src)
		src = src[n:]
		if len(plain) > 0 {
			if herr := t.receive(plain); herr != nil {
				return herr
			}
		}
		if t.rec.Pending() {
			t.mu.Lock()
			t.kick()
		}
		if err != nil {
			return t.recordError(err)
		}
		if len(src) == 0 && cap(plain)-len(plain) >= record.Room {
			return nil
		}
	}
}

func (t *tunnel) recordError(err error) error {
	if isEOF(err) {
		return err
	}
	return &TLSError{Peer: t.conn.RemoteAddr().String(), Err: err}
}

// receive feeds the protocol and acts on what it says.
func (t *tunnel) receive(plain []byte) error {
	t.mu.Lock()
	t.heard = time.Now()
	evs, err := t.h2.Receive(t.now(), plain, t.evs[:0])
	for i := range evs {
		// Before mu is released: every stream of h2's has an owner.
		if evs[i].Kind == h2.Request {
			newStream(t, evs[i].Stream)
		}
	}
	t.mu.Unlock()
	for i := 0; i < len(evs); i++ {
		if evs[i].Kind == h2.Data {
			i = t.deliver(evs, i)
			continue
		}
		t.handle(&evs[i])
	}
	t.keep(evs)
	t.mu.Lock()
	t.changedLocked()
	if err != nil { // the GOAWAY is among run's last words
		t.mu.Unlock()
		return err
	}
	t.kick()
	return nil
}

// keptEvents is how many events' room a tunnel keeps: a peer that sends DATA by
// the byte must not make us hold megabytes.
const keptEvents = 256

// keep saves the memory of evs for the next time, without what it refers to.
func (t *tunnel) keep(evs []h2.Event) {
	clear(evs)
	t.evs = evs[:0]
	if cap(evs) > keptEvents {
		t.evs, t.segs = nil, nil
	}
	clear(t.segs)
}

// deliver hands the run of Data events at i to its stream, as one piece, and
// returns the index of the last.
func (t *tunnel) deliver(evs []h2.Event, i int) int {
	s := evs[i].Stream
	t.segs = append(t.segs[:0], evs[i].Data)
	for i+1 < len(evs) && evs[i+1].Kind == h2.Data && evs[i+1].Stream == s {
		i++
		t.segs = append(t.segs, evs[i].Data)
	}
	s.User.(*Stream).deliver(t.segs)
	return i
}

func (t *tunnel) handle(e *h2.Event) {
	switch e.Kind {
	case h2.Request:
		t.onConnect(newIncoming(e.Stream.User.(*Stream), e.Header))
	case h2.Response:
		e.Stream.User.(*Stream).respond(e.Status, e.Header)
	case h2.End:
		e.Stream.User.(*Stream).deliverEnd(io.EOF)
	case h2.Reset:
		if s, ok := e.Stream.User.(*Stream); ok {
			s.deliverReset(e)
		}
	case h2.Settings:
		t.mu.Lock()
		t.greetedLocked()
		t.mu.Unlock()
	case h2.Pong:
		t.pong(e.Ping)
	case h2.GoAway:
		if e.Code != http2.ErrCodeNo {
			t.cfg.Log.Info("peer ends HBONE tunnel", t.peer(), "err", e.Code.String())
		}
	case h2.Data: // in deliver
	}
}

// changedLocked runs after anything that may have changed the number of streams.
func (t *tunnel) changedLocked() {
	if t.drain.started && t.h2.Streams() == 0 && t.drain.final {
		t.closing = true
	}
	t.onChange()
}

// isEOF says whether err is an end in good order.
func isEOF(err error) bool {
	return errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF)
}
