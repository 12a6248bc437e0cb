package relay

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// tcpFar is a TCP connection as the far end. Start recognises it; as a Far it
// only knows how to be reset.
type tcpFar struct{ conn *net.TCPConn }

func (t tcpFar) Attach(n Near)  { n.End(errors.ErrUnsupported) }
func (t tcpFar) Ready() Flusher { return nil }
func (t tcpFar) Took(int)       {}
func (t tcpFar) Reset(error)    { reset(t.conn) }

// spliceFlow relays between two TCP connections, one goroutine a direction.
// Small messages are read and written; what is more than a chunk is spliced:
// it never enters user space. Only what waits in the socket already is spliced,
// so that the kernel pipe under it (which net.TCPConn.ReadFrom brings along) is
// never held by an idle connection.
type spliceFlow struct {
	app, far halfClosed
	c        *Counters
	done     func(Result)

	mu       sync.Mutex
	running  int
	finished bool
}

// halfClosed is a connection and whether we have half-closed it, or are about to.
type halfClosed struct {
	*net.TCPConn
	shut atomic.Bool
}

func startSplice(app, far *net.TCPConn, c *Counters, done func(Result)) *spliceFlow {
	f := &spliceFlow{c: c, done: done, running: 2}
	f.app.TCPConn, f.far.TCPConn = app, far
	go f.run(&f.far, &f.app, &c.Sent)
	go f.run(&f.app, &f.far, &c.Received)
	return f
}

// run moves one direction to its end.
func (f *spliceFlow) run(dst, src *halfClosed, count *atomic.Int64) {
	err := splice(dst.TCPConn, src, count)
	if err == nil {
		dst.shut.Store(true)
		if err = dst.CloseWrite(); errors.Is(err, syscall.ENOTCONN) {
			err = nil
		}
	}
	if err != nil {
		f.fail(err)
		return
	}
	f.mu.Lock()
	f.running--
	last := f.running == 0 && !f.finished
	f.finished = f.finished || last
	f.mu.Unlock()
	if last {
		_ = f.app.Close()
		_ = f.far.Close()
		f.report(nil)
	}
}

func (f *spliceFlow) fail(err error) {
	f.mu.Lock()
	was := f.finished
	f.finished = true
	f.mu.Unlock()
	if !was {
		reset(f.app.TCPConn)
		reset(f.far.TCPConn)
		f.report(err)
	}
}

func (f *spliceFlow) report(err error) {
	f.done(Result{Sent: f.c.Sent.Load(), Received: f.c.Received.Load(), Err: err})
}

// splice moves bytes from src to dst until src ends (nil) or something breaks.
func splice(dst *net.TCPConn, src *halfClosed, count *atomic.Int64) error {
	raw, err := src.SyscallConn()
	if err != nil {
		return err
	}
	var (
		c       chunk
		waiting int
		rerr    error
		limit   = &io.LimitedReader{R: src.TCPConn}
	)
	wait := func(fd uintptr) bool {
		c = getChunk()
		var again bool
		c.end, again, rerr = readNow(int(fd), c.mem[:])
		if again {
			c.free()
			return false
		}
		if c.empty() && rerr == nil {
			rerr = ended(int(fd), &src.shut)
		}
		if c.end == chunkSize {
			waiting = readable(fd)
		}
		return true
	}
	for {
		waiting = 0
		if err := errors.Join(raw.Read(wait), rerr); err != nil {
			return err
		}
		if c.empty() {
			c.free()
			return nil
		}
		n, err := dst.Write(c.bytes())
		count.Add(int64(n))
		c.free()
		for err == nil && waiting > 0 {
			var moved int64
			limit.N = int64(waiting)
			moved, err = dst.ReadFrom(limit)
			count.Add(moved)
			if waiting, err = more(raw, err, moved); waiting < chunkSize {
				waiting = 0
			}
		}
		if err != nil {
			return err
		}
	}
}

// more asks how much is there to splice after a step that moved something.
func more(raw syscall.RawConn, err error, moved int64) (n int, _ error) {
	if err != nil || moved == 0 {
		return 0, err
	}
	return n, raw.Control(func(fd uintptr) { n = readable(fd) })
}
