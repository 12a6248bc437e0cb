package netns_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func current(t *testing.T) netns.ID {
	t.Helper()
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	return ns.ID()
}

func TestIdentity(t *testing.T) {
	nstest.LeakCheck(t)
	a, path := nstest.NewNS(t, "a")
	b, _ := nstest.NewNS(t, "b")
	again, err := netns.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	dup, err := a.Dup()
	if err != nil {
		t.Fatal(err)
	}
	defer dup.Close()
	for name, ns := range map[string]*netns.NS{"Open": again, "Dup": dup} {
		if flags, err := unix.FcntlInt(ns.File().Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("%s: flags %#x, %v: children would inherit the namespace", name, flags, err)
		}
	}
	if a.ID() != again.ID() || a.ID() != dup.ID() {
		t.Errorf("one namespace, three identities: %s, %s, %s", a.ID(), again.ID(), dup.ID())
	}
	if a.ID() == b.ID() || a.ID() == current(t) || a.ID().IsZero() {
		t.Errorf("identities do not tell namespaces apart: %s, %s, home %s", a.ID(), b.ID(), current(t))
	}
	if !(netns.ID{}).IsZero() || (netns.ID{Dev: 4, Ino: 4026531840}).String() != "4:4026531840" {
		t.Error("the zero ID or String is wrong")
	}
}

func TestOpenRefuses(t *testing.T) {
	nstest.LeakCheck(t)
	dir := t.TempDir()
	fifo, plain := filepath.Join(dir, "fifo"), filepath.Join(dir, "plain")
	if err := errors.Join(unix.Mkfifo(fifo, 0o600), os.WriteFile(plain, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, path string
		want       error
	}{
		{"missing", filepath.Join(dir, "none"), os.ErrNotExist},
		{"plain file", plain, netns.ErrNotNetNS},
		{"a FIFO that nobody writes to", fifo, netns.ErrNotNetNS},
		{"directory", dir, netns.ErrNotNetNS},
		{"mount namespace", "/proc/self/ns/mnt", netns.ErrNotNetNS},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ns, err := netns.Open(tt.path)
			if ns != nil || !errors.Is(err, tt.want) {
				t.Errorf("Open = %v, %v; want %v", ns, err, tt.want)
			}
			if err != nil && !strings.Contains(err.Error(), tt.path) {
				t.Errorf("%q does not name %s", err, tt.path)
			}
		})
	}
}

func TestFromFileOwnsTheFile(t *testing.T) {
	f, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := netns.FromFile(f); !errors.Is(err, netns.ErrNotNetNS) {
		t.Errorf("error %v, want %v", err, netns.ErrNotNetNS)
	}
	if err := f.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("refused file was left open (Close: %v)", err)
	}
	if _, err := netns.FromFile(nil); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("FromFile(nil): %v", err)
	}
	fd, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY, 0) // as received: inheritable
	if err != nil {
		t.Fatal(err)
	}
	ns, err := netns.FromFile(os.NewFile(uintptr(fd), "received"))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if flags, err := unix.FcntlInt(ns.File().Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %#x, %v: children would inherit the namespace", flags, err)
	}
}

func TestClosed(t *testing.T) {
	nstest.Require(t)
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(ns.Close(), ns.Close()); err != nil {
		t.Errorf("Close twice: %v", err)
	}
	ran := false
	if err := ns.Do(func() error { ran = true; return nil }); !errors.Is(err, os.ErrClosed) || ran {
		t.Errorf("Do after Close: %v, ran %v", err, ran)
	}
	if _, err := ns.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Socket after Close: %v", err)
	}
	if _, err := ns.Dup(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Dup after Close: %v", err)
	}
	if _, err := ns.Reopen(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Reopen after Close: %v", err)
	}
}

