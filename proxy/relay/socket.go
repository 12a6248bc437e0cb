package relay

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/warren-mesh/warren/proxy/ready"
)

// tcpFar is a TCP connection as the far end. Start recognises it.
type tcpFar struct{ conn App }

func (t tcpFar) Attach(n Near)  { n.End(errors.ErrUnsupported) }
func (t tcpFar) Ready() Flusher { return nil }
func (t tcpFar) Took(int)       {}
func (t tcpFar) Reset(error)    { _ = t.conn.Close() }

// socketFlow relays between two sockets. Like streamFlow it owns no goroutine: a
// loop that finds one readable moves what there is, a chunk at most. More than
// that is bulk: its direction has a goroutine then, which splices until the source
// is empty, so that bytes in bulk never enter user space.
type socketFlow struct {
	flow Flow
	ends [2]end // the application, the far end
	c    *Counters
	done func(Result)

	mu       sync.Mutex
	open     int  // directions
	finished bool // done was called or is about to be
}

// end is one of the sockets, and the direction of which it is the source.
type end struct {
	f     *socketFlow
	other *end
	sock  ready.Socket
	count *atomic.Int64
	shut  atomic.Bool // we have half-closed it, or are about to
	rest  chunk       // read, and not taken by other yet; who has the role uses it

	// Guarded by f.mu.
	busy    bool          // somebody moves bytes: a role
	changed bool          // since its last read began there may be more
	hangup  bool          // the end, or worse, follows what can be read
	urgent  bool          // there was a mark, at which reads stop and splices end
	room    bool          // other has got room since the last write began
	blocked bool          // rest waits for that
	over    bool          // the direction has ended
	failing bool          // Notify is asking the socket for its error
	wake    chan struct{} // of the goroutine that waits for room; nil: none does
}

func startSockets(set *ready.Set, app, far App, c *Counters, done func(Result)) *Flow {
	f := &socketFlow{c: c, done: done, open: 2}
	f.flow.c = f
	a, b := &f.ends[0], &f.ends[1]
	a.f, a.other, a.count = f, b, &c.Sent
	b.f, b.other, b.count = f, a, &c.Received
	if err := errors.Join(take(&a.sock, app), take(&b.sock, far)); err != nil {
		f.fail(err)
		return &f.flow
	}
	if err := errors.Join(set.Watch(&a.sock, a), set.WatchBeside(&b.sock, b, &a.sock)); err != nil {
		f.fail(err)
	}
	return &f.flow
}

// Notify is the readiness loop's.
func (e *end) Notify(ev ready.Events, _ *ready.Turn) {
	f := e.f
	if ev&ready.Failed != 0 {
		f.mu.Lock()
		e.failing = true
		f.mu.Unlock()
		if err := socketFailure(&e.sock); err != nil {
			f.fail(err)
			return
		}
	}
	var from, to bool
	f.mu.Lock()
	if !f.finished && !e.over && ev&ready.Readable != 0 {
		e.changed = true
		e.hangup = e.hangup || ev&ready.Hangup != 0
		e.urgent = e.urgent || ev&ready.Urgent != 0
		from = !e.busy && !e.blocked
		e.busy = e.busy || from
	}
	if o := e.other; !f.finished && ev&ready.Writable != 0 {
		o.room = true
		to = !o.busy && o.blocked
		o.busy = o.busy || to
		o.wakeLocked()
	}
	f.mu.Unlock()
	if from {
		e.move()
	}
	if to {
		e.other.move()
	}
}

// move is a loop's turn: a few chunks, or the direction gets a goroutine.
func (e *end) move() {
	full, mine := e.step()
	if mine && !full {
		_, mine = e.step()
	}
	if mine {
		go e.bulk()
	}
}

// step moves a chunk at most. mine: the role is still ours, for there is more to
// do; full: and it is much.
func (e *end) step() (full, mine bool) {
	e.f.mu.Lock()
	if e.f.finished {
		e.f.mu.Unlock()
		return false, false
	}
	e.changed, e.room, e.blocked = false, false, false
	all := e.hangup || e.urgent
	e.f.mu.Unlock()
	nothing, unread := false, !e.rest.empty()
	if !unread {
		c := getChunk()
		var err error
		if c.end, nothing, err = e.sock.Read(c.mem[:]); err != nil {
			c.free()
			e.ended(err)
			return false, false
		}
		if e.rest = c; nothing {
			e.rest.free()
		}
		full = c.end == chunkSize
	}
	blocked, err := e.flush()
	if err != nil {
		e.f.fail(err)
		return false, false
	}
	e.f.mu.Lock()
	defer e.f.mu.Unlock()
	switch {
	case blocked:
		mine = e.room
	case full, e.changed, all && !nothing, unread: // unread: what changed before is not known any more
		mine = true
	}
	e.busy, e.blocked = mine, blocked && !mine
	return full, mine
}

// flush writes rest. blocked: not all of it was taken, and room is told of.
func (e *end) flush() (blocked bool, err error) {
	if e.rest.empty() {
		return false, nil
	}
	n, err := e.other.sock.Write(e.rest.bytes())
	e.count.Add(int64(n))
	e.rest.off += n
	if err != nil {
		return false, err
	}
	if !e.rest.empty() {
		return true, e.other.sock.WatchWrites()
	}
	e.rest.free()
	return false, nil
}

// ended is the end of what can be read: of the direction, or by an error of the
// flow. Who calls it keeps the role for ever.
func (e *end) ended(err error) {
	if err == io.EOF {
		err = e.checkEnd()
	}
	f := e.f
	if err == nil {
		e.other.shut.Store(true)
		f.mu.Lock()
		last := e.other.over // what is closed next needs no half-close
		f.mu.Unlock()
		if !last {
			err = closeWrite(&e.other.sock)
		}
	}
	if err != nil {
		f.fail(err)
		return
	}
	f.mu.Lock()
	e.over = true
	f.open--
	last := f.open == 0 && !f.finished
	f.finished = f.finished || last
	f.mu.Unlock()
	if last {
		f.ends[0].sock.Close()
		f.ends[1].sock.Close()
		f.report(nil)
	}
}

// checkEnd tells an end from a reset that another call was told of.
func (e *end) checkEnd() error {
	fd, ok := e.sock.Acquire()
	if !ok {
		return net.ErrClosed
	}
	err := ended(fd, &e.shut)
	e.sock.Release()
	e.f.mu.Lock()
	defer e.f.mu.Unlock()
	if e.failing { // it was Notify
		return errReset
	}
	return err
}

// fail ends the flow at once: both ends see a reset.
func (f *socketFlow) fail(err error) {
	f.mu.Lock()
	was := f.finished
	f.finished = true
	for i := range f.ends {
		f.ends[i].wakeLocked()
	}
	f.mu.Unlock()
	if !was {
		f.ends[0].sock.Reset()
		f.ends[1].sock.Reset()
		f.report(err)
	}
}

func (f *socketFlow) report(err error) {
	f.done(Result{Sent: f.c.Sent.Load(), Received: f.c.Received.Load(), Err: err})
}

// waitForRoom waits until other may have room again. It returns false when the
// flow has ended.
func (e *end) waitForRoom() bool {
	wake := make(chan struct{}, 1)
	e.f.mu.Lock()
	e.wake = wake
	if e.room || e.f.finished {
		e.wakeLocked()
	}
	e.f.mu.Unlock()
	<-wake
	e.f.mu.Lock()
	defer e.f.mu.Unlock()
	e.room = false
	return !e.f.finished
}

func (e *end) wakeLocked() {
	if e.wake != nil {
		e.wake <- struct{}{}
		e.wake = nil
	}
}
