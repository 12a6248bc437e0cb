package hbone

import (
	"errors"
	"io"
	"time"

	"github.com/warren-mesh/warren/proxy/hbone/h2"
	"golang.org/x/net/http2"
)

const (
	frameHeader = 9
	// minRoom is the least room in a write worth another frame.
	minRoom = frameHeader + 1024
)

// kick sees to it that what is to be sent gets sent; it is called with mu held
// and releases it, and does not block. The writer role is one flag: who finds
// it free and has something to send starts a goroutine, which has the role
// until there is nothing more to send. Whatever else becomes ready before that
// goroutine runs shares its record and its system call.
func (t *tunnel) kick() {
	if t.writing || !t.workLocked() {
		t.mu.Unlock()
		return
	}
	t.writing = true
	t.mu.Unlock()
	go t.writeAll()
}

// send is kick for who has the time for one small write, which saves a switch of
// goroutines; it is called with mu held and releases it, and does not block either.
func (t *tunnel) send() {
	if t.bulk || t.writing || !t.workLocked() {
		t.kick()
		return
	}
	t.writing = true
	t.mu.Unlock()
	t.Flush()
}

// later is send for who flushes what it returns, if not nil, when others have said
// what they have.
func (t *tunnel) later() interface{ Flush() } {
	if t.bulk || t.writing || !t.workLocked() {
		t.kick()
		return nil
	}
	t.writing = true
	t.mu.Unlock()
	return t
}

// workLocked says whether there is something to write.
func (t *tunnel) workLocked() bool {
	if t.err != nil || t.closed || t.deaf {
		return false
	}
	return t.closing || t.h2.HasControl() || t.h2.CanSend() || t.rec.Pending()
}

func (t *tunnel) writeAll() {
	for t.writeOnce() {
	}
}

// writeOnce builds, seals and writes one batch. It returns false when it has
// given the writer role back.
func (t *tunnel) writeOnce() bool {
	b := t.build()
	return t.written(b, b.write(&t.wire))
}

// Flush is writeOnce for somebody who has the writer role and no time: what the
// socket does not take at once, and all that follows, is a goroutine's.
func (t *tunnel) Flush() {
	b := t.build()
	n, err := t.wire.sock.Write(b.out.b)
	b.sent += n
	switch {
	case b.empty, err == nil && b.sent < len(b.out.b):
		go func() {
			if err == nil {
				err = b.write(&t.wire)
			}
			if t.written(b, err) {
				t.writeAll()
			}
		}()
	case t.written(b, err):
		go t.writeAll()
	}
}

// batch is one write on its way.
type batch struct {
	out   *buffer // records
	sent  int     // of out
	empty bool    // there is no frame in them
	err   error   // of sealing: out is an alert at most
}

// build makes a batch of what there is to send.
func (t *tunnel) build() *batch {
	t.mu.Lock()
	bulk, streams := t.bulk, t.h2.Streams()
	t.mu.Unlock()
	b := &t.batch
	size := smallPlain
	if bulk {
		b.out, size = getBulk(streams, t.cfg.Budget)
	} else {
		b.out = getBuffer(size)
	}
	plain := getBuffer(size)
	plain.b = t.fill(plain.b, size)
	b.empty = len(plain.b) == 0
	b.out.b, b.err = t.rec.Seal(b.out.b, plain.b)
	putBuffer(plain)
	return b
}

// write writes what has not been sent yet.
func (b *batch) write(w *wire) error {
	if b.sent == len(b.out.b) {
		return nil
	}
	return w.writeAll(b.out.b[b.sent:])
}

// written settles a batch; err is the write's. It returns false when it has given
// the writer role back.
func (t *tunnel) written(b *batch, err error) bool {
	empty, sealing := b.empty, b.err
	putBuffer(b.out)
	*b = batch{}
	switch {
	case sealing != nil:
		t.fail(&TLSError{Peer: t.wire.remote.String(), Err: sealing})
	case err != nil:
		t.writeFailed(err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changedLocked()
	if t.closing && !t.closed && t.err == nil && empty {
		t.closed = true
		t.mu.Unlock()
		t.sayGoodbye()
		t.mu.Lock()
	}
	if t.workLocked() {
		return true
	}
	t.writing = false
	t.wrote.Signal()
	return false
}

// writeFailed ends the tunnel because its peer takes nothing any more. What the peer
// said last may be here and not yet read, a GOAWAY that lets streams be tried
// elsewhere or an end in good order: the reader has a moment for that.
func (t *tunnel) writeFailed(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.deaf || t.err != nil {
		return
	}
	t.deaf = true
	t.lingerLocked(func() { t.fail(err) })
}

// lingerLocked has f called in a moment. It replaces a longer wait, which would keep the
// tunnel in memory.
func (t *tunnel) lingerLocked(f func()) {
	if t.lingering != nil {
		t.lingering.Stop()
	}
	t.lingering = time.AfterFunc(linger, f)
}

// sayGoodbye ends our direction of the connection and gives the peer a moment
// to end its own.
func (t *tunnel) sayGoodbye() {
	out, err := t.rec.CloseWrite(nil)
	t.mu.Lock()
	t.lingerLocked(t.hangUp)
	t.mu.Unlock()
	if err == nil {
		err = t.wire.writeAll(out)
	}
	if err == nil {
		err = t.wire.sock.CloseWrite()
	}
	if err != nil {
		t.hangUp()
	}
}

// fill builds up to size bytes of frames in plain: control frames, then data,
// each stream in its turn. Applications are read straight into their frames,
// without mu.
func (t *tunnel) fill(plain []byte, size int) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.err == nil {
		if t.closing {
			t.h2.GoAway(true, http2.ErrCodeNo)
		}
		plain = t.h2.AppendControl(plain)
		room := size - len(plain)
		if room < minRoom {
			break
		}
		hs, n := t.h2.Next(room - frameHeader)
		if hs == nil {
			break
		}
		at := len(plain)
		frame := plain[at : at+frameHeader+n]
		near := hs.User.(*Stream).near
		t.mu.Unlock()
		k, err := near.Pull(frame[frameHeader:])
		t.mu.Lock()
		if t.pulled(hs, frame, k, err) {
			plain = plain[:at+frameHeader+k]
		}
	}
	t.bulk = len(plain) > smallPlain/2
	if t.bulk {
		t.sending.seen(t.now())
	}
	return plain
}

// pulled says whether frame, with k bytes of payload, is to be sent.
func (t *tunnel) pulled(hs *h2.Stream, frame []byte, k int, err error) bool {
	end := errors.Is(err, io.EOF)
	if err != nil && !end {
		hs.User.(*Stream).resetLocked(http2.ErrCodeConnect)
		return false
	}
	return t.h2.Sent(hs, frame, k, end, k > 0)
}
