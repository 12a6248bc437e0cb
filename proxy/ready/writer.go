package ready

import (
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Writer writes to a connection of net's without waiting. It is for one goroutine
// at a time, and beside nobody else who writes to the connection.
type Writer struct {
	raw syscall.RawConn
	f   func(uintptr) bool // made once, so that a write allocates nothing

	buf []byte
	n   int
	err error
}

// NewWriter returns a Writer to c. To a connection without a descriptor it writes
// nothing.
func NewWriter(c net.Conn) *Writer {
	w := &Writer{}
	if s, ok := c.(syscall.Conn); ok {
		w.raw, _ = s.SyscallConn() // nil: nothing is written, and who waits sees why
	}
	w.f = func(fd uintptr) bool {
		w.n, w.err = unix.Write(int(fd), w.buf)
		return true // whatever it says: nothing is waited for
	}
	return w
}

// Try writes what the socket takes now of b and returns how much that is. An
// error is the connection's; that there is no room is none.
func (w *Writer) Try(b []byte) (int, error) {
	if w.raw == nil || len(b) == 0 {
		return 0, nil
	}
	w.buf = b
	err := w.raw.Write(w.f)
	w.buf = nil
	switch {
	case err != nil:
		return 0, err
	case w.err == nil:
		return w.n, nil
	case w.err == unix.EAGAIN, w.err == unix.EINTR:
		return 0, nil
	}
	return 0, &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", w.err)}
}
