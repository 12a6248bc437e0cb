package client

import (
	"context"
	"net"
	"time"
)

// What comes from the control plane is left to gather, once everything was read. To wake a
// thread for a message, decrypt it, acknowledge it and make a view of it costs more than
// what it says, and traffic that is under way notices. After a silence nothing waits; while
// there is no end of changes, as in a large mesh, each wait is longer than the one before.
// But a message that is large is read as it comes: its sender waits for us.
const (
	between    = 10 * time.Millisecond
	betweenMax = 80 * time.Millisecond
	plenty     = 16 << 10
)

// calmConn reads what has gathered.
type calmConn struct {
	net.Conn
	calm func() bool
	next time.Time     // until when to wait; zero: there was more to read
	wait time.Duration // that was the last time
	had  int           // bytes, since then
}

// Read implements net.Conn. Only one goroutine reads.
func (c *calmConn) Read(p []byte) (int, error) {
	if !c.next.IsZero() && c.calm() {
		time.Sleep(time.Until(c.next))
	}
	before := time.Now()
	n, err := c.Conn.Read(p)
	now := time.Now()
	if now.Sub(before) > between {
		c.wait = 0 // nothing had gathered
	}
	c.next = time.Time{}
	c.had += n
	if n == len(p) {
		return n, err
	}
	if c.had < plenty {
		c.wait = min(max(2*c.wait, between), betweenMax)
		c.next = now.Add(c.wait)
	} else {
		c.wait = 0
	}
	c.had = 0
	return n, err
}

// dialCalmly connects. Until the mesh is known everything is read as it comes, and so is
// it where connections may wait for an answer.
func (c *Client) dialCalmly(ctx context.Context) (net.Conn, error) {
	conn, err := c.dial(ctx, c.target.network, c.target.address)
	if err != nil || c.cfg.OnDemand {
		return conn, err
	}
	return &calmConn{Conn: conn, calm: c.serving}, nil
}
