package controlplane

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"
)

// One address has its share of a port and no more, and takes nothing from another; what
// ends makes room.
func TestPerAddress(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := &lockedBuffer{}
	const most = 3
	l := newPerAddress(inner, most, slog.New(slog.NewTextHandler(log, nil)))
	accepted := make(chan net.Conn, 100)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		for c := range accepted {
			_ = c.Close()
		}
	})
	dial := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.DialContext(t.Context(), "tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	// closed reads until the other end is closed.
	closed := func(c net.Conn) {
		t.Helper()
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := c.Read(make([]byte, 1)); errors.Is(err, io.EOF) || err != nil && strings.Contains(err.Error(), "reset") {
			return
		}
		t.Fatal("a connection past the bound is open")
	}
	var first net.Conn
	for range most {
		dial("127.0.0.1")
		first = <-accepted
	}
	closed(dial("127.0.0.1"))
	closed(dial("127.0.0.1"))
	dial("127.0.0.2")
	<-accepted
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	_ = first.Close() // twice is once
	dial("127.0.0.1")
	<-accepted
	closed(dial("127.0.0.1"))
	if n := strings.Count(log.String(), "--connections-per-address"); n != 3 {
		t.Errorf("%d lines:\n%s", n, log)
	}
	if newPerAddress(inner, 0, nil) != inner {
		t.Error("none is a bound")
	}
}
