package ready_test

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/proxy/ready"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newSet(tb testing.TB, loops int) *ready.Set {
	tb.Helper()
	s, err := ready.New(loops)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := errors.Join(s.Close(), s.Close()); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// pair is a connection: the peer's end, and ours as net has it.
func pair(tb testing.TB) (peer, ours *net.TCPConn) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func take(tb testing.TB) (peer *net.TCPConn, k *ready.Socket) {
	tb.Helper()
	peer, ours := pair(tb)
	k = new(ready.Socket)
	if err := k.Take(ours); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(k.Close)
	return peer, k
}

// heard is a handler that hands on what it is told.
type heard chan ready.Events

func (h heard) Notify(e ready.Events, _ *ready.Turn) { h <- e }

// wait waits for events that include all of want.
func (h heard) wait(want ready.Events) {
	for got := ready.Events(0); got&want != want; {
		got |= <-h
	}
}

func watch(tb testing.TB, s *ready.Set, k *ready.Socket) heard {
	tb.Helper()
	h := make(heard, 64)
	if err := errors.Join(s.Watch(k, h), k.WatchWrites(), k.WatchWrites()); err != nil {
		tb.Fatal(err)
	}
	return h
}

func TestEvents(t *testing.T) {
	t.Run("what is so already is told", func(t *testing.T) {
		s := newSet(t, 1)
		peer, k := take(t)
		if _, err := peer.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		watch(t, s, k).wait(ready.Readable | ready.Writable)
	})
	t.Run("bytes", func(t *testing.T) {
		s := newSet(t, 1)
		peer, k := take(t)
		h := watch(t, s, k)
		h.wait(ready.Writable)
		for range 100 {
			if _, err := peer.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			h.wait(ready.Readable)
			if n := readAll(k); n != 1 {
				t.Fatalf("read %d", n)
			}
		}
	})
	t.Run("room", func(t *testing.T) {
		s := newSet(t, 1)
		peer, k := take(t)
		h := watch(t, s, k)
		h.wait(ready.Writable)
		fill(t, k)
		go func() { _, _ = io.Copy(io.Discard, peer) }()
		h.wait(ready.Writable)
	})
	t.Run("room, asked for first", func(t *testing.T) {
		s := newSet(t, 1)
		_, k := take(t)
		h := make(heard, 64)
		if err := errors.Join(k.WatchWrites(), s.Watch(k, h)); err != nil {
			t.Fatal(err)
		}
		h.wait(ready.Writable)
	})
	t.Run("no room asked for", func(t *testing.T) {
		s := newSet(t, 1)
		peer, k := take(t)
		h := make(heard, 64)
		if err := s.Watch(k, h); err != nil {
			t.Fatal(err)
		}
		if _, err := peer.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if e := <-h; e != ready.Readable {
			t.Errorf("told %b before anything else", e)
		}
	})
	t.Run("end", func(t *testing.T) {
		s := newSet(t, 1)
		peer, k := take(t)
		h := watch(t, s, k)
		_ = peer.CloseWrite()
		h.wait(ready.Readable | ready.Hangup)
	})
	t.Run("urgent", func(t *testing.T) {
		s := newSet(t, 1)
		peer, k := take(t)
		h := watch(t, s, k)
		raw, err := peer.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if cerr := raw.Control(func(fd uintptr) { err = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil) }); cerr != nil || err != nil {
			t.Fatal(cerr, err)
		}
		h.wait(ready.Urgent | ready.Readable)
	})
	t.Run("reset", func(t *testing.T) {
		s := newSet(t, 1)
		peer, k := take(t)
		h := watch(t, s, k)
		_ = peer.SetLinger(0)
		peer.Close()
		h.wait(ready.Failed | ready.Readable | ready.Writable)
	})
}

// readAll reads until there is nothing more and returns how much there was.
func readAll(k *ready.Socket) (total int) {
	fd, ok := k.Acquire()
	if !ok {
		return 0
	}
	defer k.Release()
	var buf [4096]byte
	for {
		n, err := unix.Read(fd, buf[:])
		if err != nil || n == 0 {
			return total
		}
		total += n
	}
}

// fill writes until the socket takes no more.
func fill(tb testing.TB, k *ready.Socket) {
	tb.Helper()
	fd, ok := k.Acquire()
	if !ok {
		tb.Fatal("closed")
	}
	defer k.Release()
	for {
		if _, err := unix.Write(fd, make([]byte, 64<<10)); err == unix.EAGAIN {
			return
		} else if err != nil {
			tb.Fatal(err)
		}
	}
}

