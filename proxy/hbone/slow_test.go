package hbone_test

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warren-mesh/warren/proxy/hbone"
)

// stalled is a connection at one end of which is written until nothing is taken any
// more. Its reader begins when it is told to.
type stalled struct {
	c      *net.TCPConn
	wrote  atomic.Int64
	writer sync.WaitGroup
}

func (s *stalled) fill(c *net.TCPConn) {
	s.writer.Go(func() {
		for buf := make([]byte, 64<<10); ; {
			n, err := c.Write(buf)
			s.wrote.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
}

// TestSlowReaders: eight connections whose readers stall fill their windows and
// nothing else. The ninth, on the same tunnel, is not held up, and not a byte of the
// eight is lost.
func TestSlowReaders(t *testing.T) {
	for _, way := range []string{"up", "down"} {
		t.Run(way, func(t *testing.T) { slowReaders(t, way == "up") })
	}
}

func slowReaders(t *testing.T, up bool) {
	const (
		window = 1 << 20 // what a stalled stream can hold, at most
		shared = 4 << 20 // what all streams together may have on the way to their applications
		much   = 64 << 20
		kernel = 32 << 20 // what four sockets buffer, however they are tuned
	)
	accepted := make(chan *net.TCPConn, 9)
	over := make(chan struct{})
	r := newRig(t, serveApp(t, func(c *net.TCPConn) { accepted <- c; <-over }), func(r *rig) {
		r.cfg = hbone.Config{StreamWindow: window, InitialWindow: window, ConnWindow: shared}
	})
	defer close(over)
	// pair is one connection: who writes, and who reads.
	pair := func() (w, rd *net.TCPConn) {
		c := r.dial()
		s := <-accepted
		if up {
			return c, s
		}
		return s, c
	}
	var all []*stalled
	var writers []*net.TCPConn
	for range 8 { // before there is bulk, which has new ones go to another tunnel
		w, rd := pair()
		all, writers = append(all, &stalled{c: rd}), append(writers, w)
	}
	w, rd := pair()
	alone := move(t, w, rd, much)
	for i, s := range all {
		s.fill(writers[i])
		defer s.writer.Wait()
		defer writers[i].Close()
	}
	for _, s := range all { // together they hold twice what the tunnel would let pass
		waitUntil(t, "it stalls", func() bool { return s.wrote.Load() >= window })
	}
	heap := heapInUse()
	beside := move(t, w, rd, much)
	t.Logf("%d MiB take %v alone and %v beside eight that stall", much>>20, alone, beside)
	if n := heapInUse(); n > heap+8*window+16<<20 {
		t.Errorf("%d MiB in use, were %d: more than the windows of the stalled are held", n>>20, heap>>20)
	}
	for _, s := range all {
		// The ninth has moved all it had meanwhile; they have stood still.
		if n := s.wrote.Load(); n < window || n > window+kernel {
			t.Errorf("a stalled connection has taken %d KiB", n>>10)
		}
	}
	if st := r.pool.Stats(); st.Tunnels != 1 {
		t.Errorf("%+v: not on one tunnel", st)
	}
	for _, s := range all { // what is there arrives, and they go on
		want := s.wrote.Load() + 4<<20
		if n, err := io.CopyN(io.Discard, s.c, want); err != nil {
			t.Errorf("read later: %d of %d bytes, %v", n, want, err)
		}
	}
}

// move sends n bytes through a connection and returns how long that took.
func move(t *testing.T, w, rd *net.TCPConn, n int64) time.Duration {
	t.Helper()
	start := time.Now()
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1<<20)
		for left := n; left > 0; {
			k, err := w.Write(buf[:min(left, int64(len(buf)))])
			if left -= int64(k); err != nil {
				t.Error(err)
				return
			}
		}
	})
	_ = rd.SetReadDeadline(start.Add(time.Minute)) // for what never comes
	if got, err := io.CopyN(io.Discard, rd, n); err != nil {
		t.Fatalf("moved %d of %d bytes: %v", got, n, err)
	}
	_ = rd.SetReadDeadline(time.Time{})
	wg.Wait()
	return time.Since(start)
}
