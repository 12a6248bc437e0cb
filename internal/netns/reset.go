package netns

import (
	"errors"
	"syscall"
)

// IsReset says whether a connection failed because the other end reset it, which may
// come as early as in connect: whoever resets was there.
func IsReset(err error) bool { return errors.Is(err, syscall.ECONNRESET) }
