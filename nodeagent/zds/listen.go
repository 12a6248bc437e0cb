package zds

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse says that another process serves the socket.
var ErrInUse = errors.New("another process serves it")

// Listener is a Unix socket at a path. It is how the agent makes each of its
// sockets.
type Listener struct {
	*net.UnixListener
	path string
	file os.FileInfo // the socket as we made it
	once sync.Once   // of Close
}

// Listen makes a socket of the given network ("unix" or "unixpacket") at path,
// for root only (mode 0600), and its folder if need be. The socket is made
// beside path and then moved there, so that path never names one that is half
// made. A dead socket is replaced; a live one is ErrInUse, and what is no socket
// is left alone with an error.
func Listen(network, path string) (*Listener, error) {
	if err := vacant(network, path); err != nil {
		return nil, fmt.Errorf("zds: listen at %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("zds: listen at %s: %w", path, err)
	}
	// A short name: the length of socket paths is limited to 107 bytes.
	tmp := filepath.Join(filepath.Dir(path), ".new")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("zds: listen at %s: %w", path, err)
	}
	l, err := net.ListenUnix(network, &net.UnixAddr{Name: tmp, Net: network})
	if err != nil {
		return nil, fmt.Errorf("zds: listen at %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	info, err := settle(tmp, path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("zds: listen at %s: %w", path, err), l.Close(), os.Remove(tmp))
	}
	return &Listener{UnixListener: l, path: path, file: info}, nil
}

// settle gives the socket its mode and its place.
func settle(tmp, path string) (os.FileInfo, error) {
	if err := os.Chmod(tmp, 0o600); err != nil {
		return nil, err
	}
	info, err := os.Lstat(tmp)
	if err != nil {
		return nil, err
	}
	return info, os.Rename(tmp, path)
}

// vacant says whether the path may be taken.
func vacant(network, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("there is a file that is no socket (%s): remove it", info.Mode())
	}
	c, err := net.DialTimeout(network, path, time.Second)
	switch {
	case err == nil:
		c.Close()
		return fmt.Errorf("%w: stop it first", ErrInUse)
	case NobodyListens(err):
		return nil
	default: // too busy to answer, or a socket of another type
		return fmt.Errorf("%w, as it seems: stop it first, or remove the socket: %w", ErrInUse, err)
	}
}

// NobodyListens says of the error of a dial that there is no socket, or one whose
// owner is gone.
func NobodyListens(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, os.ErrNotExist)
}

// Close removes the socket, unless another process has put its own there, and
// stops listening. Only the first call does anything.
func (l *Listener) Close() error {
	var err error
	l.once.Do(func() {
		// While the socket is open its inode cannot be given to another file.
		if now, statErr := os.Lstat(l.path); statErr == nil && os.SameFile(l.file, now) {
			err = os.Remove(l.path)
		}
		err = errors.Join(err, l.UnixListener.Close())
	})
	return err
}
