package admin

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"testing"
	"time"
)

// One address has so many connections to a port that is open to all and no more, however
// it keeps them; others are answered, and what ends makes room.
func TestCrowdIsBounded(t *testing.T) {
	l, err := net.Listen("tcp", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ServeOpen(ctx, l, ReadyHandler(NewReadiness()), slog.New(slog.DiscardHandler)) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	port := l.Addr().(*net.TCPAddr).Port
	hostile := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	var kept []net.Conn
	defer func() {
		for _, c := range kept {
			c.Close()
		}
	}()
	before := runtime.NumGoroutine()
	for range 20 * maxOfOne {
		c, err := hostile.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, c)
		fmt.Fprint(c, "POST /healthz/live HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
	}
	alive := func() (n int) {
		for _, c := range kept {
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			for {
				_, err := c.Read(make([]byte, 512))
				if err == nil {
					continue
				}
				if e, ok := err.(net.Error); ok && e.Timeout() {
					n++
				}
				break
			}
		}
		return n
	}
	if n := alive(); n > maxOfOne {
		t.Errorf("%d connections of one address are kept, at most %d may be", n, maxOfOne)
	}
	if n := runtime.NumGoroutine() - before; n > 3*maxOfOne {
		t.Errorf("%d goroutines for them", n)
	}
	get := func() (string, error) {
		client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		r, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz/live", port))
		if err != nil {
			return "", err
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		return string(b), err
	}
	if got, err := get(); err != nil || got != "live\n" {
		t.Errorf("beside them: %q, %v", got, err)
	}
	for _, c := range kept {
		c.Close()
	}
	kept = nil
	for deadline := time.Now().Add(20 * time.Second); ; {
		c, err := hostile.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(c, "GET /healthz/live HTTP/1.0\r\n\r\n")
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		b, _ := io.ReadAll(c)
		c.Close()
		if len(b) > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("there is no room after all have left")
		}
	}
}

// A body that never comes ends with its connection.
func TestCrowdHasItsTime(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- serve(ctx, &crowd{Listener: l}, server(ReadyHandler(NewReadiness()), slog.New(slog.DiscardHandler), 100*time.Millisecond))
	}()
	defer func() { cancel(); <-done }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "POST /healthz/live HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("the connection is still there: %v", err)
	}
}
