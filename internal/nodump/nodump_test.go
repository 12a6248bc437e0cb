package nodump_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nodump"
)

// In a process of its own: the setting is the process's.
func TestSet(t *testing.T) {
	if os.Getenv("NODUMP_CHILD") != "" {
		if err := nodump.Set(); err != nil {
			t.Fatal(err)
		}
		if got, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || got != 0 {
			t.Fatalf("dumpable is %d, %v", got, err)
		}
		// What the proxy needs of its own /proc is still there.
		ns, err := netns.Open("/proc/self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		ns.Close()
		if _, err := os.ReadDir("/proc/self/fd"); err != nil {
			t.Fatal(err)
		}
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestSet$", "-test.v")
	cmd.Env = append(os.Environ(), "NODUMP_CHILD=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "PASS") {
		t.Errorf("%v\n%s", err, out)
	}
}
