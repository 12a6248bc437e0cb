package podproc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
)

// ErrEnded is of a process that has ended, also while nobody has waited for it yet.
var ErrEnded = errors.New("the process has ended")

// Process is a handle on one process, which stays that process's when its PID is another's. Whoever opens it closes it.
type Process struct {
	PID   int
	Start uint64 // in clock ticks since boot, for logs: PIDs are used again, start times are not

	pidfd *os.File
	dir   *os.File // /proc/PID
}

// Open takes hold of a process, by the PID that it has in the PID namespace that proc is of and we are in. Threads are
// refused.
func Open(proc string, pid int) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, os.NewSyscallError("pidfd_open", err))
	}
	p := &Process{PID: pid, pidfd: os.NewFile(uintptr(fd), "pidfd")}
	if p.dir, err = os.Open(proc + "/" + strconv.Itoa(pid)); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	// The order matters: if the process lives now, the folder that was opened after its pidfd is its own.
	stat, err := ReadFile(p.path("stat"), MaxFile)
	if err == nil {
		p.Start, err = StartTime(stat)
	}
	if err == nil {
		err = p.Alive()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("process %d: %w", pid, err), p.Close())
	}
	return p, nil
}

func (p *Process) path(name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", p.dir.Fd(), name)
}

// Close lets go of the process.
func (p *Process) Close() error {
	var err error
	if p.dir != nil {
		err = p.dir.Close()
	}
	return errors.Join(err, p.pidfd.Close())
}

// Alive returns ErrEnded of a process that has ended, a zombie included.
func (p *Process) Alive() error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var ended bool
	var pollErr error
	if err := raw.Control(func(fd uintptr) { ended, pollErr = readable(fd) }); err != nil {
		return err
	}
	if pollErr == nil && ended {
		return ErrEnded
	}
	return pollErr
}

// readable: a pidfd is from the end of its process on.
func readable(fd uintptr) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if err != unix.EINTR {
			return n > 0, os.NewSyscallError("poll", err)
		}
	}
}

// Wait returns nil when the process has ended, and ctx's error when ctx ends before. It holds no thread. One after the other
// may wait, not two at once.
func (p *Process) Wait(ctx context.Context) error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	if err := p.pidfd.SetReadDeadline(time.Time{}); err != nil { // that of the one before
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.pidfd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var pollErr error
	err = raw.Read(func(fd uintptr) bool {
		var ended bool
		ended, pollErr = readable(fd)
		return ended || pollErr != nil
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(err, pollErr)
}

// Prove checks that the process is alive, in a container of the pod with this UID, and in this network namespace. Both
// are needed: a container may put itself into other control groups below its own, and a process with the right to may
// enter another pod's namespace.
func (p *Process) Prove(uid string, ns netns.ID) error {
	at, err := ReadPlace(p.path("cgroup"))
	if err != nil {
		return fmt.Errorf("process %d: control groups: %w", p.PID, err)
	}
	if at.UID == "" || !strings.EqualFold(at.UID, uid) {
		return fmt.Errorf("process %d is of pod %q, not of %s", p.PID, at.UID, uid)
	}
	in, err := netns.Open(p.path("ns/net")) // a zombie has none
	if err != nil {
		return fmt.Errorf("process %d: network namespace: %w", p.PID, err)
	}
	id := in.ID()
	if err := in.Close(); err != nil {
		return err
	}
	if id != ns {
		return fmt.Errorf("process %d is in network namespace %s, the pod in %s", p.PID, id, ns)
	}
	return p.Alive()
}

// Container is the ID of the container that the process is in, empty where its control groups do not say.
func (p *Process) Container() string {
	at, err := ReadPlace(p.path("cgroup"))
	if err != nil {
		return ""
	}
	return at.Container
}

// Name is what the process calls itself: a hint, of no value as proof.
func (p *Process) Name() string {
	text, err := ReadFile(p.path("comm"), MaxFile)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(text)
}