// TestTake: the connection is one descriptor again, and net's is closed.
func TestTake(t *testing.T) {
	peer, ours := pair(t)
	before := descriptors(t)
	var k ready.Socket
	if err := k.Take(ours); err != nil {
		t.Fatal(err)
	}
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors, were %d", n, before)
	}
	if _, err := ours.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("net's connection still works: %v", err)
	}
	k.Close()
	if _, err := peer.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the peer sees %v", err)
	}
	if n := descriptors(t); n != before-1 {
		t.Errorf("%d descriptors, were %d with it", n, before)
	}
	t.Run("of a closed one", func(t *testing.T) {
		if err := new(ready.Socket).Take(ours); !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v", err)
		}
	})
}

func TestReset(t *testing.T) {
	peer, k := take(t)
	k.Reset()
	k.Reset()
	k.Close()
	if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the peer sees %v", err)
	}
}

// TestCloseInUse: who has acquired the descriptor keeps it until release.
func TestCloseInUse(t *testing.T) {
	s := newSet(t, 1)
	peer, k := take(t)
	watch(t, s, k)
	fd, ok := k.Acquire()
	if !ok {
		t.Fatal("closed")
	}
	k.Close()
	if _, ok := k.Acquire(); ok {
		t.Error("acquired after Close")
	}
	if _, err := unix.Write(fd, []byte("x")); err != nil {
		t.Errorf("in use, and yet: %v", err)
	}
	k.Release()
	if got, err := io.ReadAll(peer); string(got) != "x" || err != nil {
		t.Errorf("the peer got %q, %v", got, err)
	}
	if err := s.Watch(k, make(heard)); err != nil {
		t.Errorf("watching a closed socket: %v", err)
	}
}

// TestReuse opens and closes sockets from many goroutines, so that numbers are
// used again and again, and holds every event against the socket it was told of.
func TestReuse(t *testing.T) {
	s := newSet(t, 2)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 300 {
				peer, ours := pair(t)
				k := new(ready.Socket)
				if err := k.Take(ours); err != nil {
					t.Error(err)
					return
				}
				own := &owner{k: k, t: t, got: make(chan struct{}, 64)}
				if err := s.Watch(k, own); err != nil {
					t.Error(err)
					return
				}
				_, _ = peer.Write([]byte("x"))
				for own.bytes.Load() == 0 {
					<-own.got
				}
				var closers sync.WaitGroup
				for range 3 {
					closers.Go(k.Close)
				}
				peer.Close()
				closers.Wait()
			}
		})
	}
	wg.Wait()
}

// owner expects exactly one byte and no error on its socket.
type owner struct {
	k     *ready.Socket
	t     *testing.T
	got   chan struct{}
	bytes atomic.Int64
}

func (o *owner) Notify(e ready.Events, _ *ready.Turn) {
	n := o.bytes.Add(int64(readAll(o.k)))
	if n > 1 || e&ready.Failed != 0 {
		o.t.Errorf("%d bytes, events %b", n, e)
	}
	select {
	case o.got <- struct{}{}:
	default:
	}
}

