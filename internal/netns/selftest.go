package netns

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// selfTestMark is any mark at all: the socket that gets it is never used.
const selfTestMark = 0x539

// SelfTest proves at start that the process may do what it will need: enter a
// namespace (its own) and mark a socket. The error names the capability that
// is missing.
func SelfTest() error {
	ns, err := Current()
	if err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	defer ns.Close()
	fd, err := ns.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	defer unix.Close(fd)
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, selfTestMark)
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("self-test: setsockopt SO_MARK: %w (CAP_NET_ADMIN is missing)", err)
	}
	if err != nil {
		return fmt.Errorf("self-test: %w", os.NewSyscallError("setsockopt SO_MARK", err))
	}
	return nil
}
