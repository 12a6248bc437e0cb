package hbone_test

import (
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/warren-mesh/warren/proxy/hbone"
)

// manyWords is an application that always has more to say; its address is returned.
func manyWords(t *testing.T) string {
	buf := make([]byte, 1<<20)
	return serveApp(t, func(c *net.TCPConn) {
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	})
}

// stop makes a peer that asks for all that app has, on a tunnel of its own, and stops
// reading once it comes.
func (r *rig) stop(app string) {
	r.tb.Helper()
	c := dial(r.tb, r.hbone.Addr().String())
	f := (&oneTunnel{peer: c}).framed(r.tb, r.pki)
	if err := f.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1}); err != nil {
		r.tb.Fatal(err)
	}
	if err := f.fr.WriteWindowUpdate(0, 1<<30); err != nil {
		r.tb.Fatal(err)
	}
	if err := f.connect(1, app); err != nil {
		r.tb.Fatal(err)
	}
	for got := 0; got < 1<<20; {
		if d, ok := f.next().(*http2.DataFrame); ok {
			got += len(d.Data())
		}
	}
}

// TestStalledTunnels: a peer that stops reading in the middle of bulk keeps one buffer
// with its tunnel's writer, however many tunnels it does that on no more of them than the
// budget has, and all come back.
func TestStalledTunnels(t *testing.T) {
	const (
		tunnels = 24
		limit   = 2 << 20
		small   = 96 << 10 // a tunnel beyond the budget: its state, a small buffer, the peer's own in this process
	)
	budget := hbone.NewBudget(limit)
	r := newRig(t, "", func(r *rig) { r.cfg = hbone.Config{Budget: budget} })
	app := manyWords(t)
	r.stop(app) // what all others use as well is there now
	before := heapInUse()
	var wg sync.WaitGroup
	for range tunnels {
		wg.Go(func() { r.stop(app) })
	}
	wg.Wait()
	waitUntil(t, "all writers wait with as much as there is", func() bool { return budget.Used() > limit-256<<10 })
	// Taking is tried first and undone then, and who has just come to its end still holds what it gives back.
	waitUntil(t, "no more is held than the budget gave", func() bool {
		return budget.Used() <= limit && heapInUse() <= before+limit+tunnels*small
	})
	r.killTunnels()
	waitUntil(t, "all is given back", func() bool { return budget.Used() == 0 })
}

// TestPressureComesAndGoes: memory that runs short and is enough again, all the time and
// in the middle of traffic, changes windows under streams that are full, and no byte.
func TestPressureComesAndGoes(t *testing.T) {
	budget := hbone.NewBudget(1 << 30)
	r := newRig(t, serveApp(t, echo), func(r *rig) { r.cfg = hbone.Config{Budget: budget} })
	over := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 8 {
		c := r.dial()
		_ = c.SetDeadline(time.Now().Add(time.Minute)) // for what never comes
		wg.Go(func() {
			k := talk{seed: uint64(i), up: 8 << 20, upCut: -1, downCut: -1}
			heard := make(chan error, 1)
			go func() { heard <- receive(c, k.seed, true, k.up, false) }()
			if err := send(c, k.seed, true, k.up, -1); err != nil {
				t.Error(err)
			}
			if err := <-heard; err != nil {
				t.Error(err)
			}
		})
	}
	go func() { wg.Wait(); close(over) }()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-tick.C:
			budget.Resize(int64(n%2) << 30)
		case <-over:
			t.Logf("%d changes", n)
			if n < 20 {
				t.Error("too few to say much")
			}
			waitUntil(t, "all is given back", func() bool { r.killTunnels(); return budget.Used() == 0 })
			return
		}
	}
}
