package sockopt_test

import (
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/proxy/sockopt"
)

// The two ends of a pair are one connection: what goes in at one comes out at the
// other, with its end.
func TestPair(t *testing.T) {
	near, far, err := sockopt.Pair()
	if err != nil {
		t.Fatal(err)
	}
	fd := near.Detach()
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("the near end blocks: flags %#x, %v", flags, err)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("the near end outlives an exec: flags %#x, %v", flags, err)
	}
	f := os.NewFile(uintptr(fd), "near")
	defer f.Close()
	if _, err := f.WriteString("down"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(far); string(b) != "down" || err != nil {
		t.Errorf("far got %q, %v", b, err)
	}
	if _, err := io.WriteString(far, "up"); err != nil {
		t.Fatal(err)
	}
	if err := far.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(f); string(b) != "up" || err != nil {
		t.Errorf("near got %q, %v", b, err)
	}
}
