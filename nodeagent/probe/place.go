package probe

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
)

const ownCgroups = "/proc/thread-self/ns/cgroup"

// place is where the rules live: the host's network namespace, entered together
// with the host's namespace of cgroups, from whose root the kernel counts the
// paths and levels of cgroups in rules. A container usually has one of its own.
type place struct {
	ns   *netns.NS
	home *os.File // our namespace of cgroups
	host *os.File // the host's; nil where it is ours, or cannot be had
	tree *os.File // the root of the cgroups (v2); nil where it cannot be had
	why  error    // why one of them cannot
}

// openPlace opens what there is. proc is the host's /proc. Without the host's
// namespace of cgroups ours will do, if kubelet is in sight there.
func openPlace(ns *netns.NS, proc string) (*place, error) {
	own, err := ns.Dup()
	if err != nil {
		return nil, err
	}
	p := &place{ns: own}
	if p.home, err = os.Open(ownCgroups); err != nil {
		p.why = err
		return p, nil
	}
	p.host, err = os.Open(filepath.Join(proc, "1/ns/cgroup"))
	if err != nil {
		p.why = fmt.Errorf("the host's namespace of cgroups: %w", err)
	} else if sameFile(p.home, p.host) {
		p.host.Close()
		p.host = nil
	}
	err = p.do(func() error {
		p.tree, err = mountCgroups()
		return err
	})
	if err != nil {
		p.why = errors.Join(p.why, err)
	}
	return p, nil
}

// mountCgroups mounts the cgroups (v2) of the thread's namespace, nowhere: there
// is no path to it and it is gone with the file.
func mountCgroups() (*os.File, error) {
	fs, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen cgroup2", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, os.NewSyscallError("fsconfig cgroup2", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return nil, os.NewSyscallError("fsmount cgroup2", err)
	}
	return os.NewFile(uintptr(fd), "cgroup2"), nil
}

// do runs fn in the place. As with netns.NS.Do, fn must only create something
// there.
func (p *place) do(fn func() error) error {
	return p.ns.Do(func() error { return p.withCgroups(fn) })
}

// withCgroups runs fn, on a thread that is netns.NS.Do's, in the host's
// namespace of cgroups.
func (p *place) withCgroups(fn func() error) error {
	if p.host == nil {
		return fn()
	}
	if err := unix.Setns(int(p.host.Fd()), unix.CLONE_NEWCGROUP); err != nil {
		return os.NewSyscallError("setns to the host's cgroups", err)
	}
	err := fn()
	if p.home == nil || unix.Setns(int(p.home.Fd()), unix.CLONE_NEWCGROUP) != nil {
		runtime.Goexit() // so that Do discards the thread
	}
	return err
}

func (p *place) close() error {
	for _, f := range []*os.File{p.home, p.host, p.tree} {
		f.Close()
	}
	return p.ns.Close()
}

// in is the same place in another network namespace. It has no files of its own.
func (p *place) in(ns *netns.NS) *place {
	return &place{ns: ns, home: p.home, host: p.host, tree: p.tree, why: p.why}
}

// cgroup looks a path of the host's up.
func (p *place) cgroup(path string) (Cgroup, error) {
	path = strings.Trim(path, "/")
	if p.tree == nil || strings.HasPrefix(path, "..") {
		return Cgroup{}, errors.Join(fmt.Errorf("cgroup /%s cannot be seen from here", path), p.why)
	}
	if path == "" {
		return Cgroup{}, errors.New("it is in the root")
	}
	if !plainPath(path) {
		return Cgroup{}, fmt.Errorf("the cgroup's name %q cannot be in a rule", path)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(p.tree.Fd()), path, &st, 0); err != nil {
		return Cgroup{}, fmt.Errorf("cgroup %s: %w", path, err)
	}
	return Cgroup{Path: path, ID: st.Ino}, nil
}

// holdsPods says whether the pods' cgroups are directly below one.
func (p *place) holdsPods(path string) (bool, error) {
	fd, err := unix.Openat(int(p.tree.Fd()), path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("cgroup %s: %w", path, err)
	}
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(256)
		for _, n := range names {
			if strings.Contains(n, podsCgroup) {
				return true, nil
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return false, nil
		case err != nil:
			return false, err
		}
	}
}

func sameFile(a, b *os.File) bool {
	sa, errA := a.Stat()
	sb, errB := b.Stat()
	return errA == nil && errB == nil && os.SameFile(sa, sb)
}
