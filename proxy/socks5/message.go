package socks5

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

const (
	version      = 5
	noAuth       = 0
	noneAccepted = 0xff
	connect      = 1

	typeIPv4, typeName, typeIPv6 = 1, 3, 4
)

// Code is an answer to a request.
type Code byte

// Codes.
const (
	Succeeded Code = iota
	GeneralFailure
	NotAllowed
	NetworkUnreachable
	HostUnreachable
	Refused
	Expired
	CommandNotSupported
	AddressNotSupported
)

func (c Code) String() string {
	names := [...]string{
		"succeeded", "general failure", "not allowed", "network unreachable", "host unreachable", "connection refused", "expired",
		"command not supported", "address type not supported",
	}
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("code %d", byte(c))
}

// Error is a request that cannot be served, and what the client is to be told.
type Error struct {
	Code Code
	Why  string
}

func (e *Error) Error() string { return "socks5: " + e.Why }

// Request is where a client wants to be connected to: an address, or else a name.
type Request struct {
	Name string
	Addr netip.Addr
	Port uint16
}

func (r Request) String() string {
	if r.Addr.IsValid() {
		return netip.AddrPortFrom(r.Addr, r.Port).String()
	}
	return fmt.Sprintf("%s:%d", r.Name, r.Port)
}

// errVersion is of a client that speaks something else.
var errVersion = errors.New("socks5: not a client of SOCKS 5")

// errMethod is of a client that insists on authentication.
var errMethod = errors.New("socks5: the client offers no access without authentication")

// greetingSize is how long a greeting is that begins with b, as far as b tells.
func greetingSize(b []byte) int {
	if len(b) < 2 || b[0] != version {
		return 2
	}
	return 2 + int(b[1])
}

// parseGreeting says whether the client is one for us.
func parseGreeting(b []byte) error {
	if len(b) < 2 || b[0] != version || len(b) != 2+int(b[1]) {
		return errVersion
	}
	for _, m := range b[2:] {
		if m == noAuth {
			return nil
		}
	}
	return errMethod
}

// The parts of a request before its address, and after it.
const (
	requestHead = 4
	portSize    = 2
)

// requestSize is how long a request is that begins with b, as far as b tells.
func requestSize(b []byte) int {
	if len(b) <= requestHead || b[0] != version {
		return requestHead + 1
	}
	switch b[3] {
	case typeIPv4:
		return requestHead + 4 + portSize
	case typeIPv6:
		return requestHead + 16 + portSize
	case typeName:
		return requestHead + 1 + int(b[requestHead]) + portSize
	}
	return requestHead + 1
}

// parseRequest reads a whole request. What is wrong with it is an *Error, but for
// errVersion.
func parseRequest(b []byte) (r Request, err error) {
	switch {
	case len(b) <= requestHead || b[0] != version || len(b) != requestSize(b):
		return r, errVersion
	case b[1] != connect:
		return r, &Error{CommandNotSupported, fmt.Sprintf("command %d: only connections are made", b[1])}
	case b[3] != typeIPv4 && b[3] != typeName && b[3] != typeIPv6:
		return r, &Error{AddressNotSupported, fmt.Sprintf("address type %d is none", b[3])}
	}
	addr, port := b[requestHead:len(b)-portSize], b[len(b)-portSize:]
	r.Port = binary.BigEndian.Uint16(port)
	if b[3] == typeName {
		if err := r.name(string(addr[1:])); err != nil {
			return Request{}, err
		}
	} else {
		r.Addr, _ = netip.AddrFromSlice(addr)
		r.Addr = r.Addr.Unmap()
	}
	if r.Port == 0 {
		return Request{}, &Error{GeneralFailure, "port 0 is none"}
	}
	return r, nil
}

// name takes a name, or an address that is written out as one.
func (r *Request) name(text string) error {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		r.Addr = a.Unmap()
		return nil
	}
	for _, c := range []byte(text) {
		if c <= ' ' || c >= 0x7f {
			return &Error{HostUnreachable, fmt.Sprintf("%q is no name of a host", text)}
		}
	}
	if text == "" {
		return &Error{HostUnreachable, "the name is empty"}
	}
	r.Name = text
	return nil
}

// reply is the answer to a request; bound is the address that the connection was
// made from, or none.
func reply(c Code, bound netip.AddrPort) []byte {
	b := []byte{version, byte(c), 0}
	switch a := bound.Addr().Unmap(); {
	case a.Is6():
		b = append(append(b, typeIPv6), a.AsSlice()...)
	case a.Is4():
		b = append(append(b, typeIPv4), a.AsSlice()...)
	default:
		b = append(b, typeIPv4, 0, 0, 0, 0)
	}
	return binary.BigEndian.AppendUint16(b, bound.Port())
}
