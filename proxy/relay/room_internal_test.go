package relay

import (
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/proxy/ready"
)

// sockets is a flow between sockets, and its ends.
func sockets(t *testing.T) (f *socketFlow, app, backend net.Conn) {
	t.Helper()
	set, err := ready.New(1)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pair := func() (client, server net.Conn) {
		if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
			t.Fatal(err)
		}
		if server, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		return client, server
	}
	app, a := pair()
	backend, b := pair()
	flow := startSockets(set, a.(*net.TCPConn), b.(*net.TCPConn), new(Counters), func(Result) {})
	t.Cleanup(func() {
		flow.Cut(errors.New("test is over"))
		app.Close()
		backend.Close()
		_ = set.Close()
	})
	return flow.c.(*socketFlow), app, backend
}

// within fails the test if ok does not come true.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// TestRoomBetweenWriteAndWait: room that comes after a write which found none, and
// before anybody waits for it, is seen. Later acknowledgements make up for most of
// what would be missed, not for that of the last byte.
func TestRoomBetweenWriteAndWait(t *testing.T) {
	t.Run("bulk", func(t *testing.T) {
		f, _, _ := sockets(t)
		e := &f.ends[0]
		f.mu.Lock()
		e.busy = true // the role is ours
		f.mu.Unlock()
		e.other.Notify(ready.Writable, nil)
		went := make(chan bool)
		wait := func() bool {
			go func() { went <- e.waitForRoom() }()
			select {
			case ok := <-went:
				return ok
			case <-time.After(20 * time.Second):
				t.Fatal("still waiting for room")
				return false
			}
		}
		if !wait() {
			t.Fatal("the flow has ended")
		}
		go func() { // the next time it comes when somebody waits
			for waits := false; !waits; runtime.Gosched() {
				f.mu.Lock()
				waits = e.wake != nil
				f.mu.Unlock()
			}
			e.other.Notify(ready.Writable, nil)
		}()
		if !wait() {
			t.Fatal("the flow has ended")
		}
		f.fail(errors.New("over"))
		if wait() {
			t.Error("room in a flow that is over")
		}
	})
	t.Run("little", func(t *testing.T) {
		f, app, _ := sockets(t)
		e := &f.ends[0]
		locked := func(what *bool) bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			return *what
		}
		within(t, "room comes while a byte is being written", func() bool {
			within(t, "a byte waits for room", func() bool {
				if locked(&e.blocked) {
					return true
				}
				fill(t, &f.ends[1].sock)
				if _, err := app.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Millisecond)
				return false
			})
			if e.Notify(ready.Readable, nil); locked(&e.blocked) && !locked(&e.changed) {
				t.Error("there was an attempt to write though there is no room")
			}
			mine, caught := make(chan bool, 1), make(chan bool, 1)
			f.mu.Lock()
			if e.busy || !e.blocked { // there was room after all
				f.mu.Unlock()
				return false
			}
			e.busy = true // the role is ours
			go func() {
				_, m := e.step()
				mine <- m
			}()
			time.Sleep(5 * time.Millisecond) // for step to wait for the lock, and this behind it
			go func() {
				f.mu.Lock()
				defer f.mu.Unlock()
				c := !e.blocked // step has begun, and not ended
				e.room = e.room || c
				caught <- c
			}()
			time.Sleep(5 * time.Millisecond)
			// Who has waited long, and finds the lock taken when woken, is next in line,
			// and after it who waits behind.
			f.mu.Unlock()
			f.mu.Lock()
			time.Sleep(5 * time.Millisecond)
			f.mu.Unlock()
			m := <-mine
			if !<-caught || e.rest.empty() {
				f.mu.Lock()
				e.busy = false
				f.mu.Unlock()
				return false
			}
			if !m {
				t.Error("gave the role back, though there is room")
			}
			return true
		})
	})
}

// TestRestBeforeBulk: what was read and not taken goes before what is spliced.
func TestRestBeforeBulk(t *testing.T) {
	f, app, backend := sockets(t)
	e := &f.ends[0]
	f.mu.Lock()
	e.busy = true // the role is ours
	f.mu.Unlock()
	fill(t, &f.ends[1].sock)
	e.rest = getChunk()
	e.rest.end = copy(e.rest.mem[:], "rest, ")
	if _, err := io.WriteString(app, "bulk"); err != nil {
		t.Fatal(err)
	}
	go e.bulk()
	_ = backend.SetReadDeadline(time.Now().Add(20 * time.Second))
	const want = "rest, bulk"
	var last []byte
	for buf := make([]byte, 64<<10); string(last) != want; {
		n, err := backend.Read(buf)
		if err != nil {
			t.Fatalf("%q comes last, %v", last, err)
		}
		if last = append(last, buf[:n]...); len(last) > len(want) {
			last = last[len(last)-len(want):]
		}
	}
}

// fill writes until there is no room.
func fill(t *testing.T, k *ready.Socket) {
	t.Helper()
	for n := 1; n > 0; {
		var err error
		if n, err = k.Write(make([]byte, 64<<10)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNoPipe: a pipe that cannot be made is not counted as one in use.
func TestNoPipe(t *testing.T) {
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	runtime.GC() // none is kept for later
	runtime.GC()
	before := pipesUsed.Load()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	p, err := getPipe()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, unix.EMFILE) || p != nil {
		t.Fatalf("a pipe without a descriptor: %v, %v", p, err)
	}
	if n := pipesUsed.Load(); n != before {
		t.Errorf("%d pipes are in use, were %d", n, before)
	}
}
