package netns_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
)

// strayThreads lists threads of this process that are not at home.
func strayThreads(home netns.ID) (stray []string) {
	paths, _ := filepath.Glob("/proc/self/task/[0-9]*/ns/net")
	for _, path := range paths {
		ns, err := netns.Open(path)
		if err != nil {
			continue // the thread ended meanwhile
		}
		if ns.ID() != home {
			stray = append(stray, path)
		}
		ns.Close()
	}
	return stray
}

// waitThreadsAtHome waits for discarded threads to end.
func waitThreadsAtHome(t *testing.T, home netns.ID) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; runtime.Gosched() {
		stray := strayThreads(home)
		if len(stray) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("threads left in another namespace: %v", stray)
		}
	}
}

// A failed way back must end the thread: were it to go back to the pool, any
// goroutine might find itself in the pod's namespace.
func TestNoWayBack(t *testing.T) {
	nstest.LeakCheck(t)
	ns, _ := nstest.NewNS(t, "x")
	home := current(t)
	broken := errors.New("injected")
	var tids []int

	for range 20 {
		entered := false
		setns := func(fd int) error {
			if entered {
				return broken
			}
			entered = true
			return netns.Setns(fd)
		}
		want := errors.New("from the function")
		fnErr, nsErr := ns.DoWith(setns, func() error {
			tids = append(tids, unix.Gettid())
			if in := current(t); in != ns.ID() {
				return fmt.Errorf("ran in %s", in)
			}
			return want
		})
		if fnErr != want || !errors.Is(nsErr, broken) {
			t.Fatalf("errors %v and %v; want %v and %v", fnErr, nsErr, want, broken)
		}
	}
	waitThreadsAtHome(t, home)
	for _, tid := range tids {
		if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", tid)); err == nil {
			t.Errorf("thread %d lives on", tid)
		}
	}
	// Whatever thread a goroutine gets now, it is at home.
	start := make(chan struct{})
	ids := make(chan netns.ID)
	for range 10 {
		go func() {
			runtime.LockOSThread() // so that each needs a thread of its own
			defer runtime.UnlockOSThread()
			<-start
			ids <- current(t)
		}()
	}
	close(start)
	for range 10 {
		if id := <-ids; id != home {
			t.Errorf("a goroutine was in %s, home is %s", id, home)
		}
	}
}

// The socket is made when the way back fails, and must not stay.
func TestNoWayBackForASocket(t *testing.T) {
	nstest.LeakCheck(t)
	ns, _ := nstest.NewNS(t, "x")
	broken, entered := errors.New("injected"), false
	fd, err := ns.SocketWith(func(fd int) error {
		if entered {
			return broken
		}
		entered = true
		return netns.Setns(fd)
	}, unix.AF_INET, unix.SOCK_STREAM, 0)
	if fd != -1 || !errors.Is(err, broken) {
		t.Errorf("Socket = %d, %v; want no socket and %v", fd, err, broken)
	}
}

func TestNoWayIn(t *testing.T) {
	nstest.LeakCheck(t)
	ns, _ := nstest.NewNS(t, "x")
	broken := errors.New("injected")
	ran := false
	fnErr, nsErr := ns.DoWith(func(int) error { return broken }, func() error { ran = true; return nil })
	if ran || fnErr != nil || !errors.Is(nsErr, broken) {
		t.Errorf("ran %v, errors %v and %v; want only %v", ran, fnErr, nsErr, broken)
	}
	if stray := strayThreads(current(t)); len(stray) > 0 {
		t.Errorf("threads left in another namespace: %v", stray)
	}
}

// One thread must be enough for any number of sockets.
func TestThreadsDoNotGrowWithSockets(t *testing.T) {
	nstest.LeakCheck(t)
	ns, _ := nstest.NewNS(t, "x")
	before := nstest.Threads()
	for range 100 {
		fd, err := ns.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
	}
	if after := nstest.Threads(); after > before+5 {
		t.Errorf("%d threads before 100 sockets, %d after", before, after)
	}
}

func BenchmarkSocket(b *testing.B) {
	ns, _ := nstest.NewNS(b, "x")
	for b.Loop() {
		fd, err := ns.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			b.Fatal(err)
		}
		unix.Close(fd)
	}
}

func BenchmarkPlainSocket(b *testing.B) {
	for b.Loop() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			b.Fatal(err)
		}
		unix.Close(fd)
	}
}
