package sockopt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Names of linux/netfilter_ipv4.h and netfilter_ipv6/ip6_tables.h.
const (
	soOriginalDst    = 80
	ip6SoOriginalDst = 80
)

// OriginalDst returns the address that the client of a redirected connection
// wanted to reach, unmapped. Of a connection that was not redirected it is the
// local address.
func OriginalDst(c *net.TCPConn) (netip.AddrPort, error) {
	local, ok := c.LocalAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("sockopt: original destination: no local address: %w", os.ErrInvalid)
	}
	at := unmap(local.AddrPort())
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("sockopt: original destination: %w", err)
	}
	var dst netip.AddrPort
	err = control(raw, func(fd int) (err error) {
		dst, err = originalDst(fd, at.Addr().Is4())
		return err
	})
	if err == nil && !dst.IsValid() {
		dst = at
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("sockopt: original destination of %s: %w", c.RemoteAddr(), err)
	}
	return dst, nil
}

// OriginalDst is the package's OriginalDst.
func (c *Connection) OriginalDst() (netip.AddrPort, error) {
	dst, err := originalDst(int(c.fd.Load()), c.peer.Addr().Is4())
	if err == nil && !dst.IsValid() {
		dst, err = c.Local()
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("sockopt: original destination of %s: %w", c.peer, err)
	}
	return dst, nil
}

// originalDst returns no address for a connection that was not redirected. ip4: it
// is IPv4, which it may be on an IPv6 socket too.
func originalDst(fd int, ip4 bool) (dst netip.AddrPort, err error) {
	if ip4 {
		dst, err = originalDst4(fd)
	} else {
		dst, err = originalDst6(fd)
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EOPNOTSUPP) {
		return netip.AddrPort{}, nil // not tracked
	}
	return dst, err
}

// originalDst4 reads a sockaddr_in. IPv6Mreq is a struct of 20 bytes whose
// first 16 are the kernel's answer: family, port and address, in network order.
func originalDst4(fd int) (netip.AddrPort, error) {
	v, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, soOriginalDst)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockopt SO_ORIGINAL_DST", err)
	}
	b := v.Multiaddr
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4])), nil
}

// originalDst6 reads a sockaddr_in6, with which IPv6MTUInfo begins. A scope
// stays a number: its name would be looked up in the wrong namespace.
func originalDst6(fd int) (netip.AddrPort, error) {
	v, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, ip6SoOriginalDst)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockopt IP6T_SO_ORIGINAL_DST", err)
	}
	addr := netip.AddrFrom16(v.Addr.Addr).Unmap()
	if v.Addr.Scope_id != 0 {
		addr = addr.WithZone(strconv.FormatUint(uint64(v.Addr.Scope_id), 10))
	}
	port := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v.Addr.Port))
	return netip.AddrPortFrom(addr, port), nil
}
