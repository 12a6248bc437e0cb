package relay_test

import (
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/warren-mesh/warren/proxy/ready"
	"github.com/warren-mesh/warren/proxy/relay"
)

func goroutines() int { return runtime.NumGoroutine() }

// manual is a far end that the test plays.
type manual struct {
	pull func([]byte) (int, error)
	push func([][]byte) (int, error)
	end  func(error)
	// notify is the loop's way to tell the flow.
	notify func(ready.Events, *ready.Turn)
	ready  chan struct{} // may be nil: then made by Attach
	took   atomic.Int64
	reset  atomic.Value
}

func (m *manual) Attach(near relay.Near) {
	if m.ready == nil {
		m.ready = make(chan struct{}, 16)
	}
	m.pull, m.push, m.end = near.Pull, near.Push, near.End
	m.notify = near.(ready.Handler).Notify
}

func (m *manual) Ready() relay.Flusher { m.ready <- struct{}{}; return nil }
func (m *manual) Took(n int)           { m.took.Add(int64(n)) }
func (m *manual) Reset(err error)      { m.reset.Store(err) }

// wire is a stream in memory with a window; newWire returns its two ends.
type wire struct {
	other *wire
	mu    sync.Mutex
	cond  sync.Cond
	att   bool
	ready bool
	over  bool
	win   int
	pull  func([]byte) (int, error)
	push  func([][]byte) (int, error)
	end   func(error)
}

const wireWindow = 256 << 10

func newWire() (a, b *wire) {
	a, b = &wire{win: wireWindow}, &wire{win: wireWindow}
	a.other, b.other = b, a
	a.cond.L, b.cond.L = &a.mu, &b.mu
	return a, b
}

func (w *wire) Attach(near relay.Near) {
	w.mu.Lock()
	w.att, w.pull, w.push, w.end = true, near.Pull, near.Push, near.End
	w.cond.Broadcast()
	w.mu.Unlock()
	go w.run()
}

// run pulls from our end and pushes to the other, until either is over.
func (w *wire) run() {
	o := w.other
	o.mu.Lock()
	for !o.att {
		o.cond.Wait()
	}
	o.mu.Unlock()
	buf := make([]byte, 64<<10)
	for {
		w.mu.Lock()
		for !w.over && (!w.ready || w.win == 0) {
			w.cond.Wait()
		}
		if w.over {
			w.mu.Unlock()
			return
		}
		n := min(w.win, len(buf))
		w.ready = false
		w.mu.Unlock()
		n, err := w.pull(buf[:n])
		if n > 0 {
			k, perr := o.push([][]byte{buf[: n/2 : n/2], buf[n/2 : n]})
			w.mu.Lock()
			w.win -= n - k
			w.ready = true
			w.mu.Unlock()
			if perr != nil {
				return
			}
		}
		if err == io.EOF {
			o.end(io.EOF)
			return
		}
		if err != nil {
			return
		}
	}
}

func (w *wire) Ready() relay.Flusher {
	w.mu.Lock()
	w.ready = true
	w.cond.Broadcast()
	w.mu.Unlock()
	return nil
}

func (w *wire) Took(n int) {
	w.other.mu.Lock()
	w.other.win += n
	w.other.cond.Broadcast()
	w.other.mu.Unlock()
}

func (w *wire) Reset(err error) {
	for _, x := range []*wire{w, w.other} {
		x.mu.Lock()
		was := x.over
		x.over = true
		x.cond.Broadcast()
		x.mu.Unlock()
		if !was && x == w.other && x.att {
			x.end(err)
		}
	}
}
