package hbone

import (
	"errors"
	"io"
	"net"
	"time"

	"github.com/warren-mesh/warren/proxy/hbone/h2"
	"github.com/warren-mesh/warren/proxy/hbone/record"
	"github.com/warren-mesh/warren/proxy/ready"
	"golang.org/x/net/http2"
)

// littleReads is how many reads in a row must find little before a tunnel reads
// with a small buffer again.
const littleReads = 16

// reader is who reads the wire: a role, one holder at a time, held only while
// there is something to read. t.mu guards it.
type reader struct {
	busy    bool // the role is taken
	changed bool // since the last read began there may be more
	hangup  bool // the peer's end, or worse, follows what can be read
	closed  bool // the wire is
	over    bool // end has what reading ended with
	bulk    bool // the last reads found much
	little  int  // how many in a row did not

	end   chan error    // capacity 1
	after chan struct{} // told of what comes after the end; nil: nobody is
	turn  *ready.Turn   // while a loop has the role; for who has it
}

// Notify implements ready.Handler. A loop reads by itself what one buffer holds;
// what is more has a goroutine, until there is nothing left.
func (t *tunnel) Notify(e ready.Events, turn *ready.Turn) {
	if e&ready.Writable != 0 {
		t.wire.hasRoom()
	}
	if e&ready.Readable == 0 {
		return
	}
	r := &t.reader
	t.mu.Lock()
	r.changed = true
	r.hangup = r.hangup || e&(ready.Hangup|ready.Failed|ready.Urgent) != 0
	mine := !r.busy && !r.over
	r.busy = r.busy || mine
	if r.after != nil {
		notify(r.after)
	}
	t.mu.Unlock()
	if !mine {
		return
	}
	r.turn = turn
	more := t.readOnce()
	if more {
		r.turn = nil
		go t.readAll()
	}
}

func (t *tunnel) readAll() {
	for t.readOnce() {
	}
}

// readOnce reads what there is, at most a buffer full, and hands it on. It
// returns false when it has given the role back.
func (t *tunnel) readOnce() bool {
	r := &t.reader
	t.mu.Lock()
	r.changed = false
	all, bulk, streams := r.hangup, r.bulk, t.h2.Streams()
	loop := r.turn != nil
	t.mu.Unlock()
	buf, size := t.readBuffer(bulk, loop, streams)
	n, again, err := t.wire.sock.Read(buf.b[:size])
	if n > 0 {
		err = t.opened(buf.b[:n])
	}
	putBuffer(buf)
	t.mu.Lock()
	defer t.mu.Unlock()
	r.adapt(n, size)
	if r.bulk {
		t.receiving.seen(t.now())
	}
	switch {
	case err != nil:
		t.endReadLocked(err)
	case r.closed:
		t.endReadLocked(net.ErrClosed)
	case r.changed, n == size, all && !again:
		return true
	}
	r.turn = nil
	r.busy = false
	return false
}

// readBuffer returns a buffer for a read of size bytes. A loop reads no more than a
// tunnel of many streams does, for others wait for it.
func (t *tunnel) readBuffer(bulk, loop bool, streams int) (*buffer, int) {
	switch {
	case !bulk:
		return getBuffer(smallPlain), smallPlain
	case loop:
		streams = fewStreams + 1
	}
	return getBulk(streams, t.cfg.Budget)
}

// adapt chooses the next buffer by what a read of size found.
func (r *reader) adapt(n, size int) {
	switch {
	case n == size:
		r.bulk, r.little = true, 0
	case n >= smallPlain:
		r.little = 0
	case r.bulk:
		r.little++
		r.bulk = r.little < littleReads
	}
}

// endReadLocked ends reading for good; who has the role calls it, or whoever finds
// it free.
func (t *tunnel) endReadLocked(err error) {
	if r := &t.reader; !r.over {
		r.over = true
		r.end <- err
	}
}

// hangUpLocked closes the wire.
func (t *tunnel) hangUpLocked() {
	t.wire.close()
	t.reader.closed = true
	if !t.reader.busy {
		t.endReadLocked(net.ErrClosed)
	}
}

// hangUp is hangUpLocked for timers.
func (t *tunnel) hangUp() {
	t.mu.Lock()
	t.hangUpLocked()
	t.mu.Unlock()
}

// watch starts reading: first what came along with the handshake.
func (t *tunnel) watch() {
	err := t.opened(nil)
	if early := t.early; err == nil && len(early) > 0 {
		err = t.opened(early)
	}
	t.early = nil
	t.mu.Lock()
	t.reader.busy = false
	if t.reader.closed {
		err = or(err, net.ErrClosed)
	}
	if err != nil {
		t.endReadLocked(err)
	}
	t.mu.Unlock()
	if err != nil {
		return
	}
	if err := t.set.Watch(&t.wire.sock, t); err != nil {
		t.fail(err)
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
			t.answer()
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
	return &TLSError{Peer: t.wire.remote.String(), Err: err}
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
	t.answer()
	return nil
}

// woke says that what was read has set a goroutine going.
func (t *tunnel) woke() {
	if turn := t.reader.turn; turn != nil {
		turn.Woke()
	}
}

// answer is kick for the reader: a loop leaves it to the end of its turn, and one
// write says all.
func (t *tunnel) answer() {
	turn := t.reader.turn
	if turn == nil || t.bulk || t.writing || !t.workLocked() {
		t.kick()
		return
	}
	t.writing = true
	t.mu.Unlock()
	turn.Later(t)
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
		t.segs = join(t.segs, evs[i].Data)
	}
	s.User.(*Stream).deliver(t.segs)
	return i
}

// smallData is what is worth a copy: system calls are made for many pieces, and
// each piece costs them more than that.
const smallData = 512

// join adds a piece of the same buffer to those before it. A small one moves up to
// its predecessor, over the frame's header between them, which has been read.
func join(segs [][]byte, b []byte) [][]byte {
	last := len(segs) - 1
	if len(b) > smallData || len(segs[last])+len(b) > cap(segs[last]) {
		return append(segs, b)
	}
	segs[last] = append(segs[last], b...)
	return segs
}

func (t *tunnel) handle(e *h2.Event) {
	switch e.Kind {
	case h2.Request:
		t.onConnect(newIncoming(e.Stream.User.(*Stream), e.Header))
		t.woke()
	case h2.Response:
		if e.Stream.User.(*Stream).respond(e.Status, e.Header) {
			t.woke()
		}
	case h2.End:
		e.Stream.User.(*Stream).deliverEnd(io.EOF)
	case h2.Reset:
		if s, ok := e.Stream.User.(*Stream); ok {
			s.deliverReset(e)
		}
	case h2.Settings:
		t.mu.Lock()
		t.greetedLocked()
		t.changedLocked() // before who was refused for it looks for another tunnel
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
