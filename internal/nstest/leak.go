package nstest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sort"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
)

const (
	settle = 3 * time.Second // how long what was let go may take to be gone
	poll   = 5 * time.Millisecond
	// threadSlack is how many threads the runtime may add by itself (garbage
	// collection, blocking system calls); they are kept, so their number says
	// something only when it is large.
	threadSlack = 16
	// maxGarbage is how much memory a checked test may use before garbage is
	// collected after all.
	maxGarbage = 256 << 20
)

// LeakCheck fails the test if, when it ends, there are open files, goroutines
// or (beyond the runtime's own) threads that were not there now. It is the
// first line of a test, so that its check is the last. It looks at the whole
// process: not for parallel tests.
func LeakCheck(t testing.TB) {
	t.Helper()
	leakCheck(t, settle)
}

func leakCheck(t testing.TB, settle time.Duration) {
	t.Helper()
	warmUp()
	fds, threads, current := openFiles(), Threads(), goleak.IgnoreCurrent()
	// A collection closes files that nobody holds any more, and hides the leak.
	percent := debug.SetGCPercent(-1)
	limit := debug.SetMemoryLimit(maxGarbage)
	t.Cleanup(func() {
		defer func() { debug.SetMemoryLimit(limit); debug.SetGCPercent(percent) }()
		if err := goleak.Find(current); err != nil {
			t.Errorf("nstest: goroutines left: %v", err)
		}
		var left []string
		if !until(settle, func() bool { left = added(fds, openFiles()); return len(left) == 0 }) {
			t.Errorf("nstest: open files left: %v", left)
		}
		if n := Threads(); n > threads+threadSlack {
			t.Errorf("nstest: %d threads, %d at the start", n, threads)
		}
	})
}

// Threads counts the process's operating system threads.
func Threads() int {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return 0
	}
	return len(tasks)
}

// warmUp makes the runtime and netns open what they keep for ever.
func warmUp() {
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close()
	}
	if ns, err := netns.Current(); err == nil {
		_ = ns.Do(func() error { return nil }) // whether it may enter is not the question
		ns.Close()
	}
}

// openFiles maps descriptors to what they are, those of /proc/self/fd's own
// listing aside.
func openFiles() map[string]string {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	files := make(map[string]string, len(names))
	for _, n := range names {
		if link, err := os.Readlink("/proc/self/fd/" + n.Name()); err == nil {
			files[n.Name()] = link
		}
	}
	return files
}

func added(before, after map[string]string) (left []string) {
	for fd, link := range after {
		if before[fd] != link {
			left = append(left, fd+" "+link)
		}
	}
	sort.Strings(left)
	return left
}

// until waits for a condition that nothing announces, at most so long.
func until(settle time.Duration, ok func() bool) bool {
	for deadline := time.Now().Add(settle); ; time.Sleep(poll) {
		if ok() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// waitGone waits until nothing holds the namespace, and returns what still does.
func waitGone(id netns.ID, settle time.Duration) (holders []string) {
	until(settle, func() bool { holders = holding(id); return len(holders) == 0 })
	return holders
}

// holding lists what keeps a namespace alive: processes and our own threads in
// it, our open files and sockets, and mounts.
func holding(id netns.ID) (holders []string) {
	procs, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	threads, _ := filepath.Glob("/proc/self/task/[0-9]*/ns/net")
	for _, path := range append(procs, threads...) {
		if fileID(path) == id {
			holders = append(holders, strings.TrimSuffix(path, "/ns/net"))
		}
	}
	for fd, link := range openFiles() {
		if fileID("/proc/self/fd/"+fd) == id || socketID(fd, link) == id {
			holders = append(holders, "open file "+fd+" "+link)
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), fmt.Sprintf(" net:[%d] ", id.Ino)) {
		holders = append(holders, "a mount")
	}
	return holders
}

func fileID(path string) netns.ID {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return netns.ID{}
	}
	return netns.ID{Dev: st.Dev, Ino: st.Ino}
}

// socketID returns the namespace of an open socket.
func socketID(fd, link string) (id netns.ID) {
	var n int
	if _, err := fmt.Sscan(fd, &n); err != nil || !strings.HasPrefix(link, "socket:") {
		return netns.ID{}
	}
	nsfd, err := unix.IoctlRetInt(n, unix.SIOCGSKNS)
	if err != nil {
		return netns.ID{}
	}
	ns, err := netns.FromFile(os.NewFile(uintptr(nsfd), link))
	if err != nil {
		return netns.ID{}
	}
	defer ns.Close()
	return ns.ID()
}
