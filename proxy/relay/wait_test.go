package relay_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/proxy/ready"
	"github.com/warren-mesh/warren/proxy/relay"
)

// held is a handler that holds its loop up, as none must, from what the channel gets
// until it is closed.
type held chan struct{}

func (h held) Notify(ready.Events, *ready.Turn) { <-h; <-h }

// holdUp keeps a loop of the set from going on until letGo is called.
func holdUp(t *testing.T, set *ready.Set) (letGo func()) {
	t.Helper()
	_, c := conns(t)
	h, k := make(held), new(ready.Socket)
	if err := errors.Join(k.Take(c), k.WatchWrites(), set.Watch(k, h)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	h <- struct{}{}
	return func() { close(h) }
}

// TestResetBehindOurOwnEnd: once we have half-closed a connection, its state does not
// tell a reset from an end any more. That the loop is about to ask for its error does,
// also when it was the loop that has taken the one report of it.
func TestResetBehindOurOwnEnd(t *testing.T) {
	const told = ready.Failed | ready.Readable | ready.Hangup
	// reset has app's connection reset, and the report of that taken, while the loop is
	// held up.
	reset := func(t *testing.T, set *ready.Set, app *net.TCPConn, same *os.File) {
		end(t, app)
		letGo := holdUp(t, set)
		t.Cleanup(letGo)
		_ = app.SetLinger(0)
		_ = app.Close()
		takeError(t, same)
	}
	t.Run("stream", func(t *testing.T) {
		set, app, a, same := watched(t)
		m := &manual{}
		done := make(chan relay.Result, 1)
		relay.New(set).Start(a, m, nil, func(r relay.Result) { done <- r })
		m.end(io.EOF)
		reset(t, set, app, same)
		m.notify(told, new(ready.Turn))
		<-m.ready
		if _, err := m.pull(make([]byte, 100)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("pulled %v", err)
		}
		if r := <-done; !errors.Is(r.Err, syscall.ECONNRESET) {
			t.Errorf("%+v", r)
		}
	})
	t.Run("tcp", func(t *testing.T) {
		set, app, a, same := watched(t)
		b, backend := conns(t)
		done := make(chan relay.Result, 1)
		flow := relay.New(set).Start(a, relay.TCP(b), nil, func(r relay.Result) { done <- r })
		_ = backend.CloseWrite()
		reset(t, set, app, same)
		relay.NotifyApp(flow, told)
		if r := <-done; !errors.Is(r.Err, syscall.ECONNRESET) {
			t.Errorf("%+v", r)
		}
	})
}

// watched is a set of one loop, and a connection whose second end is there twice.
func watched(t *testing.T) (set *ready.Set, app, ours *net.TCPConn, same *os.File) {
	t.Helper()
	set, err := ready.New(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = set.Close() })
	app, ours = conns(t)
	if same, err = ours.File(); err != nil { // the flow takes over ours itself
		t.Fatal(err)
	}
	t.Cleanup(func() { same.Close() })
	return set, app, ours, same
}

// TestTinyBuffers: where each end waits for the other all the time, no wait is missed
// and no byte lost.
func TestTinyBuffers(t *testing.T) {
	for name, join := range map[string]func(testing.TB, *net.TCPConn, *net.TCPConn) chan relay.Result{"tcp": joinTinyTCP, "stream": joinTinyStreams} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			app, a := tinyConns(t)
			b, backend := tinyConns(t)
			done := join(t, a, b)
			const size = 8 << 20
			want := make([]byte, size)
			_, _ = rand.NewChaCha8([32]byte{9}).Read(want)
			_ = app.SetDeadline(time.Now().Add(40 * time.Second))
			_ = backend.SetDeadline(time.Now().Add(40 * time.Second))
			go func() {
				rnd := rand.New(rand.NewPCG(1, 2))
				for p := want; len(p) > 0; {
					n := min(1+rnd.IntN(1<<(1+rnd.IntN(17))), len(p))
					if _, err := app.Write(p[:n]); err != nil {
						t.Error(err)
						return
					}
					p = p[n:]
				}
				_ = app.CloseWrite()
			}()
			got, buf := 0, make([]byte, 64<<10)
			for rnd := rand.New(rand.NewPCG(3, 4)); ; {
				n, err := backend.Read(buf[:1+rnd.IntN(1<<(1+rnd.IntN(16)))])
				if !bytes.Equal(buf[:n], want[got:got+n]) {
					t.Fatalf("other bytes behind %d", got)
				}
				if got += n; err == io.EOF && got == size {
					break
				} else if err != nil {
					t.Fatalf("%d of %d bytes: %v", got, size, err)
				}
				if rnd.IntN(4) == 0 {
					runtime.Gosched()
				}
			}
			_ = backend.CloseWrite()
			end(t, app)
			if r := <-done; r != (relay.Result{Sent: size}) {
				t.Errorf("%+v", r)
			}
		})
	}
}

