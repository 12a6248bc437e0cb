package sockopt

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// MaxFiles is how many descriptors the process may have.
func MaxFiles() (uint64, error) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("sockopt: getrlimit: %w", err)
	}
	return l.Cur, nil
}
