package relay

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/warren-mesh/warren/proxy/ready"
)

// streamFlow relays between an application and a far end that pulls and pushes.
// It owns no goroutine: its calls are the far end's and the readiness loop's.
//
// Up, from the application: Notify says that there is something to read, and
// from then on it is the far end's turn (pulling): it reads, straight into the
// frame it builds, until the socket is empty. What becomes readable meanwhile
// is noted (changed), so that the end of a turn misses nothing. An idle flow
// holds no buffer, and no two goroutines read at a time.
//
// Down, to the application: push writes what the socket takes at once. The rest
// waits in queue, and each time the socket has room again a goroutine (drain)
// lives until the socket is full or the queue is empty.
type streamFlow struct {
	flow Flow
	app  ready.Socket
	far  Far
	c    *Counters
	done func(Result)
	shut atomic.Bool // we have half-closed app, or are about to

	mu       sync.Mutex
	queue    *queue // nil while there is nothing in it
	pulling  bool   // it is the far end's turn to read
	changed  bool   // since the turn's last read began there may be more
	hangup   bool   // the application's end, or worse, follows what can be read, or a mark is in it
	upDone   bool   // the application's end was passed on, or nobody wants it
	emptied  bool   // nothing is left to read: closing the application is no reset
	blocked  bool   // the queue waits for the socket
	draining bool   // drain is running
	writable bool   // the socket has got room since drain's last write began
	ended    bool   // the far end's bytes end after queue
	downDone bool   // and that end was passed on
	failing  bool   // Notify is asking the socket for its error
	finished bool   // done was called or is about to be
	closed   error  // what the far end's end was to the log, if it was no reset
}

func startStream(set *ready.Set, app App, far Far, c *Counters, done func(Result)) *Flow {
	f := &streamFlow{far: far, c: c, done: done}
	f.flow.c = f
	if err := take(&f.app, app); err != nil {
		f.fail(err)
		return &f.flow
	}
	far.Attach(f)
	if err := set.Watch(&f.app, f); err != nil {
		f.fail(err)
	}
	return &f.flow
}

// Notify is the readiness loop's.
func (f *streamFlow) Notify(e ready.Events, turn *ready.Turn) {
	if e&ready.Failed != 0 {
		// Not through pull, for the far end may be out of credit.
		f.mu.Lock()
		f.failing = true
		f.mu.Unlock()
		if err := socketFailure(&f.app); err != nil {
			f.fail(err)
			return
		}
	}
	f.mu.Lock()
	if f.finished {
		f.mu.Unlock()
		return
	}
	f.hangup = f.hangup || e&(ready.Hangup|ready.Urgent) != 0
	up := false
	if e&ready.Readable != 0 && !f.upDone {
		up = !f.pulling
		f.pulling, f.changed = true, true
	}
	if e&ready.Writable != 0 {
		f.writable = true
		if f.blocked && !f.draining {
			f.draining = true
			go f.drain()
		}
	}
	f.mu.Unlock()
	if up {
		if then := f.far.Ready(); then != nil {
			turn.Later(then)
		}
	}
}

// Pull implements Near: it reads the application for the far end.
func (f *streamFlow) Pull(dst []byte) (n int, err error) {
	for more := true; more && n < len(dst); {
		f.mu.Lock()
		if !f.pulling || f.upDone || f.finished {
			f.mu.Unlock()
			return n, nil
		}
		f.changed = false
		all := f.hangup
		f.mu.Unlock()
		var k int
		k, more, err = f.readInto(dst[n:], all)
		n += k
		f.c.Sent.Add(int64(k))
		if err == io.EOF {
			if err = f.checkEnd(); err == nil {
				f.endUp()
				return n, io.EOF
			}
		}
		if err != nil {
			f.fail(err)
			return n, err
		}
		if !more {
			f.mu.Lock()
			f.pulling = f.changed
			more = f.changed
			f.mu.Unlock()
		}
		if n > 0 {
			break // the far end asks again
		}
	}
	return n, nil
}

// readInto reads the application without waiting. more: it is worth reading
// again. A short read has emptied the socket, and tells nothing of an end that
// follows (all: one does). For large ones, where more is likely on its way, it
// is worth another try as well.
func (f *streamFlow) readInto(dst []byte, all bool) (n int, more bool, err error) {
	fd, ok := f.app.Acquire()
	if !ok {
		return 0, false, net.ErrClosed
	}
	n, again, err := readNow(fd, dst)
	f.app.Release()
	switch {
	case err != nil:
		return 0, false, err
	case again:
		return 0, false, nil
	case n == 0:
		return 0, false, io.EOF
	}
	return n, all || n == len(dst) || n >= chunkSize, nil
}

// checkEnd tells an end from a reset that another call was told of.
func (f *streamFlow) checkEnd() error {
	fd, ok := f.app.Acquire()
	if !ok {
		return net.ErrClosed
	}
	err := ended(fd, &f.shut)
	f.app.Release()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failing { // it was Notify
		return errReset
	}
	return err
}