// tinyConns is conns with small buffers, and segments that are small beside those: with
// loopback's, as large as a buffer, the kernel waits for more to send.
func tinyConns(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	tiny := func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) {
			err = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_MAXSEG, 1000),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<10),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 8<<10),
			)
		})
		return errors.Join(cerr, err)
	}
	lc, d := net.ListenConfig{Control: tiny}, net.Dialer{Control: tiny}
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func joinTinyTCP(tb testing.TB, a, b *net.TCPConn) chan relay.Result {
	done := make(chan relay.Result, 1)
	f := newRelay(tb).Start(a, relay.TCP(b), nil, func(r relay.Result) { done <- r })
	tb.Cleanup(func() { f.Cut(errors.New("test is over")) })
	return done
}

func joinTinyStreams(tb testing.TB, a, b *net.TCPConn) chan relay.Result {
	done := make(chan relay.Result, 1)
	r := newRelay(tb)
	left, right := newWire()
	r.Start(b, right, nil, func(relay.Result) {})
	f := r.Start(a, left, nil, func(r relay.Result) { done <- r })
	tb.Cleanup(func() { f.Cut(errors.New("test is over")) })
	return done
}

// stall fills a flow over TCP until nothing moves any more. What is moved is s again
// and again.
func stall(t *testing.T, s string) (app *net.TCPConn, flow *relay.Flow, done chan relay.Result) {
	t.Helper()
	app, a := conns(t)
	b, backend := conns(t)
	_ = b.SetWriteBuffer(64 << 10) // less than a pipe holds
	_ = backend.SetReadBuffer(64 << 10)
	done = make(chan relay.Result, 1)
	flow = newRelay(t).Start(a, relay.TCP(b), nil, func(r relay.Result) { done <- r })
	p := []byte(strings.Repeat(s, 64<<10))
	for {
		_ = app.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := app.Write(p); err != nil {
			return app, flow, done
		}
	}
}

// TestCutWhileStalled: who waits for room goes when the flow is cut, and what was on
// its way then is in no other flow's.
func TestCutWhileStalled(t *testing.T) {
	for range 5 {
		_, flow, done := stall(t, "old")
		if relay.PipesInUse() == 0 {
			t.Fatal("not stalled in bulk")
		}
		cut := errors.New("cut")
		flow.Cut(cut)
		if r := <-done; r.Err != cut {
			t.Errorf("%+v", r)
		}
		waitUntil(t, "the pipe is given back", func() bool { return relay.PipesInUse() == 0 })
		app, a := conns(t)
		b, backend := conns(t)
		newRelay(t).Start(a, relay.TCP(b), nil, func(r relay.Result) { done <- r })
		want := strings.Repeat("new", 1<<20)
		go func() {
			_, _ = io.WriteString(app, want)
			_ = app.CloseWrite()
		}()
		if got, err := io.ReadAll(backend); err != nil || string(got) != want {
			t.Fatalf("%d of %d bytes, %v, beginning with %.3q", len(got), len(want), err, got)
		}
		_ = backend.CloseWrite()
		<-done
	}
}

// TestResetWhileStalled: a reset is noticed though nobody can read up to it.
func TestResetWhileStalled(t *testing.T) {
	app, _, done := stall(t, "x")
	_ = app.SetLinger(0)
	_ = app.Close()
	select {
	case r := <-done:
		if !errors.Is(r.Err, syscall.ECONNRESET) {
			t.Errorf("%+v", r)
		}
	case <-time.After(20 * time.Second):
		t.Error("not noticed")
	}
}

// TestPipesAreKept: bulk that comes and goes does not make a pipe each time, and those
// that nobody uses are closed.
func TestPipesAreKept(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	before := openPipes(t)
	j := joinTCP(t)
	for range 50 {
		write(t, j.app, strings.Repeat("x", 200<<10))
		if _, err := io.CopyN(io.Discard, j.backend, 200<<10); err != nil {
			t.Fatal(err)
		}
		waitUntil(t, "bulk is over", func() bool { return relay.PipesInUse() == 0 })
	}
	if n := openPipes(t) - before; n > 60 { // under the race detector sync.Pool forgets some
		t.Errorf("%d descriptors of pipes after 50 times of bulk", n)
	}
	waitUntil(t, "pipes are closed", func() bool { runtime.GC(); return openPipes(t) <= before })
}

