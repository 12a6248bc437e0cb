package relay_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/proxy/ready"
	"github.com/warren-mesh/warren/proxy/relay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// conns is a TCP connection, both ends.
func conns(tb testing.TB) (client, server *net.TCPConn) {
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

// newRelay returns a Relay for one test.
func newRelay(tb testing.TB) *relay.Relay {
	tb.Helper()
	set, err := ready.New(2)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := set.Close(); err != nil {
			tb.Error(err)
		}
	})
	return relay.New(set)
}

// joined is an application and a backend with a flow between them.
type joined struct {
	app, backend *net.TCPConn
	flow         *relay.Flow
	counters     relay.Counters
	done         chan relay.Result
}

// kinds are the ways to join them: over TCP, and over a far end like a tunnel's
// stream, in memory.
var kinds = map[string]func(testing.TB) *joined{"tcp": joinTCP, "stream": joinStreams}

func joinTCP(tb testing.TB) *joined {
	j := &joined{done: make(chan relay.Result, 2)}
	r := newRelay(tb)
	var a, b *net.TCPConn
	j.app, a = conns(tb)
	b, j.backend = conns(tb)
	j.flow = r.Start(a, relay.TCP(b), &j.counters, func(r relay.Result) { j.done <- r })
	tb.Cleanup(func() { j.flow.Cut(errors.New("test is over")) })
	return j
}

func joinStreams(tb testing.TB) *joined {
	j := &joined{done: make(chan relay.Result, 2)}
	r := newRelay(tb)
	var a, b *net.TCPConn
	j.app, a = conns(tb)
	b, j.backend = conns(tb)
	left, right := newWire()
	r.Start(b, right, nil, func(relay.Result) {})
	j.flow = r.Start(a, left, &j.counters, func(r relay.Result) { j.done <- r })
	tb.Cleanup(func() { j.flow.Cut(errors.New("test is over")) })
	return j
}

func each(t *testing.T, f func(t *testing.T, j *joined)) {
	for name, join := range kinds {
		t.Run(name, func(t *testing.T) { f(t, join(t)) })
	}
}

func write(tb testing.TB, w io.Writer, s string) {
	tb.Helper()
	if _, err := io.WriteString(w, s); err != nil {
		tb.Fatal(err)
	}
}

func read(tb testing.TB, r io.Reader, want string) {
	tb.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
		tb.Fatalf("got %q, %v; want %q", got, err, want)
	}
}

func end(tb testing.TB, r io.Reader) {
	tb.Helper()
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		tb.Fatalf("got %d, %v; want the end", n, err)
	}
}

func TestHalfClose(t *testing.T) {
	each(t, func(t *testing.T, j *joined) {
		write(t, j.app, "question")
		_ = j.app.CloseWrite()
		read(t, j.backend, "question")
		end(t, j.backend)
		write(t, j.backend, "late answer")
		read(t, j.app, "late answer")
		// Counted while open; the count follows the write, so it may lag a moment.
		for j.counters.Sent.Load() != 8 || j.counters.Received.Load() != 11 {
			runtime.Gosched()
		}
		_ = j.backend.CloseWrite()
		end(t, j.app)
		if r := <-j.done; r != (relay.Result{Sent: 8, Received: 11}) {
			t.Errorf("%+v", r)
		}
		j.flow.Cut(errors.New("too late"))
		select {
		case r := <-j.done:
			t.Errorf("done twice: %+v", r)
		default:
		}
	})
}

func TestReset(t *testing.T) {
	for _, byApp := range []bool{true, false} {
		t.Run(fmt.Sprint("byApp=", byApp), func(t *testing.T) {
			each(t, func(t *testing.T, j *joined) {
				write(t, j.app, "hello")
				read(t, j.backend, "hello")
				from, to := j.app, j.backend
				if !byApp {
					from, to = to, from
				}
				_ = from.SetLinger(0)
				from.Close()
				if _, err := to.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the other end sees %v", err)
				}
				if r := <-j.done; r.Err == nil || r.Sent != 5 {
					t.Errorf("%+v", r)
				}
			})
		})
	}
}

