package hbone_test

import (
	"net"
	"testing"
)

// TestHalfClose: each end of a connection may end its direction first, and the
// other direction goes on.
func TestHalfClose(t *testing.T) {
	t.Run("clientFirst", func(t *testing.T) {
		r := newRig(t, serveApp(t, func(c *net.TCPConn) {
			mustRead(t, c, "question")
			mustEOF(t, c)
			mustWrite(t, c, []byte("late answer"))
		}), nil)
		c := r.dial()
		mustWrite(t, c, []byte("question"))
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		mustRead(t, c, "late answer")
		mustEOF(t, c)
		checkResults(t, r, 8, 11)
	})
	t.Run("serverFirst", func(t *testing.T) {
		got := make(chan string, 1)
		r := newRig(t, serveApp(t, func(c *net.TCPConn) {
			mustWrite(t, c, []byte("banner"))
			if err := c.CloseWrite(); err != nil {
				t.Error(err)
			}
			mustRead(t, c, "late bytes")
			mustEOF(t, c)
			got <- "all"
		}), nil)
		c := r.dial()
		mustRead(t, c, "banner")
		mustEOF(t, c)
		mustWrite(t, c, []byte("late bytes"))
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		<-got
		checkResults(t, r, 10, 6)
	})
}

// checkResults waits for both relays and compares what they counted.
func checkResults(t *testing.T, r *rig, up, down int64) {
	t.Helper()
	if res := <-r.clientDone; res.Sent != up || res.Received != down || res.Err != nil {
		t.Errorf("client's relay: %+v, want %d up, %d down", res, up, down)
	}
	if res := <-r.serverDone; res.Sent != down || res.Received != up || res.Err != nil {
		t.Errorf("server's relay: %+v, want %d up, %d down", res, down, up)
	}
}
