package event

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// maxSocketPath is the longest path that a Unix address holds.
const maxSocketPath = 107

// Listen makes the agent's socket at path, for root only, and puts it in the
// place of one that is there: a predecessor's that died, or that still serves
// its last conversations. Closing the listener leaves the file, which may be a
// successor's by then; a plugin that finds nobody behind it takes the agent for
// away.
func Listen(path string) (_ *net.UnixListener, err error) {
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if len(tmp) > maxSocketPath {
		return nil, fmt.Errorf("event: socket path %s is too long, at most %d bytes are allowed", path, maxSocketPath-len(tmp)+len(path))
	}
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("event: %w", err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: tmp, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("event: %w", err)
	}
	l.SetUnlinkOnClose(false)
	// Nobody knows the temporary name, and until the mode is right peers are
	// still told by their credentials.
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		l.Close()
		os.Remove(tmp)
		return nil, fmt.Errorf("event: %w", err)
	}
	return l, nil
}
