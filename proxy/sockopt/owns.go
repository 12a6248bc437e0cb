package sockopt

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
)

// Owns reports whether addr is an address of the namespace itself, so that a
// connection to it cannot leave. It asks the kernel, by binding.
func (s *Sockets) Owns(addr netip.Addr) (bool, error) {
	addr = addr.Unmap()
	fd, err := s.raw(family(netip.AddrPortFrom(addr, 0)), unix.SOCK_DGRAM)
	if err != nil {
		return false, fmt.Errorf("sockopt: is %s ours: %w", addr, err)
	}
	defer unix.Close(fd)
	switch err := bind(fd, addr); {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return false, nil
	default:
		return false, fmt.Errorf("sockopt: is %s ours: %w", addr, os.NewSyscallError("bind", err))
	}
}

func (s *Sockets) raw(family, typ int) (int, error) {
	if s.ns != nil {
		return s.ns.Socket(family, typ, 0)
	}
	ns, err := netns.Current()
	if err != nil {
		return -1, err
	}
	defer ns.Close()
	return ns.Socket(family, typ, 0)
}

func bind(fd int, addr netip.Addr) error {
	if addr.Is4() {
		return unix.Bind(fd, &unix.SockaddrInet4{Addr: addr.As4()})
	}
	return unix.Bind(fd, &unix.SockaddrInet6{Addr: addr.As16()})
}
