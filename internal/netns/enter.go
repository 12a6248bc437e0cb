package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// errLeft is Do's error when fn ended its goroutine (runtime.Goexit, as
// testing's FailNow does) instead of returning.
var errLeft = errors.New("the function ended its goroutine instead of returning, so its thread was discarded")

// homeFD is the namespace that every entry returns to. It is opened once and
// never closed: opening it for each entry would cost as much as the entry.
var homeFD = sync.OnceValues(openHome)

// openHome opens on a goroutine of its own, whose thread is an ordinary one,
// because the caller's may be visiting another namespace.
func openHome() (fd int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		fd, err = unix.Open(threadPath, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}()
	<-done
	if err != nil {
		return -1, fmt.Errorf("netns: open the home namespace %s: %w", threadPath, err)
	}
	return fd, nil
}

// Do runs fn in the namespace, on a goroutine of its own that is locked to its
// thread, and waits for it. fn must only create something and return: while it
// runs it holds a thread, and a goroutine that it starts is in the home
// namespace, not in this one. A child process started in fn is in this one and
// need not be waited for there.
//
// The error is fn's, unless entering or coming back failed. If coming back
// failed the thread is discarded, and the error holds fn's as well.
func (n *NS) Do(fn func() error) error {
	home, err := homeFD()
	if err != nil {
		return err
	}
	return n.do(entry{setns: setns, home: home}, fn)
}

func (n *NS) do(e entry, fn func() error) error {
	var fnErr, nsErr error
	err := withFD(n.f, func(fd int) error {
		e.target = fd
		fnErr, nsErr = e.visit(fn)
		return nil
	})
	if err = errors.Join(err, nsErr); err != nil {
		return fmt.Errorf("netns: enter %s: %w", n.id, errors.Join(err, fnErr))
	}
	return fnErr
}

// Socket makes one socket in the namespace, with one entry, close-on-exec and
// non-blocking. The caller closes the descriptor. The arguments are socket(2)'s.
func (n *NS) Socket(domain, typ, proto int) (fd int, err error) {
	return n.socket(n.Do, domain, typ, proto)
}

func (n *NS) socket(do func(func() error) error, domain, typ, proto int) (fd int, err error) {
	fd = -1
	err = do(func() (err error) {
		fd, err = unix.Socket(domain, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
		if err != nil {
			return fmt.Errorf("netns: socket in %s: %w", n.id, err)
		}
		return nil
	})
	if err != nil && fd >= 0 { // made, but the way back failed
		unix.Close(fd)
		fd = -1
	}
	return fd, err
}

// setns is the system call. It needs CAP_SYS_ADMIN, also to return home.
func setns(fd int) error {
	err := unix.Setns(fd, unix.CLONE_NEWNET)
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("setns: %w (CAP_SYS_ADMIN is missing)", err)
	}
	return os.NewSyscallError("setns", err)
}

// entry is the way in and out of one visit.
type entry struct {
	setns        func(fd int) error // a seam: tests make the way back fail
	target, home int                // namespace descriptors
}

// visit runs fn in the target namespace on a thread of its own. nsErr says that
// the visit itself failed.
func (e entry) visit(fn func() error) (fnErr, nsErr error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The main thread stays at home. While this goroutine holds it, the
			// next one runs elsewhere.
			fnErr, nsErr = e.visit(fn)
			runtime.UnlockOSThread()
			return
		}
		nsErr = errLeft // holds if fn never returns; the thread then dies locked
		if err := e.setns(e.target); err != nil {
			nsErr = err
			runtime.UnlockOSThread() // never left home
			return
		}
		fnErr = fn()
		if err := e.setns(e.home); err != nil {
			// Still locked: the runtime ends the thread with this goroutine.
			nsErr = fmt.Errorf("no way back to the home namespace, its thread was discarded: %w", err)
			return
		}
		nsErr = nil
		runtime.UnlockOSThread()
	}()
	<-done
	return fnErr, nsErr
}