func TestCut(t *testing.T) {
	denied := errors.New("policy denies it now")
	each(t, func(t *testing.T, j *joined) {
		write(t, j.app, "hello")
		read(t, j.backend, "hello")
		var wg sync.WaitGroup
		for range 4 { // from any goroutine, any number of times
			wg.Go(func() { j.flow.Cut(denied) })
		}
		for _, c := range []*net.TCPConn{j.app, j.backend} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("an end sees %v", err)
			}
		}
		wg.Wait()
		if r := <-j.done; r.Err != denied || len(j.done) > 0 {
			t.Errorf("%+v and %d more", r, len(j.done))
		}
	})
}

// TestBytes moves 32 MiB each way at once with pauses and sizes of all kinds.
func TestBytes(t *testing.T) {
	const size = 32 << 20
	send := func(c *net.TCPConn, seed byte) [32]byte {
		h := sha256.New()
		src := rand.NewChaCha8([32]byte{seed})
		r := rand.New(rand.NewPCG(uint64(seed), 0))
		for left := size; left > 0; {
			n := 1 + r.IntN(200)
			if r.IntN(2) == 0 {
				n = 1 + r.IntN(500_000)
			}
			p := make([]byte, min(left, n))
			_, _ = src.Read(p)
			h.Write(p)
			if _, err := c.Write(p); err != nil {
				t.Error(err)
				break
			}
			left -= len(p)
		}
		_ = c.CloseWrite()
		return [32]byte(h.Sum(nil))
	}
	receive := func(c *net.TCPConn) [32]byte {
		h := sha256.New()
		if n, err := io.Copy(h, struct{ io.Reader }{c}); n != size || err != nil {
			t.Errorf("received %d, %v", n, err)
		}
		return [32]byte(h.Sum(nil))
	}
	each(t, func(t *testing.T, j *joined) {
		var sums [4][32]byte
		var wg sync.WaitGroup
		wg.Go(func() { sums[0] = send(j.app, 1) })
		wg.Go(func() { sums[1] = receive(j.backend) })
		wg.Go(func() { sums[2] = send(j.backend, 2) })
		wg.Go(func() { sums[3] = receive(j.app) })
		wg.Wait()
		if sums[0] != sums[1] || sums[2] != sums[3] {
			t.Error("checksums differ")
		}
		if r := <-j.done; r != (relay.Result{Sent: size, Received: size}) {
			t.Errorf("%+v", r)
		}
	})
}

// TestAStalledReader: what it does not take is kept, in order, and credit comes
// only for what it took.
func TestAStalledReader(t *testing.T) {
	app, ours := conns(t)
	_ = ours.SetWriteBuffer(64 << 10)
	_ = app.SetReadBuffer(64 << 10)
	far := &manual{}
	done := make(chan relay.Result, 1)
	newRelay(t).Start(ours, far, nil, func(r relay.Result) { done <- r })
	want := make([]byte, 2<<20)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(want)
	direct := 0
	for i := 0; i < len(want); i += 50_000 {
		p := want[i:min(i+50_000, len(want))]
		n, err := far.push([][]byte{p[:len(p)/2], p[len(p)/2:]})
		if err != nil {
			t.Fatal(err)
		}
		direct += n
	}
	if direct >= len(want) {
		t.Fatal("the kernel took it all: nothing was kept")
	}
	if got := far.took.Load(); got+int64(direct) == int64(len(want)) {
		t.Error("credit for bytes that nobody took")
	}
	far.end(io.EOF)
	got, err := io.ReadAll(app)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if got := far.took.Load(); got+int64(direct) != int64(len(want)) {
		t.Errorf("credit for %d of %d bytes", got+int64(direct), len(want))
	}
	app.Close()
	<-far.ready
	if n, err := far.pull(make([]byte, 10)); n != 0 || err != io.EOF {
		t.Errorf("pull: %d, %v", n, err)
	}
	if r := <-done; r.Err != nil || r.Received != int64(len(want)) {
		t.Errorf("%+v", r)
	}
}

