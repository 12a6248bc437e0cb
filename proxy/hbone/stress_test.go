package hbone_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/warren-mesh/warren/proxy/relay"
)

// talk is what both ends of one connection agree to do, out of a seed.
type talk struct {
	seed       uint64
	up, down   int64 // bytes each way
	upCut      int64 // the client resets after so many bytes; -1: never
	downCut    int64 // the server likewise
	serverLate bool  // the server speaks after the client's end
}

// whole is the bit of a seed that keeps a talk from being cut.
const whole = 1 << 63

func newTalk(seed uint64) talk {
	r := rand.New(rand.NewPCG(seed, 1))
	size := func() int64 {
		if r.IntN(5) == 0 {
			return 0
		}
		return r.Int64N(1 << (1 + r.IntN(21)))
	}
	k := talk{seed: seed, up: size(), down: size(), upCut: -1, downCut: -1, serverLate: r.IntN(3) == 0}
	if seed&whole != 0 {
		return k
	}
	switch r.IntN(6) {
	case 0:
		k.upCut = r.Int64N(k.up + 1)
	case 1:
		k.downCut = r.Int64N(k.down + 1)
	}
	return k
}

func bytesOf(seed uint64, up bool) *rand.ChaCha8 {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	if up {
		key[8] = 1
	}
	return rand.NewChaCha8(key)
}

// send writes n bytes in pieces of random size with pauses, and then half-closes;
// it resets the connection after cut bytes.
func send(c *net.TCPConn, seed uint64, up bool, n, cut int64) error {
	r := rand.New(rand.NewPCG(seed, 2))
	src := bytesOf(seed, up)
	buf := make([]byte, 64<<10)
	for sent := int64(0); ; {
		if cut >= 0 && sent >= cut {
			_ = c.SetLinger(0)
			return c.Close()
		}
		if sent == n {
			return c.CloseWrite()
		}
		k := min(1+r.Int64N(1<<r.IntN(17)), n-sent)
		if cut >= 0 {
			k = min(k, cut-sent)
		}
		_, _ = src.Read(buf[:k])
		if _, err := c.Write(buf[:k]); err != nil {
			return err
		}
		if sent += k; r.IntN(8) == 0 {
			time.Sleep(time.Duration(r.IntN(3)) * time.Millisecond)
		}
	}
}

// errWrong is what must not happen to a connection, whatever happens to it.
var errWrong = errors.New("wrong")

// receive holds what comes against the pattern. cut: the peer resets.
func receive(c *net.TCPConn, seed uint64, up bool, n int64, cut bool) error {
	r := rand.New(rand.NewPCG(seed, 3))
	want := bytesOf(seed, up)
	got, ref := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); ; {
		k, err := c.Read(got[:1+r.IntN(len(got))])
		_, _ = want.Read(ref[:k])
		if string(got[:k]) != string(ref[:k]) {
			return fmt.Errorf("%w: other bytes behind %d", errWrong, at)
		}
		at += int64(k)
		switch {
		case err == io.EOF && at == n && !cut:
			return nil
		case err == io.EOF:
			return fmt.Errorf("%w: a clean end at %d of %d, cut %v", errWrong, at, n, cut)
		case err != nil && cut && errors.Is(err, syscall.ECONNRESET):
			return nil
		case err != nil:
			return fmt.Errorf("at %d of %d: %w", at, n, err)
		case r.IntN(32) == 0:
			time.Sleep(time.Duration(r.IntN(5)) * time.Millisecond)
		}
	}
}

// run plays one side and returns what it saw of the other.
func (k talk) run(c *net.TCPConn, client bool) error {
	out, in, outCut, inCut := k.up, k.down, k.upCut, k.downCut
	if !client {
		out, in, outCut, inCut = k.down, k.up, k.downCut, k.upCut
	}
	heard := make(chan error, 1)
	go func() { heard <- receive(c, k.seed, !client, in, inCut >= 0) }()
	if !client && k.serverLate && k.downCut < 0 {
		if err := <-heard; err != nil || inCut >= 0 {
			return err
		}
		return send(c, k.seed, client, out, -1)
	}
	err := send(c, k.seed, client, out, outCut)
	herr := <-heard
	switch {
	case outCut >= 0: // what it would have received is its own loss
		return nil
	case inCut >= 0 && told(err): // the one report of the reset went to the write
		return nil
	case inCut >= 0:
		return herr
	}
	return errors.Join(herr, err)
}

func told(err error) bool { return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) }

// TestStress: many connections at a time that do what applications do, resets and
// pauses included. No byte is lost, doubled or reordered, and no reset looks like
// an end. In the middle of the last round, all of whose connections are to end
// well, the server drains.
func TestStress(t *testing.T) {
	conns, rounds := 60, 2
	if n, err := strconv.Atoi(os.Getenv("WARREN_STRESS_ROUNDS")); err == nil {
		conns, rounds = 500, max(2, n)
	}
	seed := rand.Uint64() &^ whole
	t.Logf("seed %d", seed)
	var mu sync.Mutex
	check := func(k talk, side string, err error) {
		if err != nil {
			mu.Lock()
			defer mu.Unlock()
			t.Errorf("%s of %+v: %v", side, k, err)
		}
	}
	var r *rig
	var last atomic.Int32     // arrived in the last round
	var served sync.WaitGroup // of the last round: all of them arrive
	served.Add(conns)
	backend := serveApp(t, func(c *net.TCPConn) {
		var b [8]byte
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return
		}
		k := newTalk(binary.LittleEndian.Uint64(b[:]))
		if k.seed&whole != 0 {
			if int(last.Add(1)) == conns {
				r.drain()
			}
			defer served.Done()
		}
		check(k, "server", k.run(c, false))
	})
	r = newRig(t, backend, func(r *rig) { // nobody listens to these here
		r.clientDone, r.serverDone = make(chan relay.Result, conns*rounds), make(chan relay.Result, conns*rounds)
	})
	for round := range rounds {
		var wg sync.WaitGroup
		for i := range conns {
			wg.Go(func() {
				k := newTalk((seed+uint64(round*conns+i))&^whole | uint64(round/(rounds-1))*whole)
				c, err := net.Dial("tcp", r.front.Addr().String())
				if err != nil {
					check(k, "dial", err)
					return
				}
				defer c.Close()
				_, _ = c.Write(binary.LittleEndian.AppendUint64(nil, k.seed))
				check(k, "client", k.run(c.(*net.TCPConn), true))
			})
		}
		wg.Wait()
	}
	served.Wait()
}
