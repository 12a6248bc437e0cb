package proxyproto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"unicode/utf8"
)

// TypeIdentity is the TLV that carries the SPIFFE ID of the client, as text; of
// the types that applications may use for themselves (0xE0 to 0xEF are for
// experiments, 0xD0 is what Istio's waypoints read).
const TypeIdentity = 0xD0

// Header says whose connection it is.
type Header struct {
	Src, Dst netip.AddrPort // of one family, unmapped; both invalid: not said
	Identity string         // of the client; empty: none
}

const (
	signature = "\r\n\r\n\x00\r\nQUIT\n"
	fixedLen  = len(signature) + 4

	commandLocal = 0x20 // version 2; the connection is the proxy's own
	commandProxy = 0x21

	unspecified = 0x00
	tcp4        = 0x11
	tcp6        = 0x21
	stream      = 0x01 // the transport, in the lower half

	tlvHeader = 3
	// MaxIdentity is the longest SPIFFE ID (SPIFFE-ID §2.3).
	MaxIdentity = 2048
)

// Append adds the header to b. Addresses of two families are written as those of
// IPv6, the one of IPv4 in its mapped form. An identity longer than MaxIdentity
// is not one, and left out.
func (h Header) Append(b []byte) []byte {
	b = append(append(b, signature...), commandProxy, 0, 0, 0)
	at := len(b)
	src, dst := h.Src.Addr().Unmap(), h.Dst.Addr().Unmap()
	family := byte(unspecified)
	switch {
	case !src.IsValid() || !dst.IsValid():
	case src.Is4() && dst.Is4():
		family = tcp4
		s, d := src.As4(), dst.As4()
		b = append(append(b, s[:]...), d[:]...)
	default:
		family = tcp6
		s, d := src.As16(), dst.As16()
		b = append(append(b, s[:]...), d[:]...)
	}
	if family != unspecified {
		b = binary.BigEndian.AppendUint16(b, h.Src.Port())
		b = binary.BigEndian.AppendUint16(b, h.Dst.Port())
	}
	if h.Identity != "" && len(h.Identity) <= MaxIdentity {
		b = append(b, TypeIdentity)
		b = binary.BigEndian.AppendUint16(b, uint16(len(h.Identity)))
		b = append(b, h.Identity...)
	}
	b[at-3] = family
	binary.BigEndian.PutUint16(b[at-2:], uint16(len(b)-at))
	return b
}

// ErrShort says that the header goes on behind the bytes that there are.
var ErrShort = errors.New("proxyproto: header is not complete")

// Parse reads the header at the beginning of b and says how long it is. Unknown
// TLVs are skipped. A header by which the proxy speaks for itself (LOCAL), or of
// another transport than TCP, has no addresses.
func Parse(b []byte) (h Header, n int, err error) {
	if m := min(len(b), len(signature)); string(b[:m]) != signature[:m] {
		return Header{}, 0, errors.New("proxyproto: no header of version 2")
	}
	if len(b) < fixedLen {
		return Header{}, 0, ErrShort
	}
	command, family := b[len(signature)], b[len(signature)+1]
	if command != commandProxy && command != commandLocal {
		return Header{}, 0, fmt.Errorf("proxyproto: version and command %#x", command)
	}
	n = fixedLen + int(binary.BigEndian.Uint16(b[fixedLen-2:]))
	if len(b) < n {
		return Header{}, 0, ErrShort
	}
	rest, err := h.readAddresses(b[fixedLen:n], family)
	if err == nil {
		err = h.readTLVs(rest)
	}
	if err != nil {
		return Header{}, 0, err
	}
	if command == commandLocal {
		h = Header{}
	}
	return h, n, nil
}

// readAddresses takes the addresses from the beginning of b and returns the rest.
func (h *Header) readAddresses(b []byte, family byte) ([]byte, error) {
	size := 0
	switch family >> 4 {
	case unspecified:
	case tcp4 >> 4:
		size = 4
	case tcp6 >> 4:
		size = 16
	case 3: // Unix sockets: 108 bytes each
		if len(b) < 2*108 {
			return nil, errors.New("proxyproto: addresses are cut off")
		}
		return b[2*108:], nil
	default:
		return nil, fmt.Errorf("proxyproto: address family %#x", family)
	}
	if size == 0 {
		return b, nil
	}
	if len(b) < 2*size+4 {
		return nil, errors.New("proxyproto: addresses are cut off")
	}
	src, _ := netip.AddrFromSlice(b[:size])
	dst, _ := netip.AddrFromSlice(b[size : 2*size])
	ports := b[2*size:]
	if family&0xf == stream {
		h.Src = netip.AddrPortFrom(src.Unmap(), binary.BigEndian.Uint16(ports))
		h.Dst = netip.AddrPortFrom(dst.Unmap(), binary.BigEndian.Uint16(ports[2:]))
	}
	return ports[4:], nil
}

func (h *Header) readTLVs(b []byte) error {
	for len(b) > 0 {
		if len(b) < tlvHeader {
			return errors.New("proxyproto: a TLV is cut off")
		}
		size := int(binary.BigEndian.Uint16(b[1:]))
		if len(b) < tlvHeader+size {
			return errors.New("proxyproto: a TLV is cut off")
		}
		value := b[tlvHeader : tlvHeader+size]
		if b[0] == TypeIdentity {
			if h.Identity != "" || len(value) > MaxIdentity || !utf8.Valid(value) {
				return errors.New("proxyproto: the identity is not one")
			}
			h.Identity = string(value)
		}
		b = b[tlvHeader+size:]
	}
	return nil
}