// TestAPeerThatDropsTheStream without an error ends the flow in good order,
// though the application has not ended.
func TestAPeerThatDropsTheStream(t *testing.T) {
	app, ours := conns(t)
	far := &manual{}
	done := make(chan relay.Result, 1)
	newRelay(t).Start(ours, far, nil, func(r relay.Result) { done <- r })
	if _, err := far.push([][]byte{[]byte("bye")}); err != nil {
		t.Fatal(err)
	}
	far.end(nil)
	read(t, app, "bye")
	end(t, app)
	if r := <-done; r.Err != nil {
		t.Errorf("%+v", r)
	}
}

// closedByReset is the end of a stream that was reset and means no reset.
type closedByReset struct{ error }

func (closedByReset) Closed() {}

// TestAPeerThatClosesByReset: the application gets all that came before, however late it
// reads, and an end; the flow's result is what the peer did.
func TestAPeerThatClosesByReset(t *testing.T) {
	app, ours := conns(t)
	far := &manual{}
	done := make(chan relay.Result, 1)
	newRelay(t).Start(ours, far, nil, func(r relay.Result) { done <- r })
	const size = 16 << 20 // more than sockets take
	if _, err := far.push([][]byte{make([]byte, size)}); err != nil {
		t.Fatal(err)
	}
	reset := closedByReset{errors.New("reset by peer")}
	far.end(fmt.Errorf("far: %w", reset))
	if n, err := io.Copy(io.Discard, app); n != size || err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if r := <-done; !errors.Is(r.Err, reset) || r.Received != size {
		t.Errorf("%+v", r)
	}
}

func TestPull(t *testing.T) {
	app, ours := conns(t)
	far := &manual{ready: make(chan struct{}, 16)}
	done := make(chan relay.Result, 1)
	flow := newRelay(t).Start(ours, far, nil, func(r relay.Result) { done <- r })
	if n, err := far.pull(make([]byte, 10)); n != 0 || err != nil {
		t.Errorf("before Ready: %d, %v", n, err)
	}
	write(t, app, "abcdef")
	<-far.ready
	buf := make([]byte, 4)
	for _, want := range []string{"abcd", "ef", ""} {
		if n, err := far.pull(buf); string(buf[:n]) != want || err != nil {
			t.Errorf("pulled %q, %v; want %q", buf[:n], err, want)
		}
	}
	write(t, app, "g") // once more after it was empty
	<-far.ready
	if n, err := far.pull(buf); string(buf[:n]) != "g" || err != nil {
		t.Errorf("pulled %q, %v", buf[:n], err)
	}
	flow.Cut(io.ErrClosedPipe)
	if n, err := far.pull(buf); n != 0 {
		t.Errorf("after the end: %d, %v", n, err)
	}
	if _, err := far.push([][]byte{{1}}); err == nil {
		t.Error("pushed after the end")
	}
	<-done
}

