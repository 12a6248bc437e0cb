package sockopt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Connection is a connected TCP socket that is in nobody's poller yet. It is for
// who has a poller of its own: what net does for a connection costs as much again
// as making it. Its methods must not be called once the descriptor is given away,
// but for Detach and Close, which may.
type Connection struct {
	fd   atomic.Int32 // negative: given away
	peer netip.AddrPort
}

// Detach gives the descriptor away, once; it is non-blocking. Without one, because
// it was given away or closed before, it returns -1.
func (c *Connection) Detach() (fd int) { return int(c.fd.Swap(-1)) }

// Close closes the socket, unless its descriptor was given away.
func (c *Connection) Close() error {
	fd := c.Detach()
	if fd < 0 {
		return net.ErrClosed
	}
	return os.NewSyscallError("close", unix.Close(fd))
}

// Connected makes a Connection of a descriptor that somebody else accepted from peer,
// or connected to it.
func Connected(fd int, peer netip.AddrPort) *Connection {
	c := &Connection{peer: unmap(peer)}
	c.fd.Store(int32(fd))
	return c
}

// Peer is the other end's address, unmapped.
func (c *Connection) Peer() netip.AddrPort { return c.peer }

// Local is our end's address, unmapped.
func (c *Connection) Local() (netip.AddrPort, error) {
	sa, err := unix.Getsockname(int(c.fd.Load()))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("sockopt: %w", os.NewSyscallError("getsockname", err))
	}
	return fromSockaddr(sa)
}

// SetLinger is net.TCPConn's.
func (c *Connection) SetLinger(sec int) error {
	l := unix.Linger{Onoff: 1, Linger: int32(sec)}
	if sec < 0 {
		l = unix.Linger{}
	}
	return os.NewSyscallError("setsockopt SO_LINGER", unix.SetsockoptLinger(int(c.fd.Load()), unix.SOL_SOCKET, unix.SO_LINGER, &l))
}

// Connect is Dial for who has a poller of its own.
func (s *Sockets) Connect(ctx context.Context, src netip.Addr, dst netip.AddrPort) (*Connection, error) {
	return s.connectFrom(ctx, src, dst, false, s.cfg.ConnectTimeout)
}

// ConnectApart is Connect for a client whose own connections to dst were redirected
// in this namespace: its source ports and ours do not meet; see [Source].
func (s *Sockets) ConnectApart(ctx context.Context, src netip.Addr, dst netip.AddrPort) (*Connection, error) {
	return s.connectFrom(ctx, src, dst, true, s.cfg.ConnectTimeout)
}

// connectFrom waits for an answer within a time, if it does not come at once.
func (s *Sockets) connectFrom(ctx context.Context, src netip.Addr, dst netip.AddrPort, apart bool, within time.Duration) (*Connection, error) {
	src, dst = src.Unmap(), unmap(dst)
	options, err := s.optionsFor(src, dst, apart)
	if err != nil {
		return nil, err
	}
	fd, err := s.socket(family(dst))
	if err == nil {
		if err = apply(fd, append(options, NoDelay())...); err != nil {
			_ = unix.Close(fd)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("sockopt: dial %s: %w", dst, err)
	}
	return s.connect(ctx, fd, src, dst, within)
}

// socket makes a socket in our namespace.
func (s *Sockets) socket(family int) (int, error) {
	if s.ns != nil {
		return s.ns.Socket(family, unix.SOCK_STREAM, 0)
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	return fd, os.NewSyscallError("socket", err)
}

// connect connects fd, which it owns and which is bound to src, if that is valid.
func (s *Sockets) connect(ctx context.Context, fd int, src netip.Addr, dst netip.AddrPort, within time.Duration) (*Connection, error) {
	to := sockaddr(dst)
	err := unix.Connect(fd, to)
	if err == unix.EINPROGRESS {
		// An application in the same namespace has answered by now, and connecting
		// again says what.
		err = unix.Connect(fd, to)
	}
	if err == unix.EALREADY || err == unix.EINPROGRESS {
		fd, err = await(ctx, fd, within)
	}
	mayBeItself := !src.IsValid() || src == dst.Addr().WithZone("")
	if err == nil && mayBeItself && toItself(fd, dst) {
		err = unix.ECONNREFUSED
	}
	if err == nil {
		return Connected(fd, dst), nil
	}
	_ = unix.Close(fd) // of what failed; there is nothing to lose
	if errno, ok := err.(unix.Errno); ok {
		err = os.NewSyscallError("connect", errno)
	}
	return nil, fmt.Errorf("sockopt: %w", &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(dst), Err: err})
}

// await waits on the runtime's poller until fd is connected, and returns another
// descriptor in its place.
func await(ctx context.Context, fd int, within time.Duration) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	// It fails on a file that is closed, when there is nothing to end.
	defer context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(aLongTimeAgo) })()
	other := -1
	var serr error
	err = raw.Write(func(fd uintptr) (done bool) {
		if done, serr = settled(int(fd)); done && serr == nil {
			other, serr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		}
		return done
	})
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			err = os.ErrDeadlineExceeded // net's word for it
		}
	}
	if err == nil {
		err = serr
	}
	return other, err
}

// settled says whether connecting has come to an end, and to which.
func settled(fd int) (bool, error) {
	p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(p[:], 0)
	if n == 0 || err != nil { // EINTR: asked again
		return false, nil
	}
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 {
		err = unix.Errno(errno)
	}
	return true, err
}

// toItself says whether fd is its own peer: of a port in our namespace that nobody
// listens on the kernel may make the port that we connect from.
func toItself(fd int, dst netip.AddrPort) bool {
	local, _ := unix.Getsockname(fd) // of a connected socket it does not fail
	switch a := local.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)) == dst
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)) == netip.AddrPortFrom(dst.Addr().WithZone(""), dst.Port())
	}
	return false
}

// sockaddr is a for the kernel. A zone is a number, as OriginalDst gives it; another
// is none, and the kernel says so.
func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	zone, _ := strconv.ParseUint(a.Addr().Zone(), 10, 32)
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port()), ZoneId: uint32(zone)}
}
