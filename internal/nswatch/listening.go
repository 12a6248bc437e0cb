package nswatch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of linux/inet_diag.h and linux/sock_diag.h.
const (
	sockDiagByFamily = 20
	sizeofDiagReq    = 56 // struct inet_diag_req_v2
	sizeofDiagMsg    = 72 // struct inet_diag_msg, before its attributes
	tcpListen        = 10

	diagTimeout = 2 // seconds for one answer
	maxSockets  = 4096
)

// Listening returns the TCP ports that somebody listens on in the namespace that is
// watched under a key, as the kernel has them.
func (w *Watcher) Listening(key string) (map[uint16]bool, error) {
	w.mu.Lock()
	n := w.watched[key]
	if n == nil {
		w.mu.Unlock()
		return nil, fmt.Errorf("nswatch: %s is not watched", key)
	}
	// A duplicate: the namespace may be forgotten meanwhile.
	fd, err := unix.FcntlInt(uintptr(n.diag), unix.F_DUPFD_CLOEXEC, 0)
	w.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("nswatch: %w", os.NewSyscallError("fcntl", err))
	}
	defer unix.Close(fd)
	n.asking.Lock()
	defer n.asking.Unlock()
	ports := make(map[uint16]bool)
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		n.seq++
		err := ask(fd, family, n.seq, ports)
		if errors.Is(err, unix.ENOENT) && family == unix.AF_INET6 { // a kernel without it
			err = nil
		}
		if err != nil {
			return nil, fmt.Errorf("nswatch: listeners of %s: %w", n.id, err)
		}
	}
	return ports, nil
}

// ask lists the listeners of one family.
func ask(fd int, family byte, seq uint32, ports map[uint16]bool) error {
	req := make([]byte, unix.SizeofNlMsghdr+sizeofDiagReq)
	h := (*unix.NlMsghdr)(unsafe.Pointer(&req[0]))
	h.Len, h.Type, h.Flags, h.Seq = uint32(len(req)), sockDiagByFamily, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, seq
	body := req[unix.SizeofNlMsghdr:]
	body[0], body[1] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(body[4:], 1<<tcpListen)
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	var buf [16 << 10]byte
	for range maxSockets {
		n, _, err := unix.Recvfrom(fd, buf[:], 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		done, err := read(buf[:n], seq, ports)
		if done || err != nil {
			return err
		}
	}
	return errors.New("the answer has no end")
}

// read takes the ports out of one datagram; done says that it is the last one.
func read(b []byte, seq uint32, ports map[uint16]bool) (done bool, err error) {
	for len(b) >= unix.SizeofNlMsghdr {
		h := (*unix.NlMsghdr)(unsafe.Pointer(&b[0]))
		if h.Len < unix.SizeofNlMsghdr || int(h.Len) > len(b) {
			return false, errors.New("a message of impossible length")
		}
		body := b[unix.SizeofNlMsghdr:h.Len]
		b = b[min((int(h.Len)+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(b)):]
		switch {
		case h.Seq != seq: // of an earlier question that was given up
		case h.Type == unix.NLMSG_DONE:
			return true, nil
		case h.Type == unix.NLMSG_ERROR:
			if len(body) < 4 {
				return false, errors.New("an error without a number")
			}
			return false, unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
		case h.Type == sockDiagByFamily && len(body) >= sizeofDiagMsg && body[1] == tcpListen:
			ports[binary.BigEndian.Uint16(body[4:])] = true
		}
	}
	return false, nil
}
