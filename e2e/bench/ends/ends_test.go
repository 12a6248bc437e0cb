package ends_test

import (
	"context"
	"math"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/bench/ends"
)

func TestHistogram(t *testing.T) {
	var a, b ends.Histogram
	if got := a.Quantile(0.5); got != 0 {
		t.Errorf("the median of nothing is %v", got)
	}
	for i := 1; i <= 100_000; i++ {
		h := &a
		if i%2 == 0 {
			h = &b
		}
		h.Add(time.Duration(i) * time.Microsecond)
	}
	a.Merge(&b)
	if a.N() != 100_000 {
		t.Errorf("%d values", a.N())
	}
	for _, q := range []float64{0, 0.01, 0.5, 0.99, 0.999, 1} {
		want := max(1, q*100_000) * float64(time.Microsecond)
		if got := float64(a.Quantile(q)); math.Abs(got-want) > want/50 {
			t.Errorf("quantile %v is %v, want %v within 2 %%", q, time.Duration(got), time.Duration(want))
		}
	}
	a.Add(-time.Second)
	a.Add(time.Duration(math.MaxInt64))
	if got := a.Quantile(0); got != 0 {
		t.Errorf("a negative duration counts as %v", got)
	}
}

// TestEnds plays each operation over loopback.
func TestEnds(t *testing.T) {
	addr, board := serve(t)
	dst := func() netip.AddrPort { return addr }
	for _, tt := range []struct {
		name string
		plan ends.Plan
	}{
		{"up", ends.Plan{Op: ends.Up, Conns: 3}},
		{"down", ends.Plan{Op: ends.Down, Conns: 3}},
		{"echo of one byte", ends.Plan{Op: ends.Echo, Conns: 5, Size: 1}},
		{"echo of the largest message", ends.Plan{Op: ends.Echo, Conns: 2, Size: ends.MaxMessage}},
		{"new connections", ends.Plan{Op: ends.Echo, Conns: 4, Size: 1, Fresh: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tt.plan
			marks := 0
			p.Dst, p.Board, p.Warm, p.Length, p.Mark = dst, board, 10*time.Millisecond, 30*time.Millisecond, func() { marks++ }
			r, err := play(t, p)
			if err != nil {
				t.Fatal(err)
			}
			if marks != 2 || r.Took < p.Length {
				t.Errorf("%d marks, a window of %v", marks, r.Took)
			}
			if p.Op == ends.Echo && r.Times.N() == 0 {
				t.Error("no message came back")
			}
			for i, n := range r.Bytes {
				if p.Op != ends.Echo && n == 0 {
					t.Errorf("connection %d moved nothing", i)
				}
			}
		})
	}
}

func TestHold(t *testing.T) {
	addr, _ := serve(t)
	r, err := play(t, ends.Plan{Op: ends.Echo, Conns: 4, Size: 1, Hold: 20, Dst: func() netip.AddrPort { return addr }})
	if err != nil {
		t.Fatal(err)
	}
	if n := r.Held.Alive(); n != 20 {
		t.Errorf("%d connections are alive, want 20", n)
	}
	r.Held.Close()
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close()
	if _, err := play(t, ends.Plan{Op: ends.Echo, Conns: 1, Size: 1, Hold: 1, Dst: func() netip.AddrPort { return gone }}); err == nil {
		t.Error("no error without a server")
	}
}

// play runs a plan as the bench does, on a thread of its own.
func play(t *testing.T, p ends.Plan) (ends.Result, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return ends.Run(ctx, p)
}

func serve(t *testing.T) (netip.AddrPort, *ends.Board) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close() // the port is free again; nothing else here takes one at that moment
	board, err := ends.CreateBoard(filepath.Join(t.TempDir(), "board"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ends.Serve(ctx, addr.String(), board) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := board.Close(); err != nil {
			t.Error(err)
		}
	})
	for {
		c, err := net.Dial("tcp", addr.String())
		if err == nil {
			c.Close()
			return addr, board
		}
		select {
		case err := <-done:
			t.Fatal(err)
		default:
		}
	}
}
