package relay

import (
	"errors"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// pipeSize is what a splice moves at most; the kernel's default holds 64 KiB.
const pipeSize = 256 << 10

// pipe is a kernel buffer between two sockets. What is in it belongs to one flow.
type pipe struct {
	r, w int
	held int // bytes in it
	lost runtime.Cleanup
}

// maxPipes bounds the pipes in use: readers that stall in the middle of bulk keep
// theirs, and the descriptors are in nobody's share.
const maxPipes = 256

var (
	pipes     sync.Pool // empty ones; the collector takes what is not used
	pipesUsed atomic.Int32
)

var errPipes = errors.New("all pipes are in use")

func getPipe() (*pipe, error) {
	if pipesUsed.Add(1) > maxPipes {
		pipesUsed.Add(-1)
		return nil, errPipes
	}
	if p, ok := pipes.Get().(*pipe); ok {
		return p, nil
	}
	p, err := newPipe()
	if err != nil {
		pipesUsed.Add(-1)
	}
	return p, err
}

func newPipe() (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	// It may be refused, over a limit of the user's: then it is a small one.
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize)
	p := &pipe{r: fds[0], w: fds[1]}
	p.lost = runtime.AddCleanup(p, closePipe, fds)
	return p, nil
}

func closePipe(fds [2]int) { _, _ = unix.Close(fds[0]), unix.Close(fds[1]) }

// put gives the pipe back. One with bytes in it is closed before it counts no more: its
// flow has ended, and whoever makes such flows must not be faster than the collector.
func (p *pipe) put() {
	if p.held == 0 {
		pipes.Put(p)
	} else {
		p.lost.Stop()
		closePipe([2]int{p.r, p.w})
		runtime.KeepAlive(p)
	}
	pipesUsed.Add(-1)
}

// bulk has the role until the source is empty, or the flow is over.
func (e *end) bulk() {
	p, err := getPipe()
	if err != nil { // by chunks then
		e.copyAll()
		return
	}
	defer p.put()
	for !e.rest.empty() { // what move has read comes first
		if blocked, err := e.flush(); err != nil {
			e.f.fail(err)
			return
		} else if blocked && !e.waitForRoom() {
			return
		}
	}
	for e.fillPipe(p) {
		e.drainPipe(p)
	}
}

// copyAll is bulk without a pipe. It has the role, and gives it back.
func (e *end) copyAll() {
	for {
		if _, mine := e.step(); !mine {
			return
		}
	}
}

// fillPipe moves what there is into p. It returns false when it has given the role
// back, or the direction has ended. A splice does not pass the mark of urgent data,
// and takes it for the end where that follows: reads have the last word.
func (e *end) fillPipe(p *pipe) bool {
	for {
		e.f.mu.Lock()
		finished := e.f.finished
		e.changed = false
		e.f.mu.Unlock()
		if finished {
			return false
		}
		n, again, err := e.splice(p)
		switch {
		case err == io.EOF:
			e.copyAll()
			return false
		case err != nil:
			e.ended(err)
			return false
		case !again:
			p.held = n
			return true
		}
		e.f.mu.Lock()
		idle, urgent := !e.changed, e.urgent
		if idle && !urgent {
			e.busy = false
		}
		e.f.mu.Unlock()
		switch {
		case urgent:
			e.copyAll()
			return false
		case idle:
			return false
		}
	}
}

// drainPipe moves what p holds to the other end, all of it unless the flow ends.
func (e *end) drainPipe(p *pipe) {
	for p.held > 0 {
		n, err := e.unsplice(p)
		p.held -= n
		e.count.Add(int64(n))
		if err == nil && n == 0 {
			err = e.other.sock.WatchWrites()
			if err == nil && !e.waitForRoom() {
				return
			}
		}
		if err != nil {
			e.f.fail(err)
			return
		}
	}
}

// splice reads into p; again: there is nothing, io.EOF: nothing follows.
func (e *end) splice(p *pipe) (n int, again bool, err error) {
	fd, ok := e.sock.Acquire()
	if !ok {
		return 0, false, os.ErrClosed
	}
	defer e.sock.Release()
	n, again, err = spliceNow(fd, p.w, pipeSize)
	if err == nil && !again && n == 0 {
		err = io.EOF
	}
	return n, again, err
}

// unsplice writes out of p what the other end takes.
func (e *end) unsplice(p *pipe) (n int, err error) {
	fd, ok := e.other.sock.Acquire()
	if !ok {
		return 0, os.ErrClosed
	}
	defer e.other.sock.Release()
	n, _, err = spliceNow(p.r, fd, p.held)
	return n, err
}

func spliceNow(from, to, n int) (moved int, again bool, err error) {
	for {
		k, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		switch err {
		case nil:
			return int(k), false, nil
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return 0, true, nil
		}
		return 0, false, appError("splice", err)
	}
}