// Push implements Near: it writes to the application what it takes, and keeps the rest.
func (f *streamFlow) Push(bufs [][]byte) (int, error) {
	f.mu.Lock()
	if f.finished {
		f.mu.Unlock()
		return 0, net.ErrClosed
	}
	if f.blocked {
		f.keepLocked(bufs, 0)
		f.mu.Unlock()
		return 0, nil
	}
	f.writable = false
	f.mu.Unlock()
	n, _, err := f.writeOut(bufs)
	f.c.Received.Add(int64(n))
	if err != nil {
		f.fail(err)
		return n, err
	}
	f.mu.Lock()
	wait := f.keepLocked(bufs, n) && !f.finished
	if wait {
		f.blocked = true
		if f.writable { // the socket has got room since
			f.draining = true
			go f.drain()
		}
	}
	f.mu.Unlock()
	if wait {
		if err := f.app.WatchWrites(); err != nil {
			f.fail(err)
			return n, err
		}
	}
	return n, nil
}

// writeOut writes as much of bufs as the socket takes now. full: it takes no more.
func (f *streamFlow) writeOut(bufs [][]byte) (total int, full bool, err error) {
	fd, ok := f.app.Acquire()
	if !ok {
		return 0, false, net.ErrClosed
	}
	defer f.app.Release()
	for len(bufs) > 0 {
		some := bufs[:min(len(bufs), maxVec)]
		n, _, err := writeNow(fd, some)
		total += n
		if err != nil {
			return total, false, err
		}
		for _, b := range some {
			n -= len(b)
		}
		if n < 0 {
			return total, true, nil
		}
		bufs = bufs[len(some):]
	}
	return total, false, nil
}

// keepLocked queues bufs but for their first skip bytes; it says whether there
// was anything.
func (f *streamFlow) keepLocked(bufs [][]byte, skip int) bool {
	for _, b := range bufs {
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		if f.queue == nil {
			f.queue = new(queue)
		}
		f.queue.add(b[skip:])
		skip = 0
	}
	return f.queue != nil
}

// drain writes the queue while the application takes it.
func (f *streamFlow) drain() {
	var mem [maxVec][]byte
	for {
		f.mu.Lock()
		if f.finished {
			f.mu.Unlock()
			return
		}
		if f.queue.empty() {
			f.queue, f.blocked, f.draining = nil, false, false
			ended := f.ended
			f.mu.Unlock()
			if ended {
				f.endDown()
			}
			return
		}
		bufs := f.queue.first(mem[:0])
		f.writable = false
		f.mu.Unlock()
		n, full, err := f.writeOut(bufs)
		f.c.Received.Add(int64(n))
		if err != nil {
			f.fail(err)
			return
		}
		f.mu.Lock()
		f.queue.drop(n)
		wait := full && !f.writable
		f.draining = !wait
		f.mu.Unlock()
		if n > 0 {
			f.far.Took(n)
		}
		if wait {
			return
		}
	}
}

// End implements Near: no more bytes come.
func (f *streamFlow) End(err error) {
	if err != nil && err != io.EOF && !isClosed(err) {
		f.fail(err)
		return
	}
	f.mu.Lock()
	f.ended = true
	if err != io.EOF { // the far end takes nothing any more either
		f.upDone, f.closed = true, err
	}
	blocked := f.blocked
	f.mu.Unlock()
	if !blocked {
		f.endDown()
	}
}

// isClosed says whether an end is no reset to the application, whatever it was.
func isClosed(err error) bool {
	var c interface{ Closed() }
	return errors.As(err, &c)
}

// endDown passes the far end's end on to the application.
func (f *streamFlow) endDown() {
	f.shut.Store(true)
	f.mu.Lock()
	last := f.emptied // finish closes it then, which says the same
	f.mu.Unlock()
	if !last {
		if err := closeWrite(&f.app); err != nil {
			f.fail(err) // nothing new, if it is closed: it has failed
			return
		}
	}
	f.mu.Lock()
	f.downDone = true
	f.mu.Unlock()
	f.finish()
}

// endUp notes that the application's end was passed on.
func (f *streamFlow) endUp() {
	f.mu.Lock()
	f.upDone, f.emptied = true, true
	f.mu.Unlock()
	f.finish()
}

// finish ends the flow when both directions have.
func (f *streamFlow) finish() {
	f.mu.Lock()
	if f.finished || !f.upDone || !f.downDone {
		f.mu.Unlock()
		return
	}
	f.finished = true
	err := f.closed
	f.mu.Unlock()
	f.app.Close()
	f.report(err)
}

// fail ends the flow at once: both ends see a reset.
func (f *streamFlow) fail(err error) {
	f.mu.Lock()
	if f.finished {
		f.mu.Unlock()
		return
	}
	f.finished = true
	f.mu.Unlock()
	// The queue is left to the collector: drain may be writing from it.
	f.app.Reset()
	f.far.Reset(err)
	f.report(err)
}

func (f *streamFlow) report(err error) {
	f.done(Result{Sent: f.c.Sent.Load(), Received: f.c.Received.Load(), Err: err})
}
