package podns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"

	"github.com/warren-mesh/warren/internal/netns"
)

// The kernel's numbers, of linux/netlink.h, sock_diag.h and inet_diag.h.
const (
	netlinkInetDiag  = 4
	sockDiagByFamily = 20
	sockDestroy      = 21
	flagDump         = 0x300
	flagAck          = 0x4
	afInet, afInet6  = 2, 10
	protoTCP         = 6
	sizeofRequest    = 56 // struct inet_diag_req_v2
	sizeofMessage    = 72 // struct inet_diag_msg
	attrMark         = 15

	anyStateBits = ^uint32(0)
)

// The states that are asked for, as bits.
const (
	listen uint32 = 1 << netlink.TCP_LISTEN
	// underWay is begun and not ended. What is still being opened is not: the next
	// attempt may be redirected.
	underWay uint32 = 1<<netlink.TCP_ESTABLISHED | 1<<netlink.TCP_FIN_WAIT1 | 1<<netlink.TCP_FIN_WAIT2 |
		1<<netlink.TCP_CLOSE_WAIT | 1<<netlink.TCP_LAST_ACK | 1<<netlink.TCP_CLOSING
)

// socket is what the kernel says of one.
type socket struct {
	v6            bool
	cookie        uint64
	local, remote netip.AddrPort
	mark          uint32
}

// diag asks a namespace's kernel about TCP sockets.
type diag struct {
	s  *nl.NetlinkSocket
	id netns.ID
}

func openDiag(ns *netns.NS) (*diag, error) {
	d := &diag{id: ns.ID()}
	err := ns.Do(func() (err error) { // Subscribe opens where it is called
		d.s, err = nl.Subscribe(netlinkInetDiag)
		return err
	})
	if err == nil {
		err = d.s.SetReceiveTimeout(&nl.SocketTimeoutTv)
	}
	if err != nil {
		d.close()
		return nil, fmt.Errorf("podns: sock_diag of %s: %w", ns.ID(), err)
	}
	return d, nil
}

func (d *diag) close() {
	if d.s != nil {
		d.s.Close()
	}
}

// request is struct inet_diag_req_v2.
type request [sizeofRequest]byte

func (r *request) Len() int          { return len(r) }
func (r *request) Serialize() []byte { return r[:] }

func newRequest(family byte, states uint32) *request {
	r := &request{0: family, 1: protoTCP}
	binary.NativeEndian.PutUint32(r[4:], states)
	return r
}

func (d *diag) request(kind, flags int, data *request) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags)
	req.Sockets = map[int]*nl.SocketHandle{netlinkInetDiag: {Socket: d.s}}
	req.AddData(data)
	return req
}

// dump hands fn the sockets in the states, of both families, until it returns false.
func (d *diag) dump(states uint32, fn func(socket) bool) error {
	for _, family := range []byte{afInet, afInet6} {
		more := true
		err := d.request(sockDiagByFamily, flagDump, newRequest(family, states)).
			ExecuteIter(netlinkInetDiag, 0, func(msg []byte) bool {
				if s, ok := readSocket(msg); ok && more {
					more = fn(s)
				}
				return more
			})
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("podns: list the sockets of %s: %w", d.id, err)
		}
	}
	return nil
}

// readSocket reads struct inet_diag_msg and the attributes after it.
func readSocket(msg []byte) (s socket, ok bool) {
	if len(msg) < sizeofMessage {
		return s, false
	}
	s.v6 = msg[0] == afInet6
	s.local = addrPort(s.v6, msg[8:24], msg[4:6])
	s.remote = addrPort(s.v6, msg[24:40], msg[6:8])
	s.cookie = binary.NativeEndian.Uint64(msg[44:])
	s.mark = readMark(msg[sizeofMessage:])
	return s, true
}

// readMark finds the mark among attributes (struct rtattr, each padded to four
// bytes). The library's reader does not bound the padding of the last one.
func readMark(attrs []byte) (mark uint32) {
	const header = 4
	for len(attrs) >= header {
		size := int(binary.NativeEndian.Uint16(attrs))
		if size < header || size > len(attrs) {
			break
		}
		if binary.NativeEndian.Uint16(attrs[2:]) == attrMark && size == header+4 {
			mark = binary.NativeEndian.Uint32(attrs[header:])
		}
		attrs = attrs[min((size+3)&^3, len(attrs)):]
	}
	return mark
}

func addrPort(v6 bool, addr, port []byte) netip.AddrPort {
	if !v6 {
		addr = addr[:4]
	}
	a, _ := netip.AddrFromSlice(addr)
	return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(port))
}

// destroy ends this connection and no other of the same addresses.
func (d *diag) destroy(c Conn) error {
	family := byte(afInet)
	if c.V6 {
		family = afInet6
	}
	r := newRequest(family, anyStateBits)
	binary.BigEndian.PutUint16(r[8:], c.Local.Port())
	binary.BigEndian.PutUint16(r[10:], c.Remote.Port())
	putAddr(r[12:28], c.V6, c.Local.Addr())
	putAddr(r[28:44], c.V6, c.Remote.Addr())
	binary.NativeEndian.PutUint64(r[48:], c.Cookie)
	_, err := d.request(sockDestroy, flagAck, r).Execute(netlinkInetDiag, 0)
	if errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("%w (%w)", ErrCannotEnd, err)
	}
	return err
}

// putAddr writes an address as a socket of that family has it.
func putAddr(to []byte, v6 bool, a netip.Addr) {
	if v6 {
		b := a.As16() // maps IPv4
		copy(to, b[:])
		return
	}
	copy(to, a.AsSlice())
}
