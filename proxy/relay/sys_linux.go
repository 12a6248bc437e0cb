package relay

import (
	"encoding/binary"
	"net"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// The calls here are made with a descriptor that is non-blocking and stays open
// meanwhile. They ask once; waiting is the caller's. again: there was nothing to
// read, or no room to write.

// maxVec is how many pieces go into one write; the kernel's own bound is 1024.
const maxVec = 64

// readNow reads into p. n 0 without error or again is the end of the stream.
func readNow(fd int, p []byte) (n int, again bool, err error) {
	for {
		n, err = unix.Read(fd, p)
		switch err {
		case nil:
			return n, false, nil
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return 0, true, nil
		}
		return 0, false, appError("read", err)
	}
}

// writeNow writes what fits of the first of bufs.
func writeNow(fd int, bufs [][]byte) (n int, again bool, err error) {
	for {
		if len(bufs) == 1 {
			n, err = unix.Write(fd, bufs[0])
		} else {
			n, err = unix.Writev(fd, bufs[:min(len(bufs), maxVec)])
		}
		switch err {
		case nil:
			return n, false, nil
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return 0, true, nil
		}
		return 0, false, appError("write", err)
	}
}

// failure returns the error of a broken socket, once: the kernel forgets it.
func failure(fd int) error {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && n != 0 {
		err = unix.Errno(n)
	}
	if err == nil {
		return nil
	}
	return appError("read", err)
}

// errReset is the error of a socket that has told it to somebody else.
var errReset = appError("read", unix.ECONNRESET)

// tcpClose is TCP_CLOSE of linux/include/net/tcp_states.h.
const tcpClose = 7

// ended says what a read of 0 bytes means: nil for a half-close. A reset is
// reported once, to whichever call comes first; when a write has taken it, reads
// see only that there is nothing more. shut: we have half-closed the connection
// ourselves, or are about to, after which nothing of ours writes, and a
// connection that ended well on both sides is in the same state as a broken one.
func ended(fd int, shut *atomic.Bool) error {
	v, err := unix.GetsockoptInt(fd, unix.SOL_TCP, unix.TCP_INFO)
	// Of the struct the kernel fills as much as there is room for; the state is
	// its first byte.
	over := err == nil && binary.NativeEndian.AppendUint32(nil, uint32(v))[0] == tcpClose
	if over && !shut.Load() { // in this order: it was not our end that made it so
		return errReset
	}
	return nil
}

// shutdown ends our direction. A connection that is over already has none.
func shutdown(fd int) error {
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil && err != unix.ENOTCONN {
		return appError("shutdown", err)
	}
	return nil
}

func appError(call string, err error) error {
	if e, ok := err.(syscall.Errno); ok {
		return &net.OpError{Op: call, Net: "tcp", Err: os.NewSyscallError(call, e)}
	}
	return err
}
