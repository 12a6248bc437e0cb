package ends

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"

	"golang.org/x/sys/unix"
)

// served is the server's view of one connection.
type served struct {
	open bool
	op   Op // zero until the head is there
	head [headLen]byte
	have int // bytes of the head, then of the message that is coming
	size int
	slot uint32
	mark byte // first byte of the message
}

type server struct {
	poll     *poll
	listener int
	board    *Board
	conns    []served // by descriptor
	buf      []byte
	bulk     source
}

// Serve answers connections on addr until ctx ends.
func Serve(ctx context.Context, addr string, board *Board) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File() // a duplicate, of the same non-blocking socket
	if err != nil {
		return err
	}
	defer f.Close()
	p, err := newPoll()
	if err != nil {
		return err
	}
	defer p.close()
	bulk, err := newSource()
	if err != nil {
		return err
	}
	defer bulk.close()
	s := &server{poll: p, listener: int(f.Fd()), board: board, buf: make([]byte, block), bulk: bulk}
	if err := unix.SetNonblock(s.listener, true); err != nil { // Fd has made it block
		return err
	}
	if err := p.watch(s.listener, s.listener, unix.EPOLLIN, unix.EPOLL_CTL_ADD); err != nil {
		return err
	}
	defer s.closeAll()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for ctx.Err() == nil {
		events, err := p.wait(100) // ms, to look at ctx
		if err != nil {
			return err
		}
		for i := range events {
			if err := s.handle(int(events[i].Fd)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *server) handle(fd int) error {
	if fd == s.listener {
		return s.accept()
	}
	// The client end sees and reports what goes wrong on a connection.
	if err := s.serve(fd, &s.conns[fd]); err != nil && !again(err) {
		unix.Close(fd)
		s.conns[fd] = served{}
	}
	return nil
}

func (s *server) accept() error {
	for range 64 {
		fd, _, err := unix.Accept4(s.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch {
		case again(err), errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
			return nil
		case err != nil:
			return fmt.Errorf("accept: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			unix.Close(fd)
			continue
		}
		for len(s.conns) <= fd {
			s.conns = append(s.conns, served{})
		}
		s.conns[fd] = served{open: true}
		if err := s.poll.watch(fd, fd, unix.EPOLLIN, unix.EPOLL_CTL_ADD); err != nil {
			return err
		}
	}
	return nil
}

var errEnd = errors.New("the connection has ended")

// serve does one step on a connection that is ready.
func (s *server) serve(fd int, c *served) error {
	switch c.op {
	case Up:
		return s.take(fd, c)
	case Down:
		return s.bulk.send(fd)
	case Echo:
		return s.echo(fd, c)
	}
	n, err := read(fd, c.head[c.have:])
	if err != nil {
		return err
	}
	if n == 0 {
		return errEnd
	}
	if c.have += n; c.have < headLen {
		return nil
	}
	h, err := parseHead(c.head[:])
	if err != nil {
		return err
	}
	c.op, c.have, c.slot, c.size = h.op, 0, h.slot, int(h.size)
	if c.op == Down {
		return s.poll.watch(fd, fd, unix.EPOLLOUT, unix.EPOLL_CTL_MOD)
	}
	return nil
}

func (s *server) take(fd int, c *served) error {
	n, err := drop(fd)
	if err != nil {
		return err
	}
	if n == 0 {
		return errEnd
	}
	s.board.Slot(c.slot).Add(uint64(n))
	return nil
}

func (s *server) echo(fd int, c *served) error {
	n, err := read(fd, s.buf[:c.size-c.have])
	if err != nil {
		return err
	}
	if n == 0 {
		return errEnd
	}
	if c.have == 0 {
		c.mark = s.buf[0]
	}
	if c.have += n; c.have < c.size {
		return nil
	}
	c.have = 0
	s.buf[0] = c.mark
	n, err = write(fd, s.buf[:c.size])
	if err == nil && n < c.size {
		err = errEnd // a reader that has taken the last answer leaves room for this one
	}
	return err
}

func (s *server) closeAll() {
	for fd := range s.conns {
		if s.conns[fd].open {
			unix.Close(fd)
		}
	}
}
