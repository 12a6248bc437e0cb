package ready

import (
	"errors"
	"net"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sockets returns a connection, the second end of which is a Socket.
func sockets(t *testing.T) (net.Conn, *Socket) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	k := new(Socket)
	if err := k.Take(c.(*net.TCPConn)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return peer, k
}

func newSet(t *testing.T, loops int) *Set {
	t.Helper()
	s, err := New(loops)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// told is a handler.
type told chan Events

func (h told) Notify(e Events, _ *Turn) { h <- e }

// TestAStaleEvent: one that the kernel has given out before its socket was closed is
// not for the next socket in the same place.
func TestAStaleEvent(t *testing.T) {
	s := newSet(t, 1)
	l := s.loops[0]
	event := func(k *Socket) unix.EpollEvent {
		l.mu.Lock()
		defer l.mu.Unlock()
		return unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(k.at), Pad: int32(l.entries[k.at].gen)}
	}
	whose := func(ev unix.EpollEvent) Handler {
		var due [1]Handler
		if !l.handlers([]unix.EpollEvent{ev}, due[:]) {
			t.Error("closed")
		}
		return due[0]
	}
	_, k := sockets(t)
	first := make(told, 8)
	if err := s.Watch(k, first); err != nil {
		t.Fatal(err)
	}
	old, at := event(k), k.at
	if whose(old) != first {
		t.Error("an event does not find its handler")
	}
	k.Close()
	if whose(old) != nil {
		t.Error("an event found the handler of a closed socket")
	}
	for range 3 { // more than once: each use of the place is another
		peer, k := sockets(t)
		h := make(told, 8)
		if err := errors.Join(s.Watch(k, h), k.WatchWrites()); err != nil {
			t.Fatal(err)
		}
		if k.at != at {
			t.Fatalf("place %d, want %d again", k.at, at)
		}
		if whose(old) != nil {
			t.Error("a stale event found the next socket")
		}
		// What the kernel was given for this one is right, at first and when changed.
		if _, err := peer.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		for got := Events(0); got != Readable|Writable; {
			select {
			case e := <-h:
				got |= e
			case <-time.After(20 * time.Second):
				t.Fatalf("told of %b only", got)
			}
		}
		old = event(k)
		k.Close()
	}
	if ev := (unix.EpollEvent{Fd: -1}); whose(ev) != nil { // the bell's
		t.Error("the bell has a handler")
	}
}

// keeper is a handler that leaves another for later; it is not empty, so that it has
// an address of its own.
type keeper struct {
	told  chan struct{}
	later *flusher
}

type flusher struct{ flushed chan struct{} }

func (f *flusher) Flush() { f.flushed <- struct{}{} }

func (h *keeper) Notify(_ Events, turn *Turn) {
	if h.later != nil {
		turn.Later(h.later)
	}
	h.told <- struct{}{}
}

// TestNothingIsHeld: of a socket that is closed a set keeps nothing, not even until
// it has something else to do.
func TestNothingIsHeld(t *testing.T) {
	s := newSet(t, 1)
	freed := make(chan string, 2)
	func() {
		peer, k := sockets(t)
		later := &flusher{make(chan struct{}, 8)}
		h := &keeper{make(chan struct{}, 8), later}
		runtime.AddCleanup(h, func(s string) { freed <- s }, "handler")
		runtime.AddCleanup(later, func(s string) { freed <- s }, "flusher")
		if err := s.Watch(k, h); err != nil {
			t.Fatal(err)
		}
		for range 3 { // turns
			if _, err := peer.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			<-h.told
			<-later.flushed
		}
		k.Close()
	}()
	for left, deadline := 2, time.Now().Add(20*time.Second); left > 0; {
		runtime.GC()
		select {
		case <-freed:
			left--
		case <-time.After(time.Millisecond):
			if time.Now().After(deadline) {
				t.Fatalf("%d of handler and flusher are still held", left)
			}
		}
	}
}

// TestLoopsTakeTurns: sockets go round the loops, but for those that are to be beside
// another.
func TestLoopsTakeTurns(t *testing.T) {
	const loops = 3
	s := newSet(t, loops)
	on := make(map[*loop]int)
	for range 2 * loops {
		_, k := sockets(t)
		if err := s.Watch(k, make(told, 8)); err != nil {
			t.Fatal(err)
		}
		on[k.loop.Load()]++
		for range loops {
			_, beside := sockets(t)
			if err := s.WatchBeside(beside, make(told, 8), k); err != nil {
				t.Fatal(err)
			}
			if beside.loop.Load() != k.loop.Load() {
				t.Error("beside it, but on another loop")
			}
		}
	}
	if len(on) != loops || on[s.loops[0]] != 2 || on[s.loops[1]] != 2 {
		t.Errorf("%d loops have sockets, the first %d of 6", len(on), on[s.loops[0]])
	}
	_, k := sockets(t)
	if err := s.WatchBeside(k, make(told, 8), new(Socket)); err != nil || k.loop.Load() == nil {
		t.Errorf("beside one that nobody watches: %v", err)
	}
}
