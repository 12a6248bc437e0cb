package sockopt

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Pair returns the two ends of a connection within the process: one for who has a
// poller of its own, the other on net's.
func Pair() (*Connection, *net.UnixConn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("sockopt: %w", os.NewSyscallError("socketpair", err))
	}
	near := Connected(fds[0], netip.AddrPort{})
	f := os.NewFile(uintptr(fds[1]), "pair")
	defer f.Close()
	far, err := net.FileConn(f)
	if err != nil {
		_ = near.Close()
		return nil, nil, fmt.Errorf("sockopt: %w", err)
	}
	return near, far.(*net.UnixConn), nil
}
