package sockopt

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Fault is what the error of a dial says of the peer, in a word for metrics.
type Fault string

// Faults. An error about this machine, its ports or its descriptors is none.
const (
	NoFault          Fault = ""
	FaultRefused     Fault = "refused"     // nobody listens, or who did closed at once
	FaultUnreachable Fault = "unreachable" // the network says that nobody is there
)

// FaultOf finds the fault in an error. Whether a dial took too long is for its
// caller to say, whose limit it was.
func FaultOf(err error) Fault {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return NoFault
	}
	switch errno {
	case unix.ECONNREFUSED, unix.ECONNRESET, unix.EPIPE:
		return FaultRefused
	case unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.ENETDOWN:
		return FaultUnreachable
	}
	return NoFault
}