func TestDo(t *testing.T) {
	nstest.LeakCheck(t)
	ns, _ := nstest.NewNS(t, "x")
	home := current(t)

	t.Run("runs inside and comes back", func(t *testing.T) {
		for range 100 {
			var inside, nested, child netns.ID
			err := ns.Do(func() error {
				inside = current(t)
				if err := ns.Do(func() error { nested = current(t); return nil }); err != nil {
					return err
				}
				done := make(chan struct{})
				go func() { defer close(done); child = current(t) }()
				<-done
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if inside != ns.ID() || nested != ns.ID() {
				t.Fatalf("ran in %s, nested in %s; want %s", inside, nested, ns.ID())
			}
			if child != home || current(t) != home {
				t.Fatalf("started goroutine in %s, afterwards in %s; want home %s", child, current(t), home)
			}
		}
	})
	t.Run("returns the function's error as it is", func(t *testing.T) {
		want := errors.New("x")
		if err := ns.Do(func() error { return want }); err != want {
			t.Errorf("error %v, want %v itself", err, want)
		}
	})
	t.Run("never on the main thread", func(t *testing.T) {
		for range 200 {
			err := ns.Do(func() error {
				if unix.Gettid() == os.Getpid() {
					return errors.New("the main thread entered the namespace")
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("a child process stays inside", func(t *testing.T) {
		var out strings.Builder
		cmd := exec.Command("readlink", "/proc/self/ns/net")
		cmd.Stdout = &out
		if err := errors.Join(ns.Do(cmd.Start), cmd.Wait()); err != nil {
			t.Fatal(err)
		}
		if id := ns.ID().String(); !strings.HasSuffix(id, strings.Trim(out.String(), "net:[]\n")) {
			t.Errorf("child was in %s, want %s", out.String(), id)
		}
	})
	t.Run("a function that never returns", func(t *testing.T) {
		err := ns.Do(func() error { (&testing.T{}).SkipNow(); return nil })
		if err == nil || !strings.Contains(err.Error(), "thread was discarded") {
			t.Errorf("error %v", err)
		}
		waitThreadsAtHome(t, home)
	})
}

func TestSocketIsMadeInside(t *testing.T) {
	nstest.LeakCheck(t)
	ns, _ := nstest.NewNS(t, "x")
	fd, err := ns.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	nsfd, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
	if err != nil {
		t.Fatal(err)
	}
	of, err := netns.FromFile(os.NewFile(uintptr(nsfd), "the socket's"))
	if err != nil {
		t.Fatal(err)
	}
	defer of.Close()
	if of.ID() != ns.ID() {
		t.Errorf("socket is in %s, want %s", of.ID(), ns.ID())
	}
	for _, want := range []struct{ cmd, flag int }{{unix.F_GETFD, unix.FD_CLOEXEC}, {unix.F_GETFL, unix.O_NONBLOCK}} {
		if flags, err := unix.FcntlInt(uintptr(fd), want.cmd, 0); err != nil || flags&want.flag == 0 {
			t.Errorf("fcntl %d: %#x, %v; want bit %#x", want.cmd, flags, err, want.flag)
		}
	}
	if _, err := ns.Socket(-1, 0, 0); !errors.Is(err, unix.EAFNOSUPPORT) {
		t.Errorf("impossible socket: %v", err)
	}
}

func TestReopenLocksForItself(t *testing.T) {
	nstest.LeakCheck(t)
	ns, _ := nstest.NewNS(t, "x")
	a, err1 := ns.Reopen()
	b, err2 := ns.Reopen()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	if a.ID() != ns.ID() {
		t.Errorf("reopened %s, want %s", a.ID(), ns.ID())
	}
	lock := func(ns *netns.NS) error { return unix.Flock(int(ns.File().Fd()), unix.LOCK_EX|unix.LOCK_NB) }
	if err := lock(a); err != nil {
		t.Fatal(err)
	}
	if err := lock(b); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("second lock: %v, want %v", err, unix.EWOULDBLOCK)
	}
	a.Close()
	if err := lock(b); err != nil {
		t.Errorf("lock after the first holder closed: %v", err)
	}
}

func TestSelfTest(t *testing.T) {
	nstest.Require(t)
	if err := netns.SelfTest(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ drop, want string }{
		{"-sys_admin", "CAP_SYS_ADMIN is missing"},
		{"-net_admin,-net_raw", "CAP_NET_ADMIN is missing"}, // either lets a socket be marked
	} {
		t.Run("without "+tt.drop, func(t *testing.T) {
			cmd := exec.Command("setpriv", "--bounding-set", tt.drop, os.Args[0], "-test.run=^TestSelfTestHelper$", "-test.v")
			cmd.Env = append(os.Environ(), helperEnv+"=1")
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), tt.want) {
				t.Errorf("self-test said %s (%v), want %q in it", out, err, tt.want)
			}
		})
	}
}

const helperEnv = "WARREN_NETNS_HELPER"

// TestSelfTestHelper is a process of TestSelfTest's that has fewer capabilities.
func TestSelfTestHelper(t *testing.T) {
	if os.Getenv(helperEnv) == "" {
		t.SkipNow()
	}
	t.Log(netns.SelfTest())
}

// The namespace goes while its file is open elsewhere: sockets in it live on.
func TestListenerOutlivesEntry(t *testing.T) {
	nstest.LeakCheck(t)
	ns, _ := nstest.NewNS(t, "x")
	var l net.Listener
	err := ns.Do(func() (err error) { l, err = net.Listen("tcp", "127.0.0.1:0"); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan error, 1)
	go func() {
		c, err := l.Accept() // on an ordinary thread
		if err == nil {
			err = c.Close()
		}
		accepted <- err
	}()
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("the listener can be reached from home")
	}
	err = ns.Do(func() error {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return err
		}
		return c.Close()
	})
	if err := errors.Join(err, <-accepted); err != nil {
		t.Error(err)
	}
}
