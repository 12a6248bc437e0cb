package sockopt

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// Reason is why a connection could not be made, as far as others are told.
type Reason int

// Reasons. Other is any that has no word of its own.
const (
	Other Reason = iota
	Refused
	TimedOut
	HostUnreachable
	NetworkUnreachable
)

// ReasonOf sorts an error of Dial or Connect, or one that wraps it.
func ReasonOf(err error) Reason {
	var ne net.Error
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return Refused
	case errors.Is(err, unix.EHOSTUNREACH):
		return HostUnreachable
	case errors.Is(err, unix.ENETUNREACH):
		return NetworkUnreachable
	case errors.As(err, &ne) && ne.Timeout():
		return TimedOut
	}
	return Other
}