// TestManyRounds: no wake-up is lost over many messages on many sockets.
func TestManyRounds(t *testing.T) {
	s := newSet(t, 2)
	const sockets, rounds = 50, 400
	var wg sync.WaitGroup
	for range sockets {
		peer, k := take(t)
		if err := s.Watch(k, echo{k}); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			b := []byte{0}
			for range rounds {
				if _, err := peer.Write(b); err != nil {
					t.Error(err)
					return
				}
				if _, err := io.ReadFull(peer, b); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// echo answers every byte with one, on the loop.
type echo struct{ k *ready.Socket }

func (e echo) Notify(ready.Events, *ready.Turn) {
	n := readAll(e.k)
	if fd, ok := e.k.Acquire(); ok {
		_, _ = unix.Write(fd, make([]byte, n))
		e.k.Release()
	}
}

// TestFairness: sockets that are always busy do not keep others from being heard.
func TestFairness(t *testing.T) {
	s := newSet(t, 1)
	for range 20 {
		peer, k := take(t)
		if err := s.Watch(k, echo{k}); err != nil {
			t.Fatal(err)
		}
		if _, err := peer.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.Copy(peer, peer) }() // for ever
	}
	peer, k := take(t)
	h := watch(t, s, k)
	for range 100 {
		if _, err := peer.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		h.wait(ready.Readable)
		readAll(k)
	}
}

// later leaves itself for later, and says what it was told before that.
type later struct {
	k      *ready.Socket
	told   *atomic.Int32
	before chan int32
}

func (l later) Notify(_ ready.Events, turn *ready.Turn) {
	l.told.Add(1)
	turn.Later(l)
}

func (l later) Flush() { l.before <- l.told.Load() }

// TestLater: what is left for later comes after all that was ready.
func TestLater(t *testing.T) {
	s := newSet(t, 1)
	_, gate := take(t)
	open := make(blocked)
	if err := errors.Join(s.Watch(gate, open), gate.WatchWrites()); err != nil {
		t.Fatal(err)
	}
	open <- struct{}{} // the loop is held up from here on
	const n = 10
	var told atomic.Int32
	before := make(chan int32, n)
	for range n { // ready as soon as watched
		_, k := take(t)
		if err := errors.Join(s.Watch(k, later{k, &told, before}), k.WatchWrites()); err != nil {
			t.Fatal(err)
		}
	}
	close(open)
	for range n {
		if got := <-before; got != n {
			t.Errorf("flushed after %d of %d", got, n)
		}
	}
}

// blocked holds its loop up from what the channel gets until it is closed, as a
// handler must not.
type blocked chan struct{}

func (b blocked) Notify(ready.Events, *ready.Turn) { <-b; <-b }

// TestCloseSet: what is registered hears nothing more, and can be closed.
func TestCloseSet(t *testing.T) {
	s := newSet(t, 3)
	peer, k := take(t)
	h := watch(t, s, k)
	h.wait(ready.Writable)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	_, other := take(t)
	if err := s.Watch(other, h); !errors.Is(err, ready.ErrClosed) {
		t.Errorf("watched after Close: %v", err)
	}
	k.Close()
	if _, err := io.ReadAll(peer); err == nil || len(h) > 0 { // it had not read everything
		t.Errorf("the peer sees %v; %d events", err, len(h))
	}
}

// TestIdleCostsNoGoroutine: a socket that waits holds none.
func TestIdleCostsNoGoroutine(t *testing.T) {
	s := newSet(t, 2)
	before := runtime.NumGoroutine()
	for range 100 {
		_, k := take(t)
		watch(t, s, k).wait(ready.Writable)
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines, were %d", n, before)
	}
}

// TestNoDescriptors: without a descriptor to be had, New fails and leaves
// nothing, and a connection that cannot be taken over is reset.
func TestNoDescriptors(t *testing.T) {
	peer, ours := pair(t)
	before := descriptors(t)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	// Numbers from here on are refused; those that are open go on.
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	_, setErr := ready.New(2)
	var k ready.Socket
	takeErr := k.Take(ours)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(setErr, unix.EMFILE) {
		t.Errorf("New: %v", setErr)
	}
	if takeErr == nil {
		t.Error("taken without a descriptor")
	}
	if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the peer sees %v", err)
	}
	if n := descriptors(t); n != before-1 {
		t.Errorf("%d descriptors, were %d with the connection", n, before)
	}
}

func descriptors(tb testing.TB) int {
	tb.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(all)
}

func BenchmarkWake(b *testing.B) {
	s := newSet(b, 1)
	peer, k := take(b)
	if err := s.Watch(k, echo{k}); err != nil {
		b.Fatal(err)
	}
	buf := []byte{0}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := peer.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(peer, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// TestSocketIO: the calls of a Socket wait for nothing.
func TestSocketIO(t *testing.T) {
	peer, k := take(t)
	if n, again, err := k.Read(make([]byte, 1)); n != 0 || !again || err != nil {
		t.Errorf("nothing there: %d, %t, %v", n, again, err)
	}
	total := 0
	for {
		n, err := k.Write(make([]byte, 100_000))
		if err != nil {
			t.Fatal(err)
		}
		if total += n; n == 0 {
			break // full
		}
	}
	if err := k.CloseWrite(); err != nil {
		t.Error(err)
	}
	if got, err := io.Copy(io.Discard, peer); err != nil || got != int64(total) {
		t.Errorf("the peer got %d of %d: %v", got, total, err)
	}
	if _, err := peer.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	_ = peer.CloseWrite()
	var got []byte
	for buf := make([]byte, 8); ; {
		n, _, err := k.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			if err != io.EOF || string(got) != "x" {
				t.Errorf("%q, then %v", got, err)
			}
			break
		}
	}
	k.Close()
	_, _, rerr := k.Read(make([]byte, 1))
	_, werr := k.Write([]byte("x"))
	for what, err := range map[string]error{"read": rerr, "write": werr, "shutdown": k.CloseWrite()} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s of a closed socket: %v", what, err)
		}
	}
}
