package ready

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// acceptBatch is how many connections a turn takes from one listener: the other
// sockets of the loop wait meanwhile.
const acceptBatch = 16

// Acceptor is told of connections that come in. It is called by one goroutine at
// a time, which other sockets wait for: it must not block.
type Acceptor interface {
	// Accepted is given a connection, as a descriptor that is non-blocking, in
	// nobody's poller and the acceptor's from now on, and the address it came from.
	Accepted(fd int, peer netip.AddrPort, turn *Turn)
	// Failed is told that accepting failed, for want of descriptors most likely. It
	// says how long to wait until the next try.
	Failed(error) time.Duration
}

// Listener accepts connections on a loop: one system call each, where net makes
// five and wakes a goroutine.
type Listener struct {
	sock Socket
	addr net.Addr
	to   Acceptor

	mu     sync.Mutex // held while the acceptor is called
	closed bool
	retry  *time.Timer // nil: no accept has failed, or it has been tried again since
}

// Listen has to told of the connections of from, which it takes over: from is
// closed, and the socket closed on error too.
func (s *Set) Listen(from *net.TCPListener, to Acceptor) (*Listener, error) {
	l := &Listener{addr: from.Addr(), to: to}
	err := l.sock.Take(from)
	if err == nil {
		err = s.Watch(&l.sock, l)
	}
	if err != nil {
		l.sock.Close()
		return nil, err
	}
	return l, nil
}

// Addr is where it listens.
func (l *Listener) Addr() net.Addr { return l.addr }

// Close ends listening: when it returns, the acceptor is not called any more. The
// acceptor must not call it.
func (l *Listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	l.closed = true
	if l.retry != nil {
		l.retry.Stop()
	}
	l.sock.Close()
	return nil
}

// Notify implements Handler.
func (l *Listener) Notify(_ Events, turn *Turn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fd, ok := l.sock.Acquire()
	if !ok {
		return
	}
	if l.retry != nil { // each that comes meanwhile is told of
		l.sock.Release()
		return
	}
	defer l.sock.Release()
	for range acceptBatch {
		c, peer, err := unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch err {
		case nil:
			l.to.Accepted(c, addrPort(peer), turn)
		case unix.EAGAIN:
			return
		case unix.EINTR, unix.ECONNABORTED: // that one is over already
		default:
			l.retry = time.AfterFunc(l.to.Failed(&net.OpError{Op: "accept", Net: "tcp", Addr: l.addr, Err: os.NewSyscallError("accept4", err)}), l.again)
			return
		}
	}
	_ = l.sock.Again() // what is watched can be watched again
}

// again is the next try after a failure.
func (l *Listener) again() {
	l.mu.Lock()
	l.retry = nil
	l.mu.Unlock()
	_ = l.sock.Again()
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
