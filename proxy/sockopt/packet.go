package sockopt

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// DialPacket makes a UDP socket that is connected to dst, from a port of the
// kernel's choice: nobody else's packets arrive on it, and that nobody is there
// is an error. It does not block.
func (s *Sockets) DialPacket(dst netip.AddrPort) (*net.UDPConn, error) {
	dst = unmap(dst)
	fd, err := s.datagram(family(dst))
	if err != nil {
		return nil, fmt.Errorf("sockopt: dial UDP %s: %w", dst, err)
	}
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close() // net works on a duplicate
	if err = apply(fd, s.marked()...); err == nil {
		err = os.NewSyscallError("connect", unix.Connect(fd, sockaddr(dst)))
	}
	if err != nil {
		return nil, fmt.Errorf("sockopt: dial UDP %s: %w", dst, err)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("sockopt: dial UDP %s: %w", dst, err)
	}
	return c.(*net.UDPConn), nil
}

// Deafen keeps further packets from c, which can go on sending: those that come to
// its address go to the other sockets that share it, as a new process's do. What has
// come already can be read.
func Deafen(c *net.UDPConn) error {
	local, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		return fmt.Errorf("sockopt: deafen: no local address: %w", os.ErrInvalid)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("sockopt: deafen: %w", err)
	}
	// A connected socket hears its peer only, and this one is nobody.
	nobody := netip.AddrPortFrom(unmap(local.AddrPort()).Addr(), discardPort)
	if err := control(raw, func(fd int) error { return os.NewSyscallError("connect", unix.Connect(fd, sockaddr(nobody))) }); err != nil {
		return fmt.Errorf("sockopt: deafen %s: %w", local, err)
	}
	return nil
}

// discardPort is that of a service which nobody has run for decades.
const discardPort = 9

// datagram makes a UDP socket in our namespace.
func (s *Sockets) datagram(family int) (int, error) {
	if s.ns != nil {
		return s.ns.Socket(family, unix.SOCK_DGRAM, 0)
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	return fd, os.NewSyscallError("socket", err)
}

// NoIPv6 says of an error of Listen or ListenPacket that the namespace has no such
// address because it has no IPv6, or not on that interface.
func NoIPv6(err error) bool { return noIPv6(err) }
