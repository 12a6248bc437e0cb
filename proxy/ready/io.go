package ready

import (
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// The calls here ask once; waiting is the caller's. again: there was nothing to
// read. They return net.ErrClosed for a socket that is closed.

// Read reads what there is, at most len(p) bytes; io.EOF at the end of the stream.
func (k *Socket) Read(p []byte) (n int, again bool, err error) {
	fd, ok := k.Acquire()
	if !ok {
		return 0, false, net.ErrClosed
	}
	defer k.Release()
	for {
		n, err = unix.Read(fd, p)
		switch {
		case err == nil && n == 0:
			return 0, false, io.EOF
		case err == nil:
			return n, false, nil
		case err == unix.EAGAIN:
			return 0, true, nil
		case err != unix.EINTR:
			return 0, false, socketError("read", err)
		}
	}
}

// Write writes what the socket takes of p, which may be nothing.
func (k *Socket) Write(p []byte) (n int, err error) {
	fd, ok := k.Acquire()
	if !ok {
		return 0, net.ErrClosed
	}
	defer k.Release()
	for {
		n, err = unix.Write(fd, p)
		switch err {
		case nil:
			return n, nil
		case unix.EAGAIN:
			return 0, nil
		case unix.EINTR:
		default:
			return 0, socketError("write", err)
		}
	}
}

// CloseWrite ends our direction.
func (k *Socket) CloseWrite() error {
	fd, ok := k.Acquire()
	if !ok {
		return net.ErrClosed
	}
	defer k.Release()
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return socketError("shutdown", err)
	}
	return nil
}

func socketError(call string, err error) error {
	return &net.OpError{Op: call, Net: "tcp", Err: os.NewSyscallError(call, err)}
}