func TestIdleFlowsHoldNoGoroutine(t *testing.T) {
	const n = 100
	r := newRelay(t)
	before := goroutines()
	for range n {
		app, ours := conns(t)
		far := &manual{ready: make(chan struct{}, 16)}
		f := r.Start(ours, far, nil, func(relay.Result) {})
		t.Cleanup(func() { f.Cut(errors.New("over")) })
		write(t, app, "x")
		<-far.ready
		for {
			if n, _ := far.pull(make([]byte, 10)); n == 0 {
				break
			}
		}
	}
	for range n {
		app, ours := conns(t)
		far, backend := conns(t)
		f := r.Start(ours, relay.TCP(far), nil, func(relay.Result) {})
		t.Cleanup(func() { f.Cut(errors.New("over")) })
		write(t, app, strings.Repeat("x", 100<<10)) // bulk, for a moment
		if _, err := io.CopyN(io.Discard, backend, 100<<10); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(5 * time.Second); goroutines() > before; {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines for %d idle flows", goroutines()-before, 2*n)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestWithoutPipes: bulk goes on by chunks, and a stalled reader's pipe comes back.
func TestWithoutPipes(t *testing.T) {
	giveBack := relay.TakeAllPipes()
	sendBulk(t)
	giveBack()
	sendBulk(t)
	for deadline := time.Now().Add(5 * time.Second); relay.PipesInUse() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d pipes are still in use", relay.PipesInUse())
		}
	}
}

func sendBulk(t *testing.T) {
	t.Helper()
	app, ours := conns(t)
	far, backend := conns(t)
	done := make(chan relay.Result, 1)
	newRelay(t).Start(ours, relay.TCP(far), nil, func(r relay.Result) { done <- r })
	const size = 8 << 20
	go func() {
		_, _ = app.Write(make([]byte, size))
		_ = app.CloseWrite()
	}()
	time.Sleep(20 * time.Millisecond) // the reader is slow: the relay has to wait for room
	if n, err := io.Copy(io.Discard, backend); n != size || err != nil {
		t.Fatalf("%d of %d bytes, %v", n, size, err)
	}
	_ = backend.CloseWrite()
	if r := <-done; r.Err != nil || r.Sent != size {
		t.Errorf("%+v", r)
	}
}

// TestSocketsTorture: random sizes and pauses both ways, and each end half-closes
// when it has said all. No byte is lost, doubled or out of order.
func TestSocketsTorture(t *testing.T) {
	const flows = 50
	r := newRelay(t)
	var wg sync.WaitGroup
	for i := range flows {
		app, ours := conns(t)
		far, backend := conns(t)
		done := make(chan relay.Result, 1)
		r.Start(ours, relay.TCP(far), nil, func(res relay.Result) { done <- res })
		var sums [4]uint32 // said and heard, by both
		var sent [2]int64
		for k, c := range []*net.TCPConn{app, backend} {
			rnd := rand.New(rand.NewPCG(uint64(i), uint64(k)))
			wg.Go(func() { sums[k], sent[k] = say(t, c, rnd) })
			wg.Go(func() { sums[3-k] = hear(t, c, uint64(i)) })
		}
		wg.Go(func() {
			res := <-done
			if res.Err != nil {
				t.Errorf("flow %d: %+v", i, res)
			}
		})
		t.Cleanup(func() {
			if sums[0] != sums[2] || sums[1] != sums[3] {
				t.Errorf("flow %d: said %x and %x, heard %x and %x", i, sums[0], sums[1], sums[2], sums[3])
			}
		})
	}
	wg.Wait()
}

// say writes up to some MiB in random pieces and ends its direction.
func say(t *testing.T, c *net.TCPConn, rnd *rand.Rand) (sum uint32, n int64) {
	buf := make([]byte, 300<<10)
	for range rnd.IntN(20) {
		b := buf[:1+rnd.IntN(len(buf)>>rnd.IntN(12))]
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		if _, err := c.Write(b); err != nil {
			t.Error(err)
			return sum, n
		}
		sum = crc32.Update(sum, crc32.IEEETable, b)
		n += int64(len(b))
		if rnd.IntN(4) == 0 {
			time.Sleep(time.Duration(rnd.IntN(2000)) * time.Microsecond)
		}
	}
	if err := c.CloseWrite(); err != nil {
		t.Error(err)
	}
	return sum, n
}

// hear reads to the end, now and then slowly.
func hear(t *testing.T, c *net.TCPConn, seed uint64) (sum uint32) {
	rnd := rand.New(rand.NewPCG(seed, 99))
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		sum = crc32.Update(sum, crc32.IEEETable, buf[:n])
		if err != nil {
			if err != io.EOF {
				t.Error(err)
			}
			return sum
		}
		if rnd.IntN(8) == 0 {
			time.Sleep(time.Duration(rnd.IntN(3000)) * time.Microsecond)
		}
	}
}

