package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
)

const (
	connectWait = 2 * time.Second        // for a connection to be made
	acceptWait  = time.Second            // for it to be seen then
	pollSlice   = 100 * time.Millisecond // between looks at the context
)

// errUnseen: the connection was made, but not with the listener.
var errUnseen = errors.New("the connection was made with somebody else than the listener")

// errListen: there is no listener to connect to.
var errListen = errors.New("cannot listen")

// meet listens at an address in one namespace, connects to it from another and
// returns the source that the listener saw. ready, if not nil, is called in
// between with the listener's address.
func meet(ctx context.Context, listenIn, dialIn *netns.NS, at netip.AddrPort, ready func(netip.AddrPort) error) (from netip.Addr, err error) {
	var l net.Listener
	err = listenIn.Do(func() (err error) {
		l, err = net.Listen("tcp", at.String())
		return err
	})
	if err != nil {
		return from, fmt.Errorf("%w at %s: %w", errListen, at.Addr(), err)
	}
	defer l.Close()
	to := l.Addr().(*net.TCPAddr).AddrPort()
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	if ready != nil {
		if err := ready(to); err != nil {
			return from, err
		}
	}
	if err := connect(ctx, dialIn, to); err != nil {
		return from, fmt.Errorf("connect to %s: %w", to, err)
	}
	// The kernel has it already, if it is there.
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(acceptWait)); err != nil {
		return from, err
	}
	c, err := l.Accept()
	if err != nil {
		return from, errUnseen
	}
	defer c.Close()
	return c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(), nil
}

// connect makes a connection from a namespace, and ends it.
func connect(ctx context.Context, ns *netns.NS, to netip.AddrPort) error {
	domain, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		domain, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := ns.Socket(domain, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, sa)
	if !errors.Is(err, unix.EINPROGRESS) {
		return os.NewSyscallError("connect", err)
	}
	for deadline := time.Now().Add(connectWait); time.Now().Before(deadline) && ctx.Err() == nil; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(pollSlice.Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("poll", err)
		}
		if n > 0 {
			code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
			if err == nil && code != 0 {
				err = syscall.Errno(code)
			}
			return os.NewSyscallError("connect", err)
		}
	}
	return errors.Join(os.ErrDeadlineExceeded, ctx.Err())
}
