package relay

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// streamFlow relays between an application and a far end that pulls and pushes.
//
// Up, from the application: one goroutine (waitUp) waits until the application
// has bytes, reads the first of them and calls Ready. From then on it is the
// far end's turn to read, straight into the frame it builds (pull), until the
// socket is empty; then wake sends the goroutine waiting again. So an idle flow
// holds no buffer, and no two goroutines read at a time.
//
// Down, to the application: push writes what the socket takes at once. The rest
// waits in queue, and a goroutine (drain) lives until the queue is empty.
type streamFlow struct {
	app  *net.TCPConn
	raw  syscall.RawConn
	far  Far
	c    *Counters
	done func(Result)
	wake chan struct{} // capacity 1

	// Arguments and results of the callbacks for raw, one set for each of
	// waitUp, pull and push, none of which overlaps itself: made once, so that
	// no closure is allocated for a read.
	await, now reading
	out        writing

	shut atomic.Bool // we have half-closed app, or are about to

	mu       sync.Mutex
	head     chunk // read by waitUp, not pulled yet
	upErr    error // what follows head: io.EOF or an error
	pulling  bool  // it is the far end's turn to read
	upDone   bool  // the application's end was passed on, or nobody wants it
	queue    queue
	blocked  bool // drain is running
	ended    bool // the far end's bytes end after queue
	downDone bool // and that end was passed on
	finished bool // done was called or is about to be
}

// reading is one non-blocking read as a RawConn callback.
type reading struct {
	buf   []byte
	n     int
	again bool
	err   error
	f     func(uintptr) bool
}

// writing is one non-blocking write as a RawConn callback.
type writing struct {
	bufs [][]byte
	n    int
	err  error
	f    func(uintptr) bool
}

func startStream(app *net.TCPConn, far Far, c *Counters, done func(Result)) *streamFlow {
	f := &streamFlow{app: app, far: far, c: c, done: done, wake: make(chan struct{}, 1)}
	raw, err := app.SyscallConn()
	if err != nil { // app is not a connection
		f.fail(err)
		return f
	}
	f.raw = raw
	f.await.f = f.tryAwait
	f.now.f = func(fd uintptr) bool {
		r := &f.now
		r.n, r.again, r.err = readNow(fd, r.buf)
		if r.n == 0 && !r.again && r.err == nil {
			r.err = ended(fd, &f.shut)
		}
		return true
	}
	f.out.f = func(fd uintptr) bool {
		w := &f.out
		w.n, _, w.err = writeNow(fd, w.bufs)
		return true
	}
	far.Attach(f.pull, f.push, f.end)
	go f.waitUp()
	return f
}

// tryAwait reads into a new chunk, or leaves none behind and waits.
func (f *streamFlow) tryAwait(fd uintptr) bool {
	r := &f.await
	c := getChunk()
	r.n, r.again, r.err = readNow(fd, c.mem[:])
	if r.n == 0 {
		c.free()
		if !r.again && r.err == nil {
			r.err = ended(fd, &f.shut)
		}
		return !r.again
	}
	c.end = r.n
	f.mu.Lock()
	f.head = c
	f.mu.Unlock()
	return true
}

// waitUp waits for the application's bytes, one burst after the other.
func (f *streamFlow) waitUp() {
	for {
		f.await.n, f.await.err = 0, nil
		err := errors.Join(f.raw.Read(f.await.f), f.await.err)
		if err == nil && f.await.n == 0 {
			err = io.EOF
		}
		f.mu.Lock()
		if f.finished || f.upDone {
			f.head.free()
			f.mu.Unlock()
			return
		}
		f.upErr, f.pulling = err, true
		f.mu.Unlock()
		if err != nil && err != io.EOF {
			f.fail(err) // not through pull: the far end may be out of credit
			return
		}
		f.far.Ready()
		if err != nil {
			return
		}
		select {
		case <-f.wake:
		default: // the far end takes its time
			if !f.stalled() {
				return
			}
		}
	}
}

// glance is how often a flow whose far end does not pull looks after its
// application.
const glance = time.Second

// stalled waits for wake while it is the far end's turn. A far end without credit
// may not pull for ever, and then nobody would notice that the application has
// reset its connection: the backend would wait for a client that is gone, and the
// flow would stay. It cannot be waited for, because bytes that nobody reads yet
// wake as well. False: the flow is over.
func (f *streamFlow) stalled() bool {
	tick := time.NewTicker(glance)
	defer tick.Stop()
	for {
		select {
		case <-f.wake:
			return true
		case <-tick.C:
		}
		var dead error
		err := f.raw.Control(func(fd uintptr) { dead = broken(fd) })
		if err = errors.Join(err, dead); err != nil {
			f.fail(err)
			return false
		}
	}
}

