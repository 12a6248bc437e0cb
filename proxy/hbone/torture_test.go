package hbone_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/relay"
)

// TestTorture runs 500 talks at once through few tunnels and cuts flows at
// random, over and above what talks do to themselves. Each end reads either all
// bytes and the end, or the first of them and an error; afterwards nothing is
// left of it all. The first time makes what all others use as well. WARREN_TORTURE has
// it go on for a time.
func TestTorture(t *testing.T) {
	t.Run("first", torture)
	before := holding(t)
	length, _ := time.ParseDuration(os.Getenv("WARREN_TORTURE"))
	for over := time.Now().Add(length); ; {
		if ok := t.Run("again", torture); !ok || !time.Now().Before(over) {
			break
		}
	}
	waitUntil(t, "descriptors and goroutines are given back", func() bool {
		now := holding(t)
		return now.fds <= before.fds && now.goroutines <= before.goroutines
	})
	now := holding(t)
	t.Logf("%+v, before %+v", now, before)
	// A kilobyte for each connection would be more, and so would one buffer in fifty.
	if now.heap > before.heap+talks*512 {
		t.Errorf("%d KiB in use, were %d", now.heap>>10, before.heap>>10)
	}
	if now.rss > before.rss+talks*64<<10 { // a buffer of bulk in four; the race detector's own memory moves by 8 MiB
		t.Errorf("%d KiB resident, were %d", now.rss>>10, before.rss>>10)
	}
}

const talks = 500

// held is what the process has.
type held struct{ fds, goroutines, heap, rss int }

func holding(t *testing.T) (h held) {
	t.Helper()
	debug.FreeOSMemory() // twice: what pools keep goes with the second collection
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	h = held{fds: descriptors(t), goroutines: runtime.NumGoroutine(), heap: int(m.HeapAlloc)}
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		t.Fatal(err)
	}
	h.rss = resident * os.Getpagesize()
	return h
}

func torture(t *testing.T) {
	var cuts, failed atomic.Int64
	check := func(k talk, c *net.TCPConn, client bool) {
		_ = c.SetDeadline(time.Now().Add(time.Minute)) // for a lost wake-up
		err := k.run(c, client)
		if errors.Is(err, errWrong) && !told(err) || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("client %v of %+v: %v", client, k, err)
		}
		if err != nil && client {
			failed.Add(1)
		}
	}
	backend := serveApp(t, func(c *net.TCPConn) {
		var b [8]byte
		if _, err := io.ReadFull(c, b[:]); err == nil { // else it was cut before it began
			check(newTalk(binary.LittleEndian.Uint64(b[:])), c, false)
		}
	})
	r := newRig(t, backend, func(r *rig) {
		r.cfg = hbone.Config{MaxStreams: talks, InitialWindow: 64 << 10, PoolStreams: talks / 3}
		r.onFlow = func(f *relay.Flow) {
			if rand.IntN(20) == 0 {
				cuts.Add(1)
				r.wg.Go(func() {
					time.Sleep(rand.N(50 * time.Millisecond))
					f.Cut(errors.New("cut"))
				})
			}
		}
	})
	seed := rand.Uint64() &^ whole
	t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	for i := range talks {
		conn, err := net.Dial("tcp", r.front.Addr().String())
		if errors.Is(err, syscall.ECONNRESET) { // cut before connect had returned
			failed.Add(1)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		c := conn.(*net.TCPConn)
		wg.Go(func() {
			k := newTalk((seed + uint64(i)) &^ whole)
			_, _ = c.Write(binary.LittleEndian.AppendUint64(nil, k.seed))
			check(k, c, true)
			c.Close()
		})
	}
	wg.Wait()
	t.Logf("%d cut, %d failed", cuts.Load(), failed.Load())
	if failed.Load() > cuts.Load() {
		t.Error("more failed than were cut")
	}
	for i := range 2 * talks {
		select {
		case <-r.clientDone:
		case <-r.serverDone:
		case <-time.After(10 * time.Second):
			t.Fatalf("%d of %d flows ended", i, 2*talks)
		}
	}
	if len(r.clientDone)+len(r.serverDone) > 0 {
		t.Error("a flow ended twice")
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

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
