package proxy

import (
	"context"
	"math"
	runtimemetrics "runtime/metrics"
	"time"
)

const (
	// windowBudget caps the sum of what the windows of all tunnels may grow by, in
	// bytes, where memory has no limit or plenty of it is left.
	windowBudget = 1 << 30
	// pressureEvery is how often the memory in use is looked at.
	pressureEvery = 500 * time.Millisecond
)

// memory is what Go's runtime knows of it, in bytes.
type memory struct {
	limit    uint64 // the soft limit
	total    uint64 // mapped
	released uint64 // given back to the system
	free     uint64 // of the heap: may be given back
	objects  uint64 // in the heap, garbage among them
	live     uint64 // objects that the last garbage collection found in use
}

// need is what would be in use after a garbage collection.
func (m memory) need() uint64 {
	spare := m.released + m.free
	if m.objects > m.live {
		spare += m.objects - m.live
	}
	return m.total - min(spare, m.total)
}

// windows is how much windows may have grown by, together: half of the distance
// to the limit, so that peers which all send what they may at once still find
// room. From nine tenths of the limit on there is nothing to give, and windows
// shrink before anything else fails.
func (m memory) windows() int64 {
	need := m.need()
	switch {
	case m.limit >= math.MaxInt64:
		return windowBudget
	case need >= m.limit/10*9:
		return 0
	}
	return int64(min((m.limit-need)/2, windowBudget))
}

// memoryReader reads memory without stopping anything.
type memoryReader struct{ samples []runtimemetrics.Sample }

func newMemoryReader() *memoryReader {
	r := &memoryReader{}
	for _, name := range []string{
		"/gc/gomemlimit:bytes", "/memory/classes/total:bytes", "/memory/classes/heap/released:bytes",
		"/memory/classes/heap/free:bytes", "/memory/classes/heap/objects:bytes", "/gc/heap/live:bytes",
	} {
		r.samples = append(r.samples, runtimemetrics.Sample{Name: name})
	}
	return r
}

func (r *memoryReader) read() memory {
	runtimemetrics.Read(r.samples)
	at := func(i int) uint64 { return r.samples[i].Value.Uint64() }
	return memory{limit: at(0), total: at(1), released: at(2), free: at(3), objects: at(4), live: at(5)}
}

// watchMemory fits the budget of windows to the memory that is left, until ctx
// ends.
func (s *Server) watchMemory(ctx context.Context) {
	r := newMemoryReader()
	short := false
	for tick := time.NewTicker(pressureEvery); ; {
		m := r.read()
		short = s.fitWindows(m, short)
		if m.limit >= math.MaxInt64 {
			tick.Stop() // nothing will change
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return
		}
	}
}

// fitWindows sets the budget, and says whether memory is short.
func (s *Server) fitWindows(m memory, was bool) (short bool) {
	n := m.windows()
	s.budget.Resize(n)
	switch short = n == 0; {
	case short && !was:
		s.log.Warn("memory is short: windows shrink", "limit", m.limit, "need", m.need(), "windows", s.budget.Used())
	case was && !short:
		s.log.Info("memory is enough again", "limit", m.limit, "need", m.need(), "windows", n)
	}
	return short
}
