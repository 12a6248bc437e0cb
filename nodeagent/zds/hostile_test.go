package zds

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/nstest"
)

// TestServerDropsProxies shows what ends a proxy's connection.
func TestServerDropsProxies(t *testing.T) {
	nstest.Require(t)
	nstest.LeakCheck(t)
	a := newAgentWithin(t, 100*time.Millisecond)
	hello, ack := []byte("\x08\x01"), []byte("\x0a\x00")
	file := open(t, "/proc/self/ns/net")
	packets := func(all ...[]byte) func(*conn) {
		return func(c *conn) {
			for _, b := range all {
				c.Write(b) // the end may come in between
			}
		}
	}
	for name, speak := range map[string]func(*conn){
		"no hello":                 func(*conn) {},
		"junk for a hello":         packets([]byte("GET / HTTP/1.1\r\n\r\n")),
		"a version of the future":  packets([]byte("\x08\x02")),
		"two hellos":               packets(hello, hello),
		"more acks than messages":  packets(hello, ack, ack),
		"a packet too long":        packets(bytes.Repeat(hello, 1000)),
		"a hello with descriptor":  func(c *conn) { c.WriteMsgUnix(hello, unix.UnixRights(int(file.Fd())), nil) },
		"no ack":                   packets(hello),
		"no ack but another hello": func(c *conn) { c.Write(hello); c.receive(); c.Write([]byte("\x0a")) },
		"a refused snapshot":       func(c *conn) { c.Write(hello); c.receive(); c.Write([]byte("\x0a\x04\x0a\x02no")) },
		"an ack unasked for": func(c *conn) {
			c.Write(hello)
			c.receive()
			c.Write(ack)
			eventually(t, func() bool { return a.Connected() == 1 })
			c.Write(ack)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := dialRaw(t, a.path)
			speak(c)
			eventually(t, func() bool { return a.State().Connections == 0 })
			c.SetReadDeadline(time.Now().Add(5 * time.Second))
			for {
				_, _, err := c.receive()
				if err == nil {
					continue // the snapshot
				}
				if !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("the connection is still there: %v", err)
				}
				break
			}
			c.Close()
		})
	}
	if f, _ := proxy(t, a); !f.Synced() {
		t.Error("a proxy that knows the protocol is not served")
	}
}

// TestLateAckIsNotTakenForTheNext is the fault that matching by order invites.
func TestLateAckIsNotTakenForTheNext(t *testing.T) {
	nstest.Require(t)
	nstest.LeakCheck(t)
	a := newAgentWithin(t, 50*time.Millisecond)
	c := dialRaw(t, a.path)
	c.Write([]byte("\x08\x01"))
	c.receive()
	c.Write([]byte("\x0a\x00"))
	eventually(t, func() bool { return a.Connected() == 1 })
	added := make(chan error, 1)
	one := pod(t, "one")
	go func() { added <- a.Add(within(t), one) }()
	if _, files, err := c.receive(); err != nil || len(files) != 1 {
		t.Fatalf("%d descriptors, %v", len(files), err)
	} else {
		closeAll(files)
	}
	if err := <-added; err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("without an ack: %v", err)
	}
	c.Write([]byte("\x0a\x00"))
	eventually(t, func() bool { return a.State().Connections == 0 })
}

func TestTooManyProxies(t *testing.T) {
	nstest.LeakCheck(t)
	a := newAgent(t)
	for range maxSessions {
		dialRaw(t, a.path)
	}
	eventually(t, func() bool { return a.State().Connections == maxSessions })
	c := dialRaw(t, a.path)
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, _, err := c.receive(); !errors.Is(err, io.EOF) {
		t.Errorf("one too many was not turned away: %v", err)
	}
}

// fakeAgent accepts one connection at a time and takes the hello.
type fakeAgent struct {
	t *testing.T
	l *Listener
}

