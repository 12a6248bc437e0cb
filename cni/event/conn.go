package event

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// fdRoom is room for more descriptors than any packet may have, so that extra
// ones are seen. What does not fit, the kernel does not install.
const fdRoom = 8

// conn carries messages. It is used by one goroutine at a time.
type conn struct{ c *net.UnixConn }

// send sends a message, with a descriptor if file is not nil. It ends with ctx.
func (c conn) send(ctx context.Context, m message, file *os.File) error {
	data, err := encode(m)
	if err != nil {
		return err
	}
	defer c.bound(ctx)()
	if file == nil {
		_, _, err = c.c.WriteMsgUnix(data, nil, nil)
		return cause(ctx, err)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	errControl := raw.Control(func(fd uintptr) {
		_, _, err = c.c.WriteMsgUnix(data, unix.UnixRights(int(fd)), nil)
	})
	return cause(ctx, errors.Join(err, errControl))
}

// recv receives a message that comes without a descriptor.
func (c conn) recv(ctx context.Context) (message, error) {
	m, file, err := c.recvFile(ctx)
	if file != nil {
		file.Close()
		return message{}, errors.New("a descriptor that was not asked for")
	}
	return m, err
}

// recvFile receives a message and the descriptor that came with it, if any,
// which is the caller's. The end of the connection is io.EOF. For a version
// that is not served it returns errVersion and a message with its version.
func (c conn) recvFile(ctx context.Context) (message, *os.File, error) {
	data, file, err := c.packet(ctx)
	if err != nil {
		return message{}, nil, err
	}
	m, err := decode(data)
	if err != nil && file != nil {
		file.Close()
		file = nil
	}
	return m, file, err
}

// packet receives one packet. At most one descriptor comes with it; if there
// are more, all are closed.
func (c conn) packet(ctx context.Context) ([]byte, *os.File, error) {
	defer c.bound(ctx)()
	data, oob := make([]byte, maxMessage+1), make([]byte, unix.CmsgSpace(4*fdRoom))
	n, oobn, flags, _, err := c.c.ReadMsgUnix(data, oob)
	if err != nil {
		return nil, nil, cause(ctx, err)
	}
	files, err := rights(oob[:oobn])
	switch {
	case err != nil:
	case flags&unix.MSG_CTRUNC != 0, len(files) > 1:
		err = errors.New("more than one descriptor")
	case flags&unix.MSG_TRUNC != 0, n > maxMessage:
		err = fmt.Errorf("message of more than %d bytes", maxMessage)
	}
	if err != nil {
		for _, f := range files {
			f.Close()
		}
		return nil, nil, err
	}
	if len(files) == 0 {
		return data[:n], nil, nil
	}
	return data[:n], files[0], nil
}

// rights takes the descriptors out of control messages. They are close-on-exec.
func rights(oob []byte) (files []*os.File, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // another kind, which holds no descriptors
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "from plugin"))
		}
	}
	return files, nil
}

// bound makes reads and writes end with ctx, until the returned function is
// called.
func (c conn) bound(ctx context.Context) (stop func()) {
	deadline, _ := ctx.Deadline() // zero: none
	c.c.SetDeadline(deadline)
	ended := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(ended)
		c.c.SetDeadline(time.Unix(1, 0))
	})
	return func() {
		if !cancel() {
			<-ended // so that it does not hit what comes next
		}
	}
}

// cause says why ctx ended, if that is what stopped the system call. The
// socket's timer may be a little earlier than ctx's of the same deadline.
func cause(ctx context.Context, err error) error {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

// peerIsRoot says whether root is at the other end.
func peerIsRoot(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	errControl := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, errControl); err != nil {
		return fmt.Errorf("SO_PEERCRED: %w", err)
	}
	if cred.Uid != 0 {
		return fmt.Errorf("peer has uid %d, only root may speak here", cred.Uid)
	}
	return nil
}
