package sockopt

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
)

// inherited is a bound socket that another process opened.
type inherited struct {
	file *os.File
	kind int // SOCK_STREAM (listening) or SOCK_DGRAM
	addr netip.AddrPort
}

// Inherit is New with sockets that another process has opened: Listen and
// ListenPacket return the one that is bound to the wanted address, once,
// instead of opening it. It takes ownership of ns and files, also when it
// fails; a file that is no listening TCP or bound UDP socket is refused.
//
// Connections accepted from an inherited listener have Go's keepalive times
// until Accepted is called with them.
func Inherit(ns *netns.NS, cfg Config, files []*os.File) (s *Sockets, err error) {
	s = New(ns, cfg)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
			s = nil
		}
	}()
	for _, f := range files {
		in, inspectErr := inspect(f)
		if inspectErr != nil {
			err = errors.Join(err, fmt.Errorf("sockopt: inherit %s: %w", f.Name(), inspectErr))
		}
		s.inherited = append(s.inherited, in)
	}
	return s, err
}

func inspect(f *os.File) (in inherited, err error) {
	in.file = f
	raw, err := f.SyscallConn()
	if err != nil {
		return in, err
	}
	return in, control(raw, func(fd int) error {
		unix.CloseOnExec(fd)
		if in.kind, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
			return os.NewSyscallError("getsockopt SO_TYPE", err)
		}
		listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if err != nil {
			return os.NewSyscallError("getsockopt SO_ACCEPTCONN", err)
		}
		if in.kind != unix.SOCK_DGRAM && listening == 0 {
			return errors.New("neither a listening nor a packet socket")
		}
		sa, err := unix.Getsockname(fd)
		if err != nil {
			return os.NewSyscallError("getsockname", err)
		}
		if in.addr, err = fromSockaddr(sa); err != nil {
			return err
		}
		return nil
	})
}

// take removes and returns the inherited socket of that kind and address.
func (s *Sockets) take(kind int, addr netip.AddrPort) (*os.File, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.inherited, func(in inherited) bool {
		return in.kind == kind && (in.addr == addr || wildcard6(addr) && in.addr == any4(addr))
	})
	if i < 0 {
		return nil, false
	}
	f := s.inherited[i].file
	s.inherited = slices.Delete(s.inherited, i, i+1)
	return f, true
}

func (s *Sockets) takeListener(addr netip.AddrPort) (l *net.TCPListener, transparent bool, err error) {
	f, ok := s.take(unix.SOCK_STREAM, addr)
	if !ok {
		return nil, false, nil
	}
	defer f.Close() // net works on a duplicate
	any, err := net.FileListener(f)
	if err != nil {
		return nil, false, fmt.Errorf("sockopt: inherited listener %s: %w", addr, err)
	}
	l = any.(*net.TCPListener)
	raw, err := l.SyscallConn()
	if err == nil {
		err = control(raw, func(fd int) (err error) {
			transparent, err = s.mayBorrow(fd)
			return err
		})
	}
	if err != nil {
		l.Close()
		return nil, false, fmt.Errorf("sockopt: inherited listener %s: %w", addr, err)
	}
	return l, transparent, nil
}

func (s *Sockets) takePacket(addr netip.AddrPort) (*net.UDPConn, error) {
	f, ok := s.take(unix.SOCK_DGRAM, addr)
	if !ok {
		return nil, nil
	}
	defer f.Close()
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("sockopt: inherited packet socket %s: %w", addr, err)
	}
	return c.(*net.UDPConn), nil
}

// Accepted sets Config's keepalive on a connection accepted from an inherited
// listener. Other listeners' connections have it already.
func (s *Sockets) Accepted(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("sockopt: %w", err)
	}
	if err := control(raw, KeepAlive(s.cfg.Keepalive)); err != nil {
		return fmt.Errorf("sockopt: %w", err)
	}
	return nil
}

func fromSockaddr(sa unix.Sockaddr) (netip.AddrPort, error) {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port)), nil
	default:
		return netip.AddrPort{}, fmt.Errorf("not an internet address: %T", sa)
	}
}
