package admin

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

// openScrapes serves metrics of some megabytes, by a share of time, and says where.
func openScrapes(t *testing.T, share time.Duration, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- ServeOpen(ctx, l, (&scrapes{share: share}).handler(h), slog.New(slog.DiscardHandler))
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// many are metrics that fill any socket's buffers.
var many = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
	line := bytes.Repeat([]byte("x"), 64<<10)
	for range 256 {
		if _, err := w.Write(line); err != nil {
			return
		}
	}
})

// askFrom asks for the metrics from 127.0.0.<who>.
func askFrom(t *testing.T, who byte, addr string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, who)}}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, "GET /metrics HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	return c
}

// begins waits for the beginning of an answer, and reads no more.
func begins(t *testing.T, c net.Conn) string {
	t.Helper()
	b := make([]byte, len("HTTP/1.0 200"))
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func whole(t *testing.T, c net.Conn) {
	t.Helper()
	b, err := io.ReadAll(c)
	if err != nil || len(b) < 16<<20 || !bytes.HasPrefix(b, []byte("HTTP/1.0 200")) {
		t.Errorf("%d bytes, %v: %.100q", len(b), err, b)
	}
}

// Whoever asks and does not read has his own address wait, and nobody else.
func TestScrapesOfOneAddress(t *testing.T) {
	addr := openScrapes(t, time.Hour, many)
	begins(t, askFrom(t, 2, addr))
	for range maxQueued {
		askFrom(t, 2, addr)
	}
	for {
		c := askFrom(t, 2, addr) // some of the others may come after it, but not all
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if b, _ := io.ReadAll(c); bytes.HasPrefix(b, []byte("HTTP/1.0 503")) {
			break
		}
		if t.Context().Err() != nil {
			t.Fatal("they all wait")
		}
	}
	whole(t, askFrom(t, 3, addr))
}

// Where there is no place those who have theirs give way, after a while.
func TestScrapesGiveWay(t *testing.T) {
	addr := openScrapes(t, time.Millisecond, many)
	for i := range byte(maxScrapes) {
		begins(t, askFrom(t, 10+i, addr))
	}
	whole(t, askFrom(t, 3, addr))
	begins(t, askFrom(t, 4, addr)) // does not read on
	whole(t, askFrom(t, 4, addr))
}

// No more are answered at a time than there are places, and each is.
func TestScrapesAtATime(t *testing.T) {
	var now, most atomic.Int32
	entered, goOn := make(chan struct{}, 100), make(chan struct{})
	addr := openScrapes(t, time.Hour, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		entered <- struct{}{}
		<-goOn
		fmt.Fprintln(w, "there")
	}))
	var all []net.Conn
	for i := range byte(3 * maxScrapes) {
		all = append(all, askFrom(t, 10+i, addr))
	}
	all = append(all, askFrom(t, 10, addr))
	for range maxScrapes {
		<-entered
	}
	close(goOn)
	for _, c := range all {
		if b, err := io.ReadAll(c); err != nil || !bytes.HasSuffix(b, []byte("there\n")) {
			t.Errorf("%q, %v", b, err)
		}
	}
	if n := most.Load(); n != maxScrapes {
		t.Errorf("%d at a time", n)
	}
}

// Who leaves before his turn has no place in the queue.
func TestScrapesAreGivenUp(t *testing.T) {
	l := &scrapes{share: time.Hour}
	one := func() *scrape { return &scrape{until: func(time.Time) {}} }
	first := one()
	if !l.enter(t.Context(), first) {
		t.Fatal("no place for the first")
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for range 3 * maxQueued {
		if l.enter(gone, one()) {
			t.Fatal("a second one of the address beside the first")
		}
	}
	l.leave(first)
	if !l.enter(t.Context(), one()) || len(l.lanes) != 0 {
		t.Error("no place after the first has left")
	}
}
