package client

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// pipeConn gives what comes on a channel.
type pipeConn struct {
	net.Conn
	in chan int // bytes
}

func (c *pipeConn) Read(p []byte) (int, error) {
	n, ok := <-c.in
	if !ok {
		return 0, io.EOF
	}
	return min(n, len(p)), nil
}

// TestCalmReads: the first after a silence is read at once, those that follow together,
// later and later, and nothing waits while there is more, or before there is calm.
func TestCalmReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calm := true
		raw := &pipeConn{in: make(chan int)}
		c := &calmConn{Conn: raw, calm: func() bool { return calm }}
		read := func(n int) time.Duration {
			t.Helper()
			start := time.Now()
			go func() { raw.in <- n }()
			if got, err := c.Read(make([]byte, 100)); got != n || err != nil {
				t.Fatalf("%d, %v", got, err)
			}
			return time.Since(start)
		}
		for i, want := range []time.Duration{0, between, 2 * between, 4 * between, betweenMax, betweenMax} {
			if d := read(1); d != want {
				t.Errorf("read %d: after %v, want %v", i, d, want)
			}
		}
		if d := read(100); d != betweenMax {
			t.Errorf("after %v", d)
		}
		for range 3 { // as much as there was room for: there is more
			if d := read(100); d != 0 {
				t.Errorf("more was there, and waited for %v", d)
			}
		}
		go func() { time.Sleep(time.Hour); raw.in <- 1 }()
		if _, err := c.Read(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		if d := read(1); d != between {
			t.Errorf("soon after a silence: %v", d)
		}
		calm = false
		for range 3 {
			if d := read(1); d != 0 {
				t.Errorf("before the mesh is known: after %v", d)
			}
		}
	})
}
