package bench

import (
	"bufio"
	"net"
	"sync/atomic"
	"time"
)

// answersEvery is how often answers are read while changes are told. To wake for each
// would cost the control plane as much again as to send what is answered.
const answersEvery = 20 * time.Millisecond

// lazyListener accepts connections that are read from in larger pieces while lazy is set.
type lazyListener struct {
	net.Listener
	lazy *atomic.Bool
}

// Accept is of net.Listener.
func (l lazyListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &lazyConn{c, bufio.NewReaderSize(c, 64<<10), l.lazy}, nil
}

type lazyConn struct {
	net.Conn
	in   *bufio.Reader
	lazy *atomic.Bool
}

// Read is of net.Conn.
func (c *lazyConn) Read(b []byte) (int, error) {
	if c.in.Buffered() == 0 && c.lazy.Load() {
		time.Sleep(answersEvery)
	}
	return c.in.Read(b)
}
