package sockopt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listen listens for TCP on addr and says whether sockets may be transparent here,
// which is what makes borrowing clients' addresses possible. The unspecified
// IPv6 address takes IPv4 too, and stands for 0.0.0.0 where there is no IPv6.
// Connections that it accepts have the options of Config.
func (s *Sockets) Listen(ctx context.Context, addr netip.AddrPort) (l *net.TCPListener, transparent bool, err error) {
	addr = unmap(addr)
	if l, transparent, err = s.takeListener(addr); l != nil || err != nil {
		return l, transparent, err
	}
	l, transparent, err = s.listen(ctx, addr)
	if wildcard6(addr) && noIPv6(err) {
		l, transparent, err = s.listen(ctx, any4(addr))
	}
	if err != nil {
		return nil, false, fmt.Errorf("sockopt: %w", err) // net's text names addr
	}
	return l, transparent, nil
}

func (s *Sockets) listen(ctx context.Context, addr netip.AddrPort) (l *net.TCPListener, transparent bool, err error) {
	options := append(s.dialOptions(), NoDelay()) // accepted connections inherit them
	if s.cfg.ReusePort {
		options = append(options, ReusePort())
	}
	options = append(options, func(fd int) (err error) {
		transparent, err = s.mayBorrow(fd)
		return err
	})
	lc := listenConfig(addr, options)
	err = s.inside(func() error {
		any, err := s.listenTCP(ctx, lc, network("tcp", addr), addr.String())
		if err == nil {
			l = any.(*net.TCPListener)
		}
		return err
	})
	return l, transparent, err
}

// mayBorrow reports whether sockets in fd's namespace may be transparent, by making
// fd so for a moment. It does not stay so: the kernel looks up the connection of a
// packet before NAT has changed its source port, and trusts what it found if that is
// transparent. Two connections of a client from one port to two ports of the pod are
// one to that lookup, for both have been redirected, and the second would hang.
func (s *Sockets) mayBorrow(fd int) (bool, error) {
	err := Opaque()(fd)
	if err != nil || s.cfg.Transparent == Off {
		return false, err
	}
	if err := Transparent()(fd); err != nil {
		if s.cfg.Transparent == Auto {
			err = nil
		}
		return false, err
	}
	return true, Opaque()(fd)
}

// ListenPacket opens a UDP socket on addr, whose unspecified address means the
// same as Listen's. Port 0 is any, to ask others from.
func (s *Sockets) ListenPacket(ctx context.Context, addr netip.AddrPort) (*net.UDPConn, error) {
	addr = unmap(addr)
	if c, err := s.takePacket(addr); c != nil || err != nil {
		return c, err
	}
	c, err := s.listenPacket(ctx, addr)
	if wildcard6(addr) && noIPv6(err) {
		c, err = s.listenPacket(ctx, any4(addr))
	}
	if err != nil {
		return nil, fmt.Errorf("sockopt: %w", err)
	}
	return c, nil
}

func (s *Sockets) listenPacket(ctx context.Context, addr netip.AddrPort) (c *net.UDPConn, err error) {
	options := s.marked()
	if s.cfg.ReusePort && addr.Port() != 0 {
		options = append(options, ReusePort())
	}
	lc := listenConfig(addr, options)
	err = s.inside(func() error {
		any, err := lc.ListenPacket(ctx, network("udp", addr), addr.String())
		if err == nil {
			c = any.(*net.UDPConn)
		}
		return err
	})
	return c, err
}

// inside runs fn in the namespace. net's Listen does not block.
func (s *Sockets) inside(fn func() error) error {
	if s.ns == nil {
		return fn()
	}
	return s.ns.Do(fn)
}

func listenTCP(ctx context.Context, lc *net.ListenConfig, network, addr string) (net.Listener, error) {
	return lc.Listen(ctx, network, addr)
}

func listenConfig(addr netip.AddrPort, options []Option) *net.ListenConfig {
	if wildcard6(addr) {
		options = append(options, DualStack())
	}
	lc := &net.ListenConfig{
		KeepAlive: -1, // inherited from the listener instead of set on each connection
		Control: func(_, _ string, c syscall.RawConn) error {
			return control(c, func(fd int) error { return apply(fd, options...) })
		},
	}
	lc.SetMultipathTCP(false) // its sockets can neither splice nor say their original destination
	return lc
}

func wildcard6(addr netip.AddrPort) bool { return addr.Addr() == netip.IPv6Unspecified() }

func any4(addr netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())
}

// noIPv6 recognises a kernel or a namespace without IPv6.
func noIPv6(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)
}
