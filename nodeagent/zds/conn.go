package zds

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
)

// network is Go's name for SOCK_SEQPACKET.
const network = "unixpacket"

// conn sends and receives packets. It may be used by one sender and one
// receiver at a time.
type conn struct {
	*net.UnixConn
	buf [maxPacket]byte
	// oob has room for two descriptors where one is right: with less, the
	// kernel would drop the second and hide the mistake.
	oob [32]byte
}

// send writes one packet within ackTimeout; ns, if any, travels with it and
// stays the caller's.
func (c *conn) send(b []byte, ns *netns.NS) error {
	if err := c.SetWriteDeadline(time.Now().Add(ackTimeout)); err != nil {
		return err
	}
	if ns == nil {
		_, err := c.Write(b)
		return err
	}
	raw, err := ns.File().SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	// Control keeps the descriptor open, and its number ours, while it is sent.
	if err := raw.Control(func(fd uintptr) {
		_, _, sent = c.WriteMsgUnix(b, unix.UnixRights(int(fd)), nil)
	}); err != nil {
		return err
	}
	return sent
}

// receive reads one packet, which is valid until the next call. The caller
// closes the files. io.EOF says that the other end has closed; an empty packet
// looks the same. Any other error but a protocolError comes from the socket.
func (c *conn) receive() ([]byte, []*os.File, error) {
	n, oobn, flags, _, err := c.ReadMsgUnix(c.buf[:], c.oob[:])
	files, oobErr := received(c.oob[:max(oobn, 0)])
	switch {
	case err != nil:
	case flags&unix.MSG_TRUNC != 0:
		err = protocolError{fmt.Errorf("a packet of more than %d bytes", maxPacket)}
	case flags&unix.MSG_CTRUNC != 0:
		err = protocolError{errors.New("more ancillary data than one descriptor")}
	case oobErr != nil:
		err = protocolError{oobErr}
	case n == 0:
		err = io.EOF
	}
	if err != nil {
		closeAll(files)
		return nil, nil, err
	}
	return c.buf[:n], files, nil
}

// received takes the descriptors out of ancillary data. They are ours from the
// moment of recvmsg, whatever else is wrong with the packet.
func received(oob []byte) (files []*os.File, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("ancillary data: %w", err)
	}
	for i := range msgs {
		if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("ancillary data: %w", err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received over ZDS"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// protocolError is the other end's mistake, as opposed to a broken connection.
type protocolError struct{ err error }

func (e protocolError) Error() string { return e.err.Error() }
func (e protocolError) Unwrap() error { return e.err }

// rootPeer refuses a process of another user than root (or, in a user namespace
// of its own, our own user).
func rootPeer(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var inner error
	if err := raw.Control(func(fd uintptr) {
		cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if inner != nil {
		return os.NewSyscallError("getsockopt SO_PEERCRED", inner)
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("process %d runs as user %d, not as root", cred.Pid, cred.Uid)
	}
	return nil
}
