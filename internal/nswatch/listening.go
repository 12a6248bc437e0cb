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

	diagTimeout = 2  // seconds for one answer
	maxStale    = 16 // answers to questions that were given up
)

// NotListening returns those of the TCP ports that a connection to the loopback
// address would be refused on, in the namespace that is watched under a key. Each is
// one look into the kernel's table: who connects is not asked for.
func (w *Watcher) NotListening(key string, ports ...uint16) (missing []uint16, err error) {
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
	for _, port := range ports {
		n.seq++
		there, err := ask(fd, n.seq, port)
		if err != nil {
			return nil, fmt.Errorf("nswatch: listener on port %d of %s: %w", port, n.id, err)
		}
		if !there {
			missing = append(missing, port)
		}
	}
	return missing, nil
}

// ask looks for the socket that a connection to 127.0.0.1 would come to.
func ask(fd int, seq uint32, port uint16) (there bool, err error) {
	req := make([]byte, unix.SizeofNlMsghdr+sizeofDiagReq)
	h := (*unix.NlMsghdr)(unsafe.Pointer(&req[0]))
	h.Len, h.Type, h.Flags, h.Seq = uint32(len(req)), sockDiagByFamily, unix.NLM_F_REQUEST, seq
	body := req[unix.SizeofNlMsghdr:]
	body[0], body[1] = unix.AF_INET, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(body[4:], 1<<tcpListen)
	binary.BigEndian.PutUint16(body[8:], port) // the socket's own end; the other is nobody
	copy(body[12:], []byte{127, 0, 0, 1})
	binary.NativeEndian.PutUint64(body[48:], ^uint64(0)) // any cookie
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false, os.NewSyscallError("sendto", err)
	}
	var buf [1024]byte
	for range maxStale {
		n, _, err := unix.Recvfrom(fd, buf[:], 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, os.NewSyscallError("recvfrom", err)
		}
		if there, mine, err := answer(buf[:n], seq, port); mine {
			return there, err
		}
	}
	return false, errors.New("no answer to the question")
}

// answer reads one datagram. It is not mine if it is about something else.
func answer(b []byte, seq uint32, port uint16) (there, mine bool, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return false, false, nil
	}
	var h unix.NlMsghdr
	h.Len, h.Type, h.Seq = binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:])
	if h.Seq != seq || h.Len < unix.SizeofNlMsghdr || int64(h.Len) > int64(len(b)) {
		return false, false, nil
	}
	body := b[unix.SizeofNlMsghdr:h.Len]
	switch {
	case h.Type == unix.NLMSG_ERROR && len(body) >= 4:
		no := unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
		if no == unix.ENOENT {
			return false, true, nil
		}
		return false, true, no
	case h.Type == sockDiagByFamily && len(body) >= sizeofDiagMsg:
		return body[1] == tcpListen && binary.BigEndian.Uint16(body[4:]) == port, true, nil
	default:
		return false, true, fmt.Errorf("an answer of type %d and %d bytes", h.Type, len(body))
	}
}