// TestResetWithoutCredit: an application that resets its connection while the far
// end does not pull is noticed all the same; one that only half-closes is left
// alone, for its bytes are still to be taken.
func TestResetWithoutCredit(t *testing.T) {
	for _, halfClosed := range []bool{false, true} {
		app, a := conns(t)
		m := &manual{}
		done := make(chan relay.Result, 1)
		flow := newRelay(t).Start(a, m, nil, func(r relay.Result) { done <- r })
		write(t, app, "nobody pulls this")
		<-m.ready
		if halfClosed {
			m.end(io.EOF) // both directions have FINs on their way
			_ = app.CloseWrite()
			select {
			case r := <-done:
				t.Errorf("half-closed: %+v", r)
			case <-time.After(100 * time.Millisecond):
			}
			flow.Cut(errors.New("test is over"))
			continue
		}
		_ = app.SetLinger(0)
		_ = app.Close()
		select {
		case r := <-done:
			if !errors.Is(r.Err, syscall.ECONNRESET) || m.reset.Load() == nil {
				t.Errorf("%+v, far end %v", r, m.reset.Load())
			}
		case <-time.After(10 * time.Second):
			t.Error("not noticed")
			flow.Cut(errors.New("test is over"))
		}
	}
}

// takeError waits for the reset of a connection and takes the one report of it, as
// a write beside the read does that happens to be first, or finds it taken.
func takeError(t *testing.T, c syscall.Conn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for taken, over := 0, false; taken == 0 && !over; runtime.Gosched() {
		if err := raw.Control(func(fd uintptr) {
			info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			over = err == nil && info.State == 7 // TCP_CLOSE
			taken, _ = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR)
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestResetThatAWriteHasSeen: a read that then finds nothing must not take the
// silence for an end.
func TestResetThatAWriteHasSeen(t *testing.T) {
	t.Run("stream", func(t *testing.T) {
		app, a := conns(t)
		same, err := a.File() // the flow takes over a itself
		if err != nil {
			t.Fatal(err)
		}
		defer same.Close()
		m := &manual{}
		done := make(chan relay.Result, 1)
		newRelay(t).Start(a, m, nil, func(r relay.Result) { done <- r })
		write(t, app, strings.Repeat("x", 16<<10)) // as much as makes another read worth it
		<-m.ready
		_ = app.SetLinger(0)
		_ = app.Close()
		takeError(t, same)
		for {
			n, err := m.pull(make([]byte, 64<<10))
			if err == io.EOF {
				t.Fatalf("pulled %d, %v", n, err)
			}
			select {
			case r := <-done:
				if !errors.Is(r.Err, syscall.ECONNRESET) {
					t.Errorf("%+v", r)
				}
				return
			default:
			}
		}
	})
	t.Run("tcp", func(t *testing.T) {
		app, a := conns(t)
		b, backend := conns(t)
		same, err := a.File() // the flow takes over a itself
		if err != nil {
			t.Fatal(err)
		}
		defer same.Close()
		done := make(chan relay.Result, 1)
		newRelay(t).Start(a, relay.TCP(b), nil, func(r relay.Result) { done <- r })
		_ = app.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		for {
			if _, err := app.Write(make([]byte, 64<<10)); err != nil {
				break // all buffers are full: the relay waits in a write
			}
		}
		_ = app.SetLinger(0)
		_ = app.Close()
		takeError(t, same)
		if n, err := io.Copy(io.Discard, backend); err == nil {
			t.Errorf("the backend read %d bytes and an end", n)
		}
		if r := <-done; !errors.Is(r.Err, syscall.ECONNRESET) {
			t.Errorf("%+v", r)
		}
	})
}
