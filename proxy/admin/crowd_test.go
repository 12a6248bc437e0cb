package admin

import (
	"bytes"
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
	probe, err := hostile.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)) // kubelet's, from the same address
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(probe, "GET /healthz/live HTTP/1.0\r\n\r\n")
	_ = probe.SetReadDeadline(time.Now().Add(10 * time.Second))
	if b, err := io.ReadAll(probe); err != nil || !bytes.Contains(b, []byte("live")) {
		t.Errorf("from the same address: %q, %v", b, err)
	}
	probe.Close()
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
	for deadline := time.Now().Add(20 * time.Second); runtime.NumGoroutine()-before > 3*maxOfOne; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) { // those who made room end a moment later
			t.Fatalf("%d goroutines for them", runtime.NumGoroutine()-before)
		}
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

// caller is a connection that only says whose it is.
type caller struct {
	net.Conn
	who    net.IP
	closed bool
}

func (c *caller) RemoteAddr() net.Addr { return &net.TCPAddr{IP: c.who, Port: 1} }
func (c *caller) Close() error         { c.closed = true; return nil }

// callers is a listener with a queue of them.
type callers struct {
	net.Listener
	queue []net.Conn
}

func (l *callers) Accept() (net.Conn, error) {
	if len(l.queue) == 0 {
		return nil, net.ErrClosed
	}
	c := l.queue[0]
	l.queue = l.queue[1:]
	return c, nil
}

// Many addresses that fill a port together leave a place for one that has none, and places
// are counted right all the while.
func TestCrowdHasRoomForOthers(t *testing.T) {
	for _, perAddress := range []int{maxOfOne, 1} {
		queue := new(callers)
		l := &crowd{Listener: queue}
		accepted := make(map[*caller]net.Conn)
		call := func(i int) *caller {
			c := &caller{who: net.IPv4(10, 0, byte(i>>8), byte(i))}
			queue.queue = append(queue.queue, c)
			if v, err := l.Accept(); err == nil {
				accepted[c] = v
			}
			return c
		}
		var first, last *caller
		for i := range maxVisitors {
			if last = call(i / perAddress); i == 0 {
				first = last
			}
			if last.closed {
				t.Fatalf("caller %d has no place", i)
			}
		}
		probe := call(5000)
		if probe.closed || accepted[probe] == nil {
			t.Fatal("who had no connection was turned away")
		}
		if !first.closed || last.closed {
			t.Errorf("not the oldest of who had most made room")
		}
		again, same := call(maxVisitors/perAddress-1), 0
		for c := range accepted {
			if c.who.Equal(again.who) && !c.closed {
				same++
			}
		}
		if again.closed || accepted[again] == nil || same != perAddress {
			t.Errorf("who has %d has %d after one more, which is there %v", perAddress, same, !again.closed)
		}
		if l.all != maxVisitors {
			t.Errorf("%d places are taken, at most %d may be", l.all, maxVisitors)
		}
		for _, v := range accepted { // that of first, too, which lost its place already
			_ = v.Close()
			_ = v.Close()
		}
		if l.all != 0 || len(l.from) != 0 {
			t.Errorf("%d places of %d addresses are taken, and nobody is there", l.all, len(l.from))
		}
	}
}
