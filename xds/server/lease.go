package server

import (
	"context"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"
)

// lingering is how long a stream that has ended may have responses left that are not
// written yet: its end is written after them.
const lingering = 5 * time.Second

// leases are what gRPC holds of the responses on one stream. It takes them at once, and
// lets go of them when they are written or the stream is deleted. A client that does not
// read puts off both, beyond the end of the stream, for as long as its connection lives.
type leases struct {
	budget *budget

	mu    sync.Mutex
	open  int    // responses
	bytes int64  // that were taken of the budget for them
	ended func() // after the stream: nothing is open any more
}

// add notes one more response, for which n bytes were taken. It returns what gRPC's
// letting go of it calls.
func (l *leases) add(n int64) (end func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open++
	l.bytes += n
	return sync.OnceFunc(func() { l.end(n) })
}

func (l *leases) end(n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == 0 {
		return // the connection was closed before
	}
	l.open--
	l.bytes -= n
	l.budget.give(n)
	if l.open == 0 && l.ended != nil {
		l.ended()
	}
}

// finish is the end of the stream: it calls done when gRPC holds nothing of it any more,
// for which the connection is closed if that does not come about by itself in time.
func (l *leases) finish(within time.Duration, hangUp, done func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == 0 {
		done()
		return
	}
	timer := time.AfterFunc(within, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.open > 0 {
			hangUp()
			l.budget.give(l.bytes)
			l.open, l.bytes = 0, 0
			done()
		}
	})
	l.ended = func() { timer.Stop(); done() }
}

// lastBuffer makes what gRPC frees last of a response: it says so.
func lastBuffer(data []byte, end func()) mem.Buffer {
	if end == nil {
		return mem.SliceBuffer(data)
	}
	counted := append(make([]byte, 0, leastPooled+len(data)), data...)
	return mem.NewBuffer(&counted, freed(end))
}

// leastPooled is above the size from which on gRPC gives buffers back.
const leastPooled = 1<<10 + 1

// freed is a pool that a buffer is given back to, and takes none from.
type freed func()

func (f freed) Get(n int) *[]byte { b := make([]byte, n); return &b }

func (f freed) Put(*[]byte) { f() }

// Listener has the server close connections whose clients do not take what they are sent.
// Without it they can only be told that their streams have ended, which they do not read.
func Listener(l net.Listener) net.Listener { return listener{l} }

type listener struct{ net.Listener }

// Accept implements net.Listener.
func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return accepted{c}, nil
}

// accepted is a connection that is found by its addresses, which are all that gRPC shows a
// service of it: by our own, for callers are told apart by theirs, whose type they know.
type accepted struct{ net.Conn }

// LocalAddr implements net.Conn.
func (c accepted) LocalAddr() net.Addr { return local{c.Conn.LocalAddr(), c.Conn} }

type local struct {
	net.Addr
	conn net.Conn
}

// hangUp closes the connection of a stream.
func hangUp(stream context.Context) {
	p, _ := peer.FromContext(stream)
	if p == nil {
		return
	}
	if c, ok := p.LocalAddr.(local); ok {
		_ = c.conn.Close() // whoever serves it sees why
	}
}
