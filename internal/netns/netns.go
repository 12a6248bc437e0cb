package netns

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// threadPath names the network namespace of the calling thread. It is not
// /proc/self, which is always the main thread's.
const threadPath = "/proc/thread-self/ns/net"

// ErrNotNetNS is returned (wrapped) for a file that is not a network namespace.
var ErrNotNetNS = errors.New("not a network namespace")

// ID identifies a network namespace for as long as anything holds it open: two
// files are the same namespace exactly when their IDs are equal. Paths and fd
// numbers say nothing about that. The zero ID is no namespace.
type ID struct{ Dev, Ino uint64 }

// String returns "dev:ino" in decimal; the inode is what `ls -l /proc/N/ns/net`
// and `lsns` show.
func (id ID) String() string {
	return strconv.FormatUint(id.Dev, 10) + ":" + strconv.FormatUint(id.Ino, 10)
}

// IsZero says whether id names no namespace at all.
func (id ID) IsZero() bool { return id == ID{} }

// NS is an open network namespace. It owns one file descriptor, which keeps the
// namespace alive until Close. All methods may be called at the same time from
// several goroutines; after Close they fail with os.ErrClosed.
type NS struct {
	f  *os.File
	id ID
}

// Open opens the namespace at path, such as /var/run/netns/x or /proc/N/ns/net.
// It never blocks, whatever is at that path. The caller closes the result.
func Open(path string) (*NS, error) {
	// O_NONBLOCK: the path comes from another program, and a FIFO there must
	// not hold us.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("netns: open %s: %w", path, err)
	}
	return FromFile(os.NewFile(uintptr(fd), path))
}

// FromFile makes a namespace of an open file, typically one received over a
// Unix socket. It takes ownership of f, also when it fails, and refuses what is
// not a network namespace with ErrNotNetNS.
func FromFile(f *os.File) (*NS, error) {
	if f == nil {
		return nil, fmt.Errorf("netns: no file: %w", os.ErrInvalid)
	}
	var id ID
	err := withFD(f, func(fd int) (err error) {
		unix.CloseOnExec(fd)
		id, err = identify(fd)
		return err
	})
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("netns: %s: %w", f.Name(), err)
	}
	return &NS{f: f, id: id}, nil
}

// Current opens the namespace of the calling thread: the home namespace, unless
// called from within Do.
func Current() (*NS, error) { return Open(threadPath) }

// identify checks that fd is a network namespace and returns its identity. The
// filesystem is looked at first: an ioctl on an arbitrary file may do anything.
func identify(fd int) (ID, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return ID{}, fmt.Errorf("fstatfs: %w", err)
	}
	if int64(fs.Type) != unix.NSFS_MAGIC {
		return ID{}, fmt.Errorf("%w: not a namespace file (filesystem type %#x)", ErrNotNetNS, fs.Type)
	}
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil {
		return ID{}, fmt.Errorf("ioctl NS_GET_NSTYPE: %w", err)
	}
	if kind != unix.CLONE_NEWNET {
		return ID{}, fmt.Errorf("%w: a namespace of another type (%#x)", ErrNotNetNS, kind)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return ID{}, fmt.Errorf("fstat: %w", err)
	}
	return ID{Dev: st.Dev, Ino: st.Ino}, nil
}

// ID returns the namespace's identity; it stays valid after Close.
func (n *NS) ID() ID { return n.id }

// File returns the open file, to pass it over a socket or to a child process.
// It still belongs to n: do not close it, and do not keep it past Close.
func (n *NS) File() *os.File { return n.f }

// Dup duplicates the descriptor; both are closed separately.
func (n *NS) Dup() (*NS, error) {
	var dup int
	err := withFD(n.f, func(fd int) (err error) {
		dup, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("netns: dup %s: %w", n.id, err)
	}
	return &NS{f: os.NewFile(uintptr(dup), n.f.Name()), id: n.id}, nil
}

// Reopen opens the same namespace as another open file: unlike Dup's, a lock
// (flock) on it is not shared with n. Both are closed separately.
func (n *NS) Reopen() (again *NS, err error) {
	err = withFD(n.f, func(fd int) (err error) {
		again, err = Open("/proc/self/fd/" + strconv.Itoa(fd))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("netns: reopen %s: %w", n.id, err)
	}
	return again, nil
}

// Close releases the descriptor. Sockets made in the namespace stay open. It
// may be called more than once.
func (n *NS) Close() error {
	if err := n.f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("netns: close %s: %w", n.id, err)
	}
	return nil
}

// withFD calls fn with f's descriptor, which stays open until fn returns even
// if f is closed meanwhile.
func withFD(f *os.File, fn func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if raw.Control(func(fd uintptr) { inner = fn(int(fd)) }) != nil {
		return os.ErrClosed // the only reason there is, but of a type of its own
	}
	return inner
}
