// Package nswatch tells when rules or routes change in network namespaces, whoever
// changes them: nftables (and with it the variant of iptables that is made of it),
// routes and routing rules. The kernel says so by netlink; nothing is asked for, so
// that namespaces in which nothing happens cost nothing.
//
// iptables-legacy says nothing. Who listens in a namespace can be asked, without
// entering it anew.
//
// Kind: adapter. Used by nodeagent.
package nswatch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
)

// groups are the multicast groups, by netlink family, as one bit each.
func groups() map[int]uint32 {
	bit := func(list ...uint) (all uint32) {
		for _, g := range list {
			all |= 1 << (g - 1)
		}
		return all
	}
	return map[int]uint32{
		unix.NETLINK_NETFILTER: bit(unix.NFNLGRP_NFTABLES),
		unix.NETLINK_ROUTE:     bit(unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE),
	}
}

// queue is how much of a socket's news the kernel keeps, in bytes. What it drops is
// told of as well.
const queue = 4096

// Watcher watches namespaces. Its methods may be called by several goroutines.
type Watcher struct {
	epoll *os.File

	mu      sync.Mutex
	closed  bool
	watched map[string]*watched // by key
	keys    map[int]string      // by descriptor
}

type watched struct {
	id   netns.ID
	fds  []int // that tell of changes
	diag int   // that answers questions about sockets

	asking sync.Mutex // one question at a time
	seq    uint32     // of the last one
}

// New makes a watcher that watches nothing yet.
func New() (*Watcher, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("nswatch: %w", os.NewSyscallError("epoll_create1", err))
	}
	// Then the runtime waits for it as for a socket, without a thread.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("nswatch: %w", os.NewSyscallError("fcntl", err))
	}
	return &Watcher{epoll: os.NewFile(uintptr(fd), "epoll"), watched: make(map[string]*watched), keys: make(map[int]string)}, nil
}

// Watch begins to watch a namespace under a key, instead of what it had before. The
// namespace stays the caller's, and is not kept alive.
func (w *Watcher) Watch(key string, ns *netns.NS) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if old := w.watched[key]; old != nil && old.id == ns.ID() {
		return nil
	}
	w.forgetLocked(key)
	if w.closed {
		return fmt.Errorf("nswatch: %w", os.ErrClosed)
	}
	n := &watched{id: ns.ID(), diag: -1}
	w.watched[key] = n
	err := n.open(ns)
	for family, g := range groups() {
		if err != nil {
			break
		}
		var fd int
		if fd, err = socket(ns, family, g); err == nil {
			n.fds = append(n.fds, fd)
			w.keys[fd] = key
			err = w.control(unix.EPOLL_CTL_ADD, fd)
		}
	}
	if err != nil {
		w.forgetLocked(key)
		return fmt.Errorf("nswatch: %s: %w", ns.ID(), err)
	}
	return nil
}

// open makes the socket that answers.
func (n *watched) open(ns *netns.NS) error {
	fd, err := ns.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM, unix.NETLINK_INET_DIAG)
	if err != nil {
		return err
	}
	n.diag = fd
	// The kernel answers while it is asked, so that this waits for nothing.
	return errors.Join(
		os.NewSyscallError("fcntl", unix.SetNonblock(fd, false)),
		os.NewSyscallError("setsockopt SO_RCVTIMEO", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: diagTimeout})),
	)
}

func socket(ns *netns.NS, family int, groups uint32) (int, error) {
	fd, err := ns.Socket(unix.AF_NETLINK, unix.SOCK_RAW, family)
	if err != nil {
		return -1, err
	}
	err = errors.Join(
		os.NewSyscallError("setsockopt SO_RCVBUF", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, queue)),
		os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})),
	)
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (w *Watcher) control(op, fd int) error {
	raw, err := w.epoll.SyscallConn()
	if err != nil {
		return err
	}
	var ctlErr error
	err = raw.Control(func(epoll uintptr) {
		ctlErr = unix.EpollCtl(int(epoll), op, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
	})
	return errors.Join(err, os.NewSyscallError("epoll_ctl", ctlErr))
}

// Forget ends the watching of what is watched under a key, if anything is.
func (w *Watcher) Forget(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forgetLocked(key)
}

func (w *Watcher) forgetLocked(key string) {
	n := w.watched[key]
	if n == nil {
		return
	}
	for _, fd := range n.fds {
		unix.Close(fd) // which also takes it out of the epoll
		delete(w.keys, fd)
	}
	if n.diag >= 0 {
		unix.Close(n.diag)
	}
	delete(w.watched, key)
}

// Run calls changed for each key whose namespace has changed, one after the other,
// until ctx ends or Close is called; it returns nil then. Several changes may be one call, and a call
// may come of a change by the caller.
func (w *Watcher) Run(ctx context.Context, changed func(key string)) error {
	defer context.AfterFunc(ctx, func() { w.epoll.Close() })()
	raw, err := w.epoll.SyscallConn()
	if err != nil { // Close has been called
		return nil
	}
	events := make([]unix.EpollEvent, 64)
	for {
		n, waitErr := 0, error(nil)
		err := raw.Read(func(epoll uintptr) bool {
			n, waitErr = unix.EpollWait(int(epoll), events, 0)
			return n > 0 || waitErr != nil && !errors.Is(waitErr, unix.EINTR)
		})
		switch {
		case ctx.Err() != nil, err != nil: // err is that it is closed
			return nil
		case waitErr != nil:
			return fmt.Errorf("nswatch: %w", os.NewSyscallError("epoll_wait", waitErr))
		}
		for _, key := range w.take(events[:n]) {
			changed(key)
		}
	}
}

// take reads away what there is to read, and returns whose it was.
func (w *Watcher) take(events []unix.EpollEvent) (keys []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := make(map[string]bool)
	for _, ev := range events {
		fd := int(ev.Fd)
		key, ok := w.keys[fd]
		if !ok { // forgotten meanwhile
			continue
		}
		drain(fd)
		if !seen[key] {
			seen[key] = true
			keys = append(keys, key)
		}
	}
	return keys
}

// drain reads until there is nothing left; what the messages say does not matter, nor
// that some were dropped. It is bounded: what is left is an event of its own.
func drain(fd int) {
	var buf [64]byte // the rest of a message is cut off
	for range 256 {
		if _, _, err := unix.Recvfrom(fd, buf[:], unix.MSG_DONTWAIT|unix.MSG_TRUNC); err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// Close ends the watching. It may be called more than once.
func (w *Watcher) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for key := range w.watched {
		w.forgetLocked(key)
	}
	if err := w.epoll.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("nswatch: %w", err)
	}
	return nil
}
