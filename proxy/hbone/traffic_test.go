package hbone_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"syscall"
	"testing"
)

// TestChecksums moves 64 MiB each way at once, in writes of every size.
func TestChecksums(t *testing.T) {
	const size = 64 << 20
	send := func(w *net.TCPConn, seed byte) (sum [32]byte) {
		h := sha256.New()
		src := rand.NewChaCha8([32]byte{seed})
		r := rand.New(rand.NewPCG(uint64(seed), 1))
		buf := make([]byte, 300_000)
		for left := size; left > 0; {
			p := buf[:min(left, 1+r.IntN(len(buf)))]
			_, _ = src.Read(p)
			h.Write(p)
			mustWrite(t, w, p)
			left -= len(p)
		}
		_ = w.CloseWrite()
		return [32]byte(h.Sum(nil))
	}
	receive := func(r io.Reader) (sum [32]byte) {
		h := sha256.New()
		if n, err := io.Copy(h, struct{ io.Reader }{r}); n != size || err != nil {
			t.Errorf("received %d, %v", n, err)
		}
		return [32]byte(h.Sum(nil))
	}
	both := func(c *net.TCPConn, seed byte) (sent, received [32]byte) {
		var wg sync.WaitGroup
		wg.Go(func() { sent = send(c, seed) })
		received = receive(c)
		wg.Wait()
		return sent, received
	}
	type sums struct{ sent, received [32]byte }
	backend := make(chan sums, 1)
	r := newRig(t, serveApp(t, func(c *net.TCPConn) {
		s, got := both(c, 2)
		backend <- sums{s, got}
	}), nil)
	sent, got := both(r.dial(), 1)
	b := <-backend
	if sent != b.received || got != b.sent {
		t.Error("checksums differ")
	}
	checkResults(t, r, size, size)
}

func TestOneByteWrites(t *testing.T) {
	r := newRig(t, serveApp(t, echo), nil)
	c := r.dial()
	want := make([]byte, 64<<10)
	for i := range want {
		want[i] = byte(i * 7)
	}
	go func() {
		for i := range want {
			if _, err := c.Write(want[i : i+1]); err != nil {
				t.Error(err)
				return
			}
		}
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestThousandConnections(t *testing.T) {
	r := newRig(t, serveApp(t, echo), nil)
	before := runtime.NumGoroutine()
	var wg sync.WaitGroup
	conns := make([]*net.TCPConn, 1000)
	for i := range conns {
		wg.Go(func() {
			conns[i] = r.dial()
			mustWrite(t, conns[i], []byte("hello"))
			mustRead(t, conns[i], "hello")
		})
	}
	wg.Wait()
	st := r.pool.Stats()
	if st.Streams != 1000 || st.Tunnels < 10 || st.Tunnels > 12 || st.Keys != 1 {
		t.Errorf("%+v, want 1000 streams on about 10 tunnels", st)
	}
	// Idle, they hold none: what is left is the backend's own, and a few a tunnel.
	most := before + len(conns) + 20*st.Tunnels
	waitUntil(t, "idle connections hold no goroutine", func() bool { return runtime.NumGoroutine() <= most })
	for _, c := range conns {
		_ = c.CloseWrite()
	}
	for range conns {
		if res := <-r.clientDone; res.Err != nil || res.Sent != 5 || res.Received != 5 {
			t.Fatalf("%+v", res)
		}
	}
}

// TestReset: a reset of an application's connection arrives as a reset.
func TestReset(t *testing.T) {
	t.Run("by the client", func(t *testing.T) {
		got, read := make(chan error, 1), make(chan struct{})
		r := newRig(t, serveApp(t, func(c *net.TCPConn) {
			mustRead(t, c, "hello")
			close(read)
			_, err := c.Read(make([]byte, 1))
			got <- err
		}), nil)
		c := r.dial()
		mustWrite(t, c, []byte("hello"))
		<-read
		_ = c.SetLinger(0)
		c.Close()
		if err := <-got; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the server sees %v", err)
		}
		checkFailed(t, r)
	})
	t.Run("by the server", func(t *testing.T) {
		r := newRig(t, serveApp(t, func(c *net.TCPConn) {
			mustRead(t, c, "hello")
			_ = c.SetLinger(0)
		}), nil)
		c := r.dial()
		mustWrite(t, c, []byte("hello"))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client sees %v", err)
		}
		checkFailed(t, r)
	})
	t.Run("of the tunnel", func(t *testing.T) {
		r := newRig(t, serveApp(t, echo), nil)
		c := r.dial()
		mustWrite(t, c, []byte("hello"))
		mustRead(t, c, "hello")
		r.killTunnels()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client sees %v", err)
		}
		checkFailed(t, r)
		// The next connection finds a tunnel again.
		c = r.dial()
		mustWrite(t, c, []byte("again"))
		mustRead(t, c, "again")
	})
}

// checkFailed waits for both relays, which must have failed.
func checkFailed(t *testing.T, r *rig) {
	t.Helper()
	if res := <-r.clientDone; res.Err == nil {
		t.Error("client's relay: no error")
	}
	if res := <-r.serverDone; res.Err == nil {
		t.Error("server's relay: no error")
	}
}
