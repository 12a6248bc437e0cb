package ready

import (
	"fmt"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Socket owns a non-blocking descriptor. It is made by [Socket.Take] or [Socket.Own], may be
// part of another struct, and must not be copied after that. The zero Socket is
// a closed one.
type Socket struct {
	// state counts the users; isOpen is a flag above the count.
	state  atomic.Uint32
	writes atomic.Bool // room is of interest
	fd     int32
	at     uint32 // the entry in loop, set before it
	loop   atomic.Pointer[loop]
}

const (
	isOpen  = 1 << 31
	oneUser = 1
)

// Conn is a connection of package net that is a stream of the kernel's: a
// *net.TCPConn or a *net.UnixConn.
type Conn interface {
	SyscallConn() (syscall.RawConn, error)
	Close() error
}

// Take makes k the owner of c's connection and closes c, which must not be in
// use by anybody; on error c is closed all the same, and so is the connection.
func (k *Socket) Take(c Conn) error {
	raw, err := c.SyscallConn()
	if err != nil { // c is no connection
		return fmt.Errorf("ready: %w", err)
	}
	fd := -1
	cerr := raw.Control(func(old uintptr) {
		// The duplicate and not the original, whose number is net's to close.
		fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			// The peer has to see that nobody will read what it sends.
			_ = unix.SetsockoptLinger(int(old), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		}
	})
	_ = c.Close() // with a duplicate there is nothing to flush, and nothing to fail
	switch {
	case cerr != nil:
		return fmt.Errorf("ready: %w", cerr)
	case err != nil:
		return fmt.Errorf("ready: %w", os.NewSyscallError("fcntl", err))
	}
	k.Own(fd)
	return nil
}

// Own makes k the owner of fd, which is non-blocking and in nobody's poller.
func (k *Socket) Own(fd int) {
	k.fd = int32(fd)
	k.state.Store(isOpen)
}

// Acquire lends the descriptor out until Release, which must follow. It returns
// false when the socket is closed.
func (k *Socket) Acquire() (fd int, ok bool) {
	for {
		s := k.state.Load()
		if s&isOpen == 0 {
			return -1, false
		}
		if k.state.CompareAndSwap(s, s+oneUser) {
			return int(k.fd), true
		}
	}
}

// WatchWrites has the handler of a watched socket told of room to write too, from
// now on: of room that there is already, and then each time after a write that
// found none. It may be called again. Before Watch, and of a closed socket, it
// does nothing; Watch makes up for it.
func (k *Socket) WatchWrites() error {
	fd, ok := k.Acquire()
	if !ok {
		return nil
	}
	defer k.Release()
	if k.writes.Swap(true) {
		return nil
	}
	if l := k.loop.Load(); l != nil {
		return l.modify(fd, k.at, interest|unix.EPOLLOUT)
	}
	return nil
}

// Again has what a watched socket is ready for told of once more.
func (k *Socket) Again() error {
	fd, ok := k.Acquire()
	if !ok {
		return nil
	}
	defer k.Release()
	events := uint32(interest)
	if k.writes.Load() {
		events |= unix.EPOLLOUT
	}
	if l := k.loop.Load(); l != nil {
		return l.modify(fd, k.at, events)
	}
	return nil
}

// Release ends the use of the descriptor.
func (k *Socket) Release() {
	if s := k.state.Add(^uint32(0)); s == 0 {
		k.destroy()
	}
}

// Close closes the socket as soon as nobody uses it. It may be called from any
// goroutine; only the first call counts.
func (k *Socket) Close() {
	for {
		s := k.state.Load()
		if s&isOpen == 0 {
			return
		}
		// While it is taken away from others it is ours: one user more, one flag less.
		if k.state.CompareAndSwap(s, s&^isOpen+oneUser) {
			k.Release()
			return
		}
	}
}

// Reset is Close, but the peer sees a reset and not an end.
func (k *Socket) Reset() {
	if fd, ok := k.Acquire(); ok {
		// It fails on no socket that is open.
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		k.Close()
		k.Release()
	}
}

// destroy is called once, by whoever leaves last.
func (k *Socket) destroy() {
	if l := k.loop.Load(); l != nil {
		l.forget(k.at)
	}
	_ = unix.Close(int(k.fd)) // the descriptor is gone whatever close says
}
