package relay

import (
	"net"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// The calls here are made inside the callbacks of a syscall.RawConn: the
// descriptor is non-blocking and stays open meanwhile. They ask once; waiting
// is the caller's. again: there was nothing to read, or no room to write.

// maxVec is how many pieces go into one write; the kernel's own bound is 1024.
const maxVec = 64

// readNow reads into p. n 0 without error or again is the end of the stream.
func readNow(fd uintptr, p []byte) (n int, again bool, err error) {
	for {
		n, err = unix.Read(int(fd), p)
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
func writeNow(fd uintptr, bufs [][]byte) (n int, again bool, err error) {
	for {
		if len(bufs) == 1 {
			n, err = unix.Write(int(fd), bufs[0])
		} else {
			n, err = unix.Writev(int(fd), bufs[:min(len(bufs), maxVec)])
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

// broken returns why a connection is over that was reset or given up by the
// kernel. Its state does not tell: bytes that nobody has read yet also wait in a
// connection that both sides have closed.
func broken(fd uintptr) error {
	e, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return appError("getsockopt", err)
	}
	switch errno := syscall.Errno(e); errno {
	case unix.ECONNRESET, unix.EPIPE, unix.ETIMEDOUT:
		return appError("read", errno)
	}
	return nil // others, like those of ICMP, may pass
}

// ended says what a read of 0 bytes means: nil for a half-close. A reset is
// reported once, to whichever call comes first; when a write has taken it, reads
// see only that there is nothing more. shut: we have half-closed the connection
// ourselves, after which nothing of ours writes, and one that ended well on both
// sides is in the same state as a broken one. It is set before the half-close and
// so must be looked at after the state.
func ended(fd uintptr, shut *atomic.Bool) error {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err == nil && info.State == tcpClose && !shut.Load() {
		return appError("read", unix.ECONNRESET)
	}
	return nil
}

// tcpClose is TCP_CLOSE of linux/include/net/tcp_states.h.
const tcpClose = 7

// readable returns how many bytes wait in the socket.
func readable(fd uintptr) int {
	n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

func appError(call string, err error) error {
	if e, ok := err.(syscall.Errno); ok {
		return &net.OpError{Op: call, Net: "tcp", Err: os.NewSyscallError(call, e)}
	}
	return err
}