// pull is Far's: it reads the application for the far end.
func (f *streamFlow) pull(dst []byte) (int, error) {
	f.mu.Lock()
	if !f.pulling || f.upDone {
		f.mu.Unlock()
		return 0, nil
	}
	n, more := 0, true
	if !f.head.empty() {
		n = copy(dst, f.head.bytes())
		f.head.off += n
		if !f.head.empty() {
			f.mu.Unlock()
			f.c.Sent.Add(int64(n))
			return n, nil
		}
		more = f.head.end == chunkSize // the chunk was too small for what was there
		f.head.free()
	}
	err := f.upErr
	f.mu.Unlock()
	if err == nil && more && n < len(dst) {
		var k int
		k, more, err = f.readInto(dst[n:])
		n += k
	}
	f.c.Sent.Add(int64(n))
	switch {
	case err == io.EOF:
		f.endUp()
	case err != nil:
		f.fail(err)
	case !more:
		f.mu.Lock()
		f.pulling = false
		f.mu.Unlock()
		f.signal()
	}
	return n, err
}

// readInto reads the application without waiting. more: it is worth reading
// again. A short read has emptied the socket; only for large ones, where more
// is likely on its way, is it worth another try before going back to waiting.
func (f *streamFlow) readInto(dst []byte) (n int, more bool, err error) {
	r := &f.now
	r.buf = dst
	err = f.raw.Read(r.f)
	r.buf = nil
	switch {
	case err != nil || r.err != nil:
		return 0, false, errors.Join(err, r.err)
	case r.again:
		return 0, false, nil
	case r.n == 0:
		return 0, false, io.EOF
	}
	return r.n, r.n == len(dst) || r.n >= chunkSize, nil
}

// signal sends waitUp back to waiting.
func (f *streamFlow) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// push is Far's: it writes to the application what it takes, and keeps the rest.
func (f *streamFlow) push(bufs [][]byte) (int, error) {
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
	f.mu.Unlock()
	n, err := f.writeOut(bufs)
	f.c.Received.Add(int64(n))
	if err != nil {
		f.fail(err)
		return n, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.keepLocked(bufs, n) && !f.finished {
		f.blocked = true
		go f.drain()
	}
	return n, nil
}

// writeOut writes as much of bufs as the socket takes now.
func (f *streamFlow) writeOut(bufs [][]byte) (int, error) {
	total, w := 0, &f.out
	for {
		w.bufs = bufs
		err := f.raw.Write(w.f)
		w.bufs = nil
		if err = errors.Join(err, w.err); err != nil {
			return total, err
		}
		total += w.n
		want := 0
		for _, b := range bufs[:min(len(bufs), maxVec)] {
			want += len(b)
		}
		if w.n < want || len(bufs) <= maxVec {
			return total, nil
		}
		bufs = bufs[maxVec:]
	}
}

// keepLocked queues bufs but for their first skip bytes; it says whether there
// was anything.
func (f *streamFlow) keepLocked(bufs [][]byte, skip int) bool {
	for _, b := range bufs {
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		f.queue.add(b[skip:])
		skip = 0
	}
	return !f.queue.empty()
}

// drain writes the queue as the application takes it.
func (f *streamFlow) drain() {
	bufs := make([][]byte, 0, maxVec)
	var w writing
	w.f = func(fd uintptr) bool {
		var again bool
		w.n, again, w.err = writeNow(fd, w.bufs)
		return !again
	}
	for {
		f.mu.Lock()
		if f.finished {
			f.mu.Unlock()
			return
		}
		if f.queue.empty() {
			f.blocked = false
			ended := f.ended
			f.mu.Unlock()
			if ended {
				f.endDown()
			}
			return
		}
		w.bufs = f.queue.first(bufs[:0])
		f.mu.Unlock()
		if err := errors.Join(f.raw.Write(w.f), w.err); err != nil {
			f.fail(err)
			return
		}
		f.mu.Lock()
		f.queue.drop(w.n)
		f.mu.Unlock()
		f.c.Received.Add(int64(w.n))
		f.far.Took(w.n)
	}
}

// end is Far's: no more bytes come.
func (f *streamFlow) end(err error) {
	if err != nil && err != io.EOF {
		f.fail(err)
		return
	}
	f.mu.Lock()
	f.ended = true
	if err == nil { // the far end takes nothing any more either
		f.upDone = true
	}
	blocked := f.blocked
	f.mu.Unlock()
	if !blocked {
		f.endDown()
	}
}

// endDown passes the far end's end on to the application.
func (f *streamFlow) endDown() {
	f.shut.Store(true)
	if err := f.app.CloseWrite(); err != nil && !errors.Is(err, syscall.ENOTCONN) {
		f.fail(err)
		return
	}
	f.mu.Lock()
	f.downDone = true
	f.mu.Unlock()
	f.finish()
}

// endUp notes that the application's end was passed on.
func (f *streamFlow) endUp() {
	f.mu.Lock()
	f.upDone = true
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
	f.mu.Unlock()
	_ = f.app.Close()
	f.signal()
	f.report(nil)
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
	reset(f.app)
	f.far.Reset(err)
	f.signal()
	f.report(err)
}

func (f *streamFlow) report(err error) {
	f.done(Result{Sent: f.c.Sent.Load(), Received: f.c.Received.Load(), Err: err})
}
