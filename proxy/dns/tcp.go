package dns

import (
	"context"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Listener is a *net.TCPListener.
type Listener interface {
	net.Listener
	SetDeadline(t time.Time) error
}

// listening makes a listener a socket.
type listening struct{ Listener }

func (l listening) SetReadDeadline(t time.Time) error { return l.SetDeadline(t) }

// ServeStream answers what comes over connections to l, which it takes over, until
// the server or l is closed.
func (s *Server) ServeStream(l Listener) {
	release, ok := s.hold(listening{l})
	if !ok {
		return
	}
	defer release()
	var pause time.Duration
	for {
		c, err := l.Accept()
		if err != nil {
			if s.again(err, &pause) {
				continue
			}
			return
		}
		pause = 0
		s.connect(c)
	}
}

// connect serves a connection, unless there are too many.
func (s *Server) connect(c net.Conn) {
	select {
	case s.conns <- struct{}{}:
	default:
		_ = c.Close()
		return
	}
	if err := s.cfg.Take(); err != nil {
		<-s.conns
		_ = c.Close()
		return
	}
	undo := func() { s.cfg.Give(); <-s.conns }
	release, ok := s.hold(c)
	if !ok {
		undo()
		return
	}
	go func() {
		s.stream(c)
		_ = c.Close() // before its place is given back
		undo()
		release() // last: whoever waits for the server finds nothing counted
	}()
}

// stream answers the queries of a connection, each as soon as it can be.
func (s *Server) stream(c net.Conn) {
	w := &writer{c: c, limit: s.cfg.Limits.Idle}
	flying := make(chan struct{}, s.cfg.Limits.Pipelined)
	var pending sync.WaitGroup
	defer pending.Wait()
	buf := make([]byte, minUDP)
	for s.soft.Err() == nil {
		s.deadline(c)
		raw, err := readMessage(c)
		if err != nil {
			return
		}
		var reply []byte
		var t *task
		s.inTurn(func() {
			if reply, t = s.begin(raw, TCP, buf); reply != nil {
				w.write(reply)
			}
		})
		switch {
		case t == nil && reply == nil:
			return // not a query: nothing that follows will make sense
		case t == nil:
			runtime.Gosched() // or a client that asks and reads fast enough has the thread
			continue
		case !s.take(t):
			w.write(t.q.failure(dns.RcodeServerFailure))
			continue
		}
		if s.cfg.AskedTCP != nil {
			t.asked = func() (netip.AddrPort, error) { return s.cfg.AskedTCP(c) }
		}
		if t.q.transfer() {
			pending.Wait()
			s.transfer(c, t)
			s.give()
			return
		}
		flying <- struct{}{}
		pending.Go(func() {
			defer func() { <-flying; s.give() }()
			if reply := s.finish(s.hard, t); reply != nil {
				w.write(reply)
			}
		})
	}
}

// deadline is for the next message, whole. Shutdown's must not be undone.
func (s *Server) deadline(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		_ = c.SetReadDeadline(time.Now().Add(s.cfg.Limits.Idle))
	}
}

// writer writes answers, one at a time. After one that failed there are no more.
type writer struct {
	c     net.Conn
	limit time.Duration

	mu     sync.Mutex
	failed bool
}

func (w *writer) write(m []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed {
		return
	}
	_ = w.c.SetWriteDeadline(time.Now().Add(w.limit))
	if _, err := w.c.Write(framed(m)); err != nil {
		w.failed = true
		_ = w.c.Close() // wakes the reader
	}
}

// transfer carries a zone transfer, whose answer is many messages: bytes both ways
// until the server ends or rests for too long. The client has nothing more to say, and
// may close its half, which the server is told; what it takes it has to take in time.
func (s *Server) transfer(c net.Conn, t *task) {
	servers, _ := s.resolvers(t)
	start := time.Now()
	up, err := s.dialFirst(servers)
	s.cfg.Metrics.Upstream(TCP, t.q.qtype, time.Since(start), err != nil)
	if err != nil {
		s.count(&t.q, Failed, Decision{}, err)
		w := &writer{c: c, limit: s.cfg.Limits.Idle}
		w.write(t.q.failure(dns.RcodeServerFailure))
		return
	}
	defer s.cfg.Give()
	s.count(&t.q, Forwarded, Decision{}, nil)
	both := func() { _ = up.Close(); _ = c.Close() }
	stop := context.AfterFunc(s.hard, both)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		half, ok := up.(interface{ CloseWrite() error })
		if !s.write(up, framed(t.q.raw)) || s.copy(up, c, 0) != io.EOF || !ok || half.CloseWrite() != nil {
			both()
		}
	})
	_ = s.copy(c, up, s.cfg.Limits.Transfer)
	both()
	wg.Wait()
}

// dialFirst connects to the first resolver that lets us, and counts the socket.
func (s *Server) dialFirst(servers []netip.AddrPort) (net.Conn, error) {
	if err := s.cfg.Take(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(s.hard, s.cfg.Limits.Upstream)
	defer cancel()
	err := errNoResolver
	for _, server := range servers {
		var c net.Conn
		if c, err = s.cfg.Dial(ctx, "tcp", server); err == nil {
			return c, nil
		}
	}
	s.cfg.Give()
	return nil, err
}

func (s *Server) write(c net.Conn, b []byte) bool {
	_ = c.SetWriteDeadline(time.Now().Add(s.cfg.Limits.Idle))
	_, err := c.Write(b)
	return err == nil
}

// copy carries bytes until the source ends, which is io.EOF, or rests for too long.
func (s *Server) copy(dst, src net.Conn, idle time.Duration) error {
	buf := make([]byte, 32<<10)
	var deadline time.Time // none
	for {
		if idle > 0 {
			deadline = time.Now().Add(idle)
		}
		_ = src.SetReadDeadline(deadline)
		n, err := src.Read(buf)
		if n > 0 && !s.write(dst, buf[:n]) {
			return net.ErrClosed
		}
		if err != nil {
			return err
		}
	}
}
