package sockopt_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/warren-mesh/warren/proxy/sockopt"
)

func TestFaultOf(t *testing.T) {
	for errno, want := range map[syscall.Errno]sockopt.Fault{
		syscall.ECONNREFUSED: sockopt.FaultRefused, syscall.ECONNRESET: sockopt.FaultRefused,
		syscall.EHOSTUNREACH: sockopt.FaultUnreachable, syscall.ENETUNREACH: sockopt.FaultUnreachable,
		syscall.EMFILE: sockopt.NoFault, syscall.EADDRNOTAVAIL: sockopt.NoFault, syscall.EPERM: sockopt.NoFault,
	} {
		err := fmt.Errorf("sockopt: %w", &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", errno)})
		if got := sockopt.FaultOf(err); got != want {
			t.Errorf("%v: %q, want %q", errno, got, want)
		}
	}
	for _, err := range []error{nil, errors.New("other"), os.ErrDeadlineExceeded} {
		if got := sockopt.FaultOf(err); got != sockopt.NoFault {
			t.Errorf("%v: %q, want none", err, got)
		}
	}
}
