package client

import (
	"context"
	"net"
	"time"
)

// between is how long what comes from the control plane is left to gather, once
// everything was read. To wake a thread for a message, decrypt it, acknowledge it and
// make a view of it costs more than what it says; in a large mesh something changes all
// the time, and nobody notices whether it is known 10 ms sooner. After a silence nothing
// waits.
const between = 10 * time.Millisecond

// calmConn reads what has gathered.
type calmConn struct {
	net.Conn
	calm func() bool
	next time.Time // until when to wait; zero: there was more to read
}

// Read implements net.Conn. Only one goroutine reads.
func (c *calmConn) Read(p []byte) (int, error) {
	if !c.next.IsZero() && c.calm() {
		time.Sleep(time.Until(c.next))
	}
	n, err := c.Conn.Read(p)
	c.next = time.Time{}
	if n < len(p) {
		c.next = time.Now().Add(between)
	}
	return n, err
}

// dialCalmly connects. Until the mesh is known everything is read as it comes, and so is
// it where connections may wait for an answer.
func (c *Client) dialCalmly(ctx context.Context) (net.Conn, error) {
	conn, err := c.dial(ctx, c.target.network, c.target.address)
	if err != nil || c.cfg.OnDemand {
		return conn, err
	}
	return &calmConn{Conn: conn, calm: func() bool { return c.breath() != nil }}, nil
}
