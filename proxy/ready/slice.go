package ready

import (
	"time"

	"golang.org/x/sys/unix"
)

// slice is how long a loop's thread wants to run at a time.
const slice = 100 * time.Microsecond

// askShortSlice has the calling thread run soon when it wakes: among threads that
// all have work the kernel (from Linux 6.12 on; others ignore it) prefers who asks
// for little at a time. A loop does little for each of many who wait for it, and
// bulk, which is in no hurry, would be before it for milliseconds. It needs no
// privilege, and where it is refused things are as they were.
func askShortSlice() {
	a, err := unix.SchedGetAttr(0, 0)
	if err != nil || a.Policy != unix.SCHED_NORMAL {
		return // somebody has chosen another way
	}
	a.Runtime = uint64(slice)
	_ = unix.SchedSetAttr(0, a, 0)
}
