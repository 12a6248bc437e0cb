package ends

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Plan is what the client end is to do.
type Plan struct {
	Op     Op
	Conns  int  // at a time
	Size   int  // of a message, for Echo
	Fresh  bool // a new connection for each message, from connect to the answer
	Dst    func() netip.AddrPort
	Board  *Board // of the server, for Up
	Slot   uint32 // of the first connection
	Warm   time.Duration
	Length time.Duration
	Mark   func() // called when the window begins and when it ends

	// Hold, if it is not zero, opens so many connections, each of which has
	// carried one message each way, and keeps them. Warm and Length mean
	// nothing then.
	Hold int
}

// Result is what was seen within the window.
type Result struct {
	Took  time.Duration
	Bytes []uint64  // received by the other end, a connection
	Times Histogram // of messages, or of whole connections when Fresh
	Held  *Held
}

// stall is how long nothing may happen before that is an error.
const stall = 10 * time.Second

// sending is one connection of the client's.
type sending struct {
	fd        int
	connected bool
	have      int // bytes of the answer
	began     time.Time
	bytes     uint64
}

type client struct {
	Plan
	poll  *poll
	conns []sending
	buf   []byte // what is sent: a head and a message
	bulk  source
	in    []byte

	windowed bool
	times    *Histogram
	held     *Held
	started  int
	last     time.Time // when something happened
}

// Run plays the client end from the namespace of the calling thread, which the
// caller has locked.
func Run(ctx context.Context, p Plan) (r Result, err error) {
	c := &client{Plan: p, conns: make([]sending, p.Conns), in: make([]byte, block), times: &r.Times, last: time.Now()}
	c.buf = make([]byte, headLen+p.Size)
	if c.bulk, err = newSource(); err != nil {
		return r, err
	}
	defer c.bulk.close()
	if c.poll, err = newPoll(); err != nil {
		return r, err
	}
	defer c.poll.close()
	defer c.closeAll()
	if p.Hold > 0 {
		c.held = new(Held)
		defer func() {
			if err != nil {
				c.held.Close()
			}
		}()
	}
	begun := time.Now()
	for i := range c.conns {
		if err := c.open(i); err != nil {
			return r, err
		}
	}
	if p.Hold > 0 {
		err = c.until(ctx, func(time.Time) bool { return len(c.held.fds) == p.Hold })
		r.Took, r.Held = time.Since(begun), c.held
		return r, err
	}
	if err := c.until(ctx, func(now time.Time) bool { return now.Sub(begun) >= p.Warm }); err != nil {
		return r, err
	}
	before := c.received()
	p.Mark()
	c.windowed, begun = true, time.Now()
	if err := c.until(ctx, func(now time.Time) bool { return now.Sub(begun) >= p.Length }); err != nil {
		return r, err
	}
	r.Took = time.Since(begun)
	p.Mark()
	r.Bytes = c.received()
	for i := range r.Bytes {
		r.Bytes[i] -= before[i]
	}
	return r, nil
}

// until runs the loop.
func (c *client) until(ctx context.Context, done func(now time.Time) bool) error {
	for now := time.Now(); !done(now); now = time.Now() {
		if err := ctx.Err(); err != nil {
			return err
		}
		events, err := c.poll.wait(1)
		if err != nil {
			return err
		}
		if len(events) > 0 {
			c.last = now
		} else if now.Sub(c.last) > stall {
			return fmt.Errorf("nothing has moved for %s", stall)
		}
		for i := range events {
			n := int(events[i].Fd)
			if err := c.step(n); err != nil && !again(err) {
				return fmt.Errorf("connection %d of %d: %w", n+1, len(c.conns), err)
			}
		}
	}
	return nil
}

func (c *client) received() []uint64 {
	all := make([]uint64, len(c.conns))
	for i := range c.conns {
		if all[i] = c.conns[i].bytes; c.Op == Up {
			all[i] = c.Board.Slot(c.Slot + uint32(i)).Load()
		}
	}
	return all
}

func (c *client) open(i int) error {
	c.started++
	began := time.Now()
	fd, err := connect(c.Dst())
	if err != nil {
		return err
	}
	c.conns[i] = sending{fd: fd, began: began, bytes: c.conns[i].bytes}
	return c.poll.watch(fd, i, unix.EPOLLOUT, unix.EPOLL_CTL_ADD)
}

// step does what one connection is ready for.
func (c *client) step(i int) error {
	s := &c.conns[i]
	switch {
	case !s.connected:
		return c.begin(i)
	case c.Op == Up:
		return c.bulk.send(s.fd)
	case c.Op == Down:
		n, err := drop(s.fd)
		if err == nil && n == 0 {
			err = errEnd
		}
		s.bytes += uint64(n)
		return err
	}
	n, err := read(s.fd, c.in[:c.Size-s.have])
	if err != nil {
		return err
	}
	if n == 0 {
		return errEnd
	}
	if s.have += n; s.have < c.Size {
		return nil
	}
	return c.answered(i)
}

// begin sends the head, and with it the first message.
func (c *client) begin(i int) error {
	s := &c.conns[i]
	if err := failed(s.fd); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	s.connected = true
	h := head{op: c.Op, slot: c.Slot + uint32(i), size: uint32(c.Size)}.bytes()
	copy(c.buf, h[:])
	events, n := uint32(unix.EPOLLIN), headLen+c.Size
	if c.Op == Up {
		events, n = unix.EPOLLOUT, headLen
	} else if c.Op == Down {
		n = headLen
	}
	if !c.Fresh && c.Hold == 0 {
		s.began = time.Now()
	}
	if _, err := write(s.fd, c.buf[:n]); err != nil {
		return fmt.Errorf("the first bytes: %w", err)
	}
	if events == unix.EPOLLOUT {
		return nil
	}
	return c.poll.watch(s.fd, i, events, unix.EPOLL_CTL_MOD)
}

// answered takes the time of a message, and goes on.
func (c *client) answered(i int) error {
	s := &c.conns[i]
	now := time.Now()
	if c.windowed || c.Hold > 0 {
		c.times.Add(now.Sub(s.began))
	}
	switch {
	case c.Hold > 0:
		if err := c.poll.watch(s.fd, i, 0, unix.EPOLL_CTL_DEL); err != nil {
			return err
		}
		c.held.fds = append(c.held.fds, s.fd)
		s.fd = 0
		if c.started == c.Hold {
			return nil
		}
		return c.open(i)
	case c.Fresh:
		unix.Close(s.fd)
		s.fd = 0
		return c.open(i)
	}
	s.have, s.began = 0, now
	n, err := write(s.fd, c.buf[headLen:headLen+c.Size])
	if err == nil && n < c.Size {
		err = errors.New("no room for one message")
	}
	return err
}

func (c *client) closeAll() {
	for i := range c.conns {
		if fd := c.conns[i].fd; fd > 0 {
			unix.Close(fd)
		}
	}
}

// Held are idle connections.
type Held struct{ fds []int }

// Alive is how many of them have not been ended by the other side.
func (h *Held) Alive() (n int) {
	var b [1]byte
	for _, fd := range h.fds {
		if _, _, err := unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT); again(err) {
			n++
		}
	}
	return n
}

// Close closes them.
func (h *Held) Close() {
	for _, fd := range h.fds {
		unix.Close(fd)
	}
	h.fds = nil
}
