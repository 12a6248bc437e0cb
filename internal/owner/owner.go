package owner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Of is whose a file is; ok is false where the file system does not say.
func Of(info fs.FileInfo) (uid, gid int, ok bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false
	}
	return int(st.Uid), int(st.Gid), true
}

// Trusted are the users whose sockets are believed: root, whoever we are, and others that were named.
type Trusted []int

func (t Trusted) has(uid int) bool {
	return uid == 0 || uid == os.Geteuid() || slices.Contains(t, uid)
}

// Dial connects to a Unix socket, whose path may be written unix:///path. Whoever can put a socket at the path could be the server, so the socket and its folder
// have to belong to trusted users, nobody else may write to the folder, and what listens has to be a process of theirs.
func (t Trusted) Dial(ctx context.Context, path string) (net.Conn, error) {
	path = strings.TrimPrefix(path, "unix://")
	if err := t.check(path); err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	uid, err := peer(conn)
	if err == nil && !t.has(uid) {
		err = fmt.Errorf("%s is served by uid %d, which is neither root nor a user that was named", path, uid)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// check looks at the path before anything is sent there.
func (t Trusted) check(path string) error {
	for _, name := range []string{filepath.Dir(path), path} {
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		uid, _, ok := Of(info)
		mode := info.Mode()
		switch {
		case !ok:
			return fmt.Errorf("%s: its owner is not known", name)
		case !t.has(uid):
			return fmt.Errorf("%s belongs to uid %d, which is neither root nor a user that was named", name, uid)
		case mode.IsDir() && mode.Perm()&0o022 != 0 && mode&fs.ModeSticky == 0:
			return fmt.Errorf("%s has mode %#o, so that others can put a socket there; run chmod go-w on it", name, mode.Perm())
		}
	}
	return nil
}

// peer is the user of the process that listens, as of when it began to.
func peer(conn net.Conn) (uid int, err error) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("%T is not a Unix socket", conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, os.NewSyscallError("getsockopt SO_PEERCRED", credErr)
	}
	return int(cred.Uid), nil
}
