package relay_test

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestUrgentData: reads stop at its mark, and splices do not pass it. What follows
// arrives all the same, also if nothing comes after it, or only the end.
func TestUrgentData(t *testing.T) {
	sizes := []int{3, 20 << 10, 300 << 10}
	for _, ended := range []bool{false, true} {
		for name, join := range kinds {
			t.Run(fmt.Sprintf("%s, ended=%v", name, ended), func(t *testing.T) {
				for _, size := range sizes {
					sayUrgently(t, join(t), size, ended)
				}
			})
		}
	}
}

// sayUrgently sends size bytes, an urgent one and three more, all at once.
func sayUrgently(t *testing.T, j *joined, size int, ended bool) {
	t.Helper()
	raw, err := j.app.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	write(t, j.app, strings.Repeat("a", size))
	if cerr := raw.Control(func(fd uintptr) { err = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	write(t, j.app, "end")
	if ended {
		_ = j.app.CloseWrite()
	}
	_ = j.backend.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := io.ReadFull(j.backend, make([]byte, size+3)); err != nil {
		t.Errorf("%d of %d bytes: %v", n, size+3, err)
	}
}