func newFakeAgent(t *testing.T) *fakeAgent {
	t.Helper()
	l, err := Listen(network, filepath.Join(t.TempDir(), "z.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &fakeAgent{t: t, l: l}
}

func (f *fakeAgent) accept() *conn {
	f.t.Helper()
	f.l.SetDeadline(time.Now().Add(5 * time.Second))
	nc, err := f.l.AcceptUnix()
	if err != nil {
		f.t.Fatalf("the client did not come: %v", err)
	}
	f.t.Cleanup(func() { nc.Close() })
	c := &conn{UnixConn: nc}
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if b, _, err := c.receive(); err != nil || string(b) != "\x08\x01" {
		f.t.Fatalf("hello: %x, %v", b, err)
	}
	return c
}

func (f *fakeAgent) ack(c *conn) string {
	f.t.Helper()
	b, _, err := c.receive()
	if err != nil {
		f.t.Fatalf("no ack: %v", err)
	}
	text, err := decodeAck(b)
	if err != nil {
		f.t.Fatal(err)
	}
	return text
}

// TestClientRefuses shows what the proxy's end answers and then hangs up on.
func TestClientRefuses(t *testing.T) {
	nstest.Require(t)
	nstest.LeakCheck(t)
	agent := newFakeAgent(t)
	f := NewFakeProxy(agent.l.path)
	stop := start(t, f.Run)
	bytesOf := func(r request) []byte {
		b, err := r.encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	ns, _ := nstest.NewNS(t, "one")
	fd := int(ns.File().Fd())
	null := int(open(t, os.DevNull).Fd())
	all := requests()
	for _, c := range []struct {
		name   string
		before []request // sent first, and acked
		packet []byte
		fds    []int
		want   string
	}{
		{name: "add without descriptor", packet: bytesOf(all["add"]), want: "0 file descriptors"},
		{name: "add with two", packet: bytesOf(all["add"]), fds: []int{fd, fd}, want: "2 file descriptors"},
		{name: "add with many", packet: bytesOf(all["add"]), fds: []int{fd, fd, fd, fd, fd, fd, fd}, want: "more ancillary data"},
		{name: "add with another file", packet: bytesOf(all["add"]), fds: []int{null}, want: "not a network namespace"},
		{name: "keep with descriptor", packet: bytesOf(all["keep"]), fds: []int{fd}, want: "KeepWorkload with 1"},
		{name: "del with descriptor", packet: bytesOf(all["del"]), fds: []int{fd}, want: "DelWorkload with 1"},
		{name: "snapshot with descriptor", packet: bytesOf(all["snapshot"]), fds: []int{fd}, want: "SnapshotSent with 1"},
		{name: "keep after the snapshot", before: []request{all["snapshot"]}, packet: bytesOf(all["keep"]), want: "after the snapshot"},
		{name: "two snapshots", before: []request{all["keep"], all["snapshot"]}, packet: bytesOf(all["snapshot"]), want: "after the snapshot"},
		{name: "junk", packet: []byte("\xff\xff\xff"), want: "not a WorkloadRequest"},
		{name: "junk with descriptor", packet: []byte("\xff"), fds: []int{fd}, want: "not a WorkloadRequest"},
		{name: "add without info", packet: []byte("\x0a\x03\x0a\x01u"), fds: []int{fd}, want: "workload_info"},
		{name: "too long", packet: bytes.Repeat([]byte("x"), 2000), want: "more than 1024"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := agent.accept()
			for _, r := range c.before {
				conn.Write(bytesOf(r))
				if text := agent.ack(conn); text != "" {
					t.Fatalf("%s: %s", r.kind, text)
				}
			}
			var rights []byte
			if len(c.fds) > 0 {
				rights = unix.UnixRights(c.fds...)
			}
			if _, _, err := conn.WriteMsgUnix(c.packet, rights, nil); err != nil {
				t.Fatal(err)
			}
			text := agent.ack(conn)
			if !strings.HasPrefix(text, "failure to read message: ") || !strings.Contains(text, c.want) {
				t.Errorf("acked with %q, want %q", text, c.want)
			}
			if _, _, err := conn.receive(); !errors.Is(err, io.EOF) {
				t.Errorf("the client did not hang up: %v", err)
			}
			conn.Close()
		})
	}
	if got := uids(f); got != "" {
		t.Errorf("it serves %q", got)
	}
	stop()
}

// TestClientAnswersHandlerErrors goes on after them.
func TestClientAnswersHandlerErrors(t *testing.T) {
	nstest.Require(t)
	nstest.LeakCheck(t)
	agent := newFakeAgent(t)
	f := NewFakeProxy(agent.l.path)
	f.OnAdd(func(context.Context, string, Info) error { return errors.New(strings.Repeat("long ", 1000)) })
	stop := start(t, f.Run)
	c := agent.accept()
	ns, _ := nstest.NewNS(t, "one")
	b, err := requests()["add"].encode()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.send(b, ns); err != nil {
			t.Fatal(err)
		}
		if text := agent.ack(c); !strings.HasPrefix(text, "long long") || len(text) > maxAckText {
			t.Errorf("acked with %d bytes: %.40q", len(text), text)
		}
	}
	c.Close()
	stop()
}

// TestClientBacksOff does not let an agent that hangs up at once keep it busy.
func TestClientBacksOff(t *testing.T) {
	nstest.LeakCheck(t)
	agent := newFakeAgent(t)
	f := NewFakeProxy(agent.l.path)
	stop := start(t, f.Run)
	began := time.Now()
	for range 4 {
		agent.accept().Close()
	}
	if took := time.Since(began); took < 140*time.Millisecond { // 20 + 40 + 80 ms
		t.Errorf("four connections within %s", took)
	}
	stop()
}

func TestListen(t *testing.T) {
	nstest.LeakCheck(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "sub", "z.sock")
	l, err := Listen(network, path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, err := Listen(network, path); !errors.Is(err, ErrInUse) {
		t.Errorf("over a live socket: %v", err)
	}
	if _, err := Listen("unix", path); !errors.Is(err, ErrInUse) {
		t.Errorf("over a live socket of another type: %v", err)
	}
	l.UnixListener.Close() // as a crash would
	if _, err := net.Dial(network, path); err == nil {
		t.Error("a dead socket answers")
	}
	again, err := Listen(network, path)
	if err != nil {
		t.Fatalf("over a dead socket: %v", err)
	}
	l.Close() // must not remove the successor's
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the successor's socket: %v", err)
	}
	again.Close()
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := Listen(network, path); err == nil {
		l.Close()
		t.Error("an ordinary file was replaced")
	}
}