// TestFullPipesAreClosed: flows that end with bytes in their pipes leave nothing to the
// collector, for they can be made faster than it runs.
func TestFullPipesAreClosed(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	before := openPipes(t)
	const n = 4
	for range n {
		_, flow, done := stall(t, "x")
		flow.Cut(errors.New("cut"))
		<-done
		waitUntil(t, "the pipe is given back", func() bool { return relay.PipesInUse() == 0 })
	}
	if left := openPipes(t) - before; left >= 2*n { // one that was empty may be kept
		t.Errorf("%d descriptors of pipes are left", left)
	}
}

func openPipes(t *testing.T) (n int) {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, "pipe:") {
			n++
		}
	}
	return n
}

// TestOneMoreWord: what comes while whoever read the words before is about to leave is
// not forgotten, though nothing follows it.
func TestOneMoreWord(t *testing.T) {
	each(t, oneMoreWord)
	t.Run("without pipes", func(t *testing.T) {
		defer relay.TakeAllPipes()()
		oneMoreWord(t, joinTCP(t))
	})
}

func oneMoreWord(t *testing.T, j *joined) {
	_ = j.backend.SetReadDeadline(time.Now().Add(40 * time.Second))
	rnd, buf := rand.New(rand.NewPCG(5, 6)), make([]byte, 48<<10)
	for i := range 4000 {
		size := []int{1, 1, 100, 20 << 10, len(buf)}[rnd.IntN(5)]
		words := 1 + rnd.IntN(1+100_000/(10_000+size))
		for range words {
			if _, err := j.app.Write(buf[:size]); err != nil {
				t.Fatal(err)
			}
		}
		if n, err := io.CopyN(io.Discard, j.backend, int64(words*size)); err != nil {
			t.Fatalf("round %d: %d bytes of %d words of %d: %v", i, n, words, size, err)
		}
	}
}

// TestNotAskedInVain: the far end is asked to pull when there is something new to
// read, not again before it has, and not once nothing more is to be said.
func TestNotAskedInVain(t *testing.T) {
	set, app, a, _ := watched(t)
	m := &manual{}
	done := make(chan relay.Result, 1)
	flow := relay.New(set).Start(a, m, nil, func(r relay.Result) { done <- r })
	asked := func(when string, want int, e ready.Events) {
		t.Helper()
		m.notify(e, new(ready.Turn))
		if n := len(m.ready); n != want {
			t.Errorf("%s: asked %d times, want %d", when, n, want)
		}
		for len(m.ready) > 0 {
			<-m.ready
		}
	}
	write(t, app, "x")
	<-m.ready
	letGo := holdUp(t, set) // from here on the test plays the loop
	defer letGo()
	asked("not pulled yet", 0, ready.Readable)
	if n, err := m.pull(make([]byte, 10)); n != 1 || err != nil {
		t.Fatalf("pulled %d, %v", n, err)
	}
	for n := 1; n > 0; {
		n, _ = m.pull(make([]byte, 10)) // it was told of once more
	}
	asked("room", 0, ready.Writable)
	asked("pulled", 1, ready.Readable)
	_ = app.CloseWrite()
	m.notify(ready.Readable|ready.Hangup, new(ready.Turn))
	for {
		if _, err := m.pull(make([]byte, 10)); err == io.EOF {
			break
		}
	}
	asked("ended", 0, ready.Readable|ready.Hangup)
	flow.Cut(errors.New("cut"))
	<-done
	asked("over", 0, ready.Readable)
}

// TestBothEndsOnOneLoop: a flow between sockets is told of both by the same loop.
func TestBothEndsOnOneLoop(t *testing.T) {
	set, err := ready.New(2)
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	letGo := holdUp(t, set)
	defer letGo()
	r := relay.New(set)
	both := make(chan struct{}, 2)
	for range 2 { // one of them is on the loop that goes on
		app, a := conns(t)
		b, backend := conns(t)
		flow := r.Start(a, relay.TCP(b), nil, func(relay.Result) {})
		defer flow.Cut(errors.New("test is over"))
		write(t, app, "a")
		write(t, backend, "b")
		go func() {
			_, err := io.ReadFull(app, make([]byte, 1))
			_, berr := io.ReadFull(backend, make([]byte, 1))
			if err == nil && berr == nil {
				both <- struct{}{}
			}
		}()
	}
	select {
	case <-both:
	case <-time.After(20 * time.Second):
		t.Error("no flow gets on beside a loop that is held up")
	}
}

func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}
