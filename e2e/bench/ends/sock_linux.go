package ends

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// read and write go past the scheduler: the sockets do not block, and the
// thread belongs to the loop.
func read(fd int, p []byte) (int, error)  { return transfer(unix.SYS_READ, fd, p) }
func write(fd int, p []byte) (int, error) { return transfer(unix.SYS_WRITE, fd, p) }

func transfer(call uintptr, fd int, p []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		runtime.KeepAlive(p)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// source is a file of one block of bytes, which bulk is sent from over and over: no
// copy of them is made, so that the ends leave the machine to what is measured.
type source struct{ fd int }

func newSource() (source, error) {
	fd, err := unix.MemfdCreate("bulk", unix.MFD_CLOEXEC)
	if err != nil {
		return source{}, fmt.Errorf("memfd_create: %w", err)
	}
	if _, err := unix.Write(fd, make([]byte, block)); err != nil {
		unix.Close(fd)
		return source{}, fmt.Errorf("write a block: %w", err)
	}
	return source{fd}, nil
}

func (s source) close() { unix.Close(s.fd) }

// send sends what fd takes of a block.
func (s source) send(fd int) error {
	for {
		var at int64
		_, _, errno := unix.RawSyscall6(unix.SYS_SENDFILE, uintptr(fd), uintptr(s.fd), uintptr(unsafe.Pointer(&at)), block, 0, 0)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// drop takes what has come, at most a block, without looking at it (MSG_TRUNC, tcp(7)).
func drop(fd int) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), 0, block, unix.MSG_TRUNC, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

func again(err error) bool { return errors.Is(err, unix.EAGAIN) }

// connect starts a connection from the namespace of this thread.
func connect(dst netip.AddrPort) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("TCP_NODELAY: %w", err)
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(dst.Port()), Addr: dst.Addr().As4()})
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		unix.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", dst, err)
	}
	return fd, nil
}

// failed is the error that a socket has kept.
func failed(fd int) error {
	v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && v != 0 {
		err = unix.Errno(v)
	}
	return err
}

// poll is an epoll set.
type poll struct {
	fd     int
	events [256]unix.EpollEvent
}

func newPoll() (*poll, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return &poll{fd: fd}, nil
}

func (p *poll) close() { unix.Close(p.fd) }

// watch asks for events of fd. tag comes back with each of them.
func (p *poll) watch(fd, tag int, events uint32, op int) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(tag)}
	return unix.EpollCtl(p.fd, op, fd, &ev)
}

// wait returns what is ready, at the latest after timeout milliseconds.
func (p *poll) wait(timeout int) ([]unix.EpollEvent, error) {
	n, err := unix.EpollWait(p.fd, p.events[:], timeout)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return p.events[:max(0, n)], nil
}
