package sockopt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// ErrUntracked is returned (wrapped) for a packet that conntrack knows nothing of.
var ErrUntracked = errors.New("conntrack knows nothing of it")

// What linux/netfilter/nfnetlink_conntrack.h names so.
const (
	ctMessageNew, ctMessageGet   = 0, 1
	ctTupleOriginal, ctTupleBack = 1, 2
	ctTupleIP, ctTupleProto      = 1, 2
	ctProtoNumber                = 1
	ctProtoSrc, ctProtoDst       = 2, 3
	netfilterHeader              = 4 // struct nfgenmsg
	attributeHeader              = 4 // struct nlattr
	nested                       = unix.NLA_F_NESTED
	attributeType                = 0x3fff // NLA_TYPE_MASK
)

// ctAddresses are the attributes of source and destination in a family.
func ctAddresses(is4 bool) (src, dst uint16) {
	if is4 {
		return 1, 2
	}
	return 3, 4
}

// OriginalPacketDst returns where the sender of a redirected UDP packet sent it:
// from is the sender as we see it, at the local address that the packet came to.
// A packet socket, unlike a connection, does not know; the namespace's conntrack
// does, and is asked for this one flow. Of a packet that was not redirected it is
// at.
func (s *Sockets) OriginalPacketDst(from, at netip.AddrPort) (netip.AddrPort, error) {
	from, at = unmap(from), unmap(at)
	dst, err := s.trackedDst(from, at)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("sockopt: original destination of a packet from %s to %s: %w", from, at, err)
	}
	return dst, nil
}

func (s *Sockets) trackedDst(from, at netip.AddrPort) (dst netip.AddrPort, err error) {
	fd, err := s.netfilter()
	if err != nil {
		return dst, err
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, flowQuery(from, at), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return dst, os.NewSyscallError("sendto", err)
	}
	// The kernel has answered within Sendto.
	buf := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return dst, os.NewSyscallError("recvfrom", err)
	}
	return flowDst(buf[:n])
}

func (s *Sockets) netfilter() (int, error) {
	if s.ns != nil {
		return s.ns.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	return fd, os.NewSyscallError("socket", err)
}

// flowQuery asks for the flow whose answers go from at to from.
func flowQuery(from, at netip.AddrPort) []byte {
	b := make([]byte, unix.NLMSG_HDRLEN, 128)
	binary.NativeEndian.PutUint16(b[4:], unix.NFNL_SUBSYS_CTNETLINK<<8|ctMessageGet)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	b = append(b, byte(family(from)), unix.NFNETLINK_V0, 0, 0)
	src, dst := ctAddresses(at.Addr().Is4())
	ips := attribute(attribute(nil, src, at.Addr().AsSlice()), dst, from.Addr().AsSlice())
	ports := attribute(nil, ctProtoNumber, []byte{unix.IPPROTO_UDP})
	ports = attribute(ports, ctProtoSrc, binary.BigEndian.AppendUint16(nil, at.Port()))
	ports = attribute(ports, ctProtoDst, binary.BigEndian.AppendUint16(nil, from.Port()))
	tuple := attribute(attribute(nil, ctTupleIP|nested, ips), ctTupleProto|nested, ports)
	b = attribute(b, ctTupleBack|nested, tuple)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

// attribute appends an attribute, padded.
func attribute(b []byte, typ uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attributeHeader+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

var errNotAFlow = errors.New("netlink: not the answer of conntrack that was expected")

// flowDst reads the answer to flowQuery: where the flow's first packet was sent.
func flowDst(m []byte) (netip.AddrPort, error) {
	var none netip.AddrPort
	if len(m) < unix.NLMSG_HDRLEN+netfilterHeader {
		return none, errNotAFlow
	}
	switch binary.NativeEndian.Uint16(m[4:]) {
	case unix.NLMSG_ERROR:
		errno := unix.Errno(-int32(binary.NativeEndian.Uint32(m[unix.NLMSG_HDRLEN:])))
		if errno == unix.ENOENT {
			return none, ErrUntracked
		}
		return none, os.NewSyscallError("netlink", errno)
	case unix.NFNL_SUBSYS_CTNETLINK<<8 | ctMessageNew:
	default:
		return none, errNotAFlow
	}
	if n := binary.NativeEndian.Uint32(m); uint64(n) > uint64(len(m)) || n < unix.NLMSG_HDRLEN+netfilterHeader {
		return none, errNotAFlow
	} else {
		m = m[unix.NLMSG_HDRLEN+netfilterHeader : n]
	}
	tuple := child(m, ctTupleOriginal)
	ips := child(tuple, ctTupleIP)
	port := child(child(tuple, ctTupleProto), ctProtoDst)
	for _, is4 := range []bool{true, false} {
		_, dst := ctAddresses(is4)
		if a, ok := netip.AddrFromSlice(child(ips, dst)); ok && a.Is4() == is4 && len(port) == 2 {
			return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(port)), nil
		}
	}
	return none, errNotAFlow
}

// child is the value of an attribute among others; nil if there is none.
func child(list []byte, typ uint16) []byte {
	for len(list) >= attributeHeader {
		n := int(binary.NativeEndian.Uint16(list))
		if n < attributeHeader || n > len(list) {
			return nil
		}
		if binary.NativeEndian.Uint16(list[2:])&attributeType == typ {
			return list[attributeHeader:n]
		}
		list = list[min((n+3)&^3, len(list)):]
	}
	return nil
}
