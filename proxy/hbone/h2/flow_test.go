package h2

import (
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// deliver sends n bytes on s from the peer and lets the application take them.
func (p *peer) deliver(s *Stream, n int, take bool) {
	p.t.Helper()
	for n > 0 {
		k := min(n, 64<<10)
		p.must(p.fr.WriteData(s.ID, false, make([]byte, k)))
		p.send()
		p.must(p.err)
		if take {
			p.c.Consumed(s, k)
		}
		n -= k
		p.flush()
	}
	p.in.Reset()
}

func TestWindowsGrowWhileTheReaderKeepsUp(t *testing.T) {
	for name, tc := range map[string]struct {
		pause  time.Duration // between windows' worths
		take   bool
		budget *Budget
		want   int64
	}{
		"fast reader":            {pause: 10 * time.Millisecond, take: true, want: 4 << 20},
		"little traffic":         {pause: time.Second, take: true, want: 256 << 10},
		"budget for one":         {pause: 0, take: true, budget: NewBudget(300 << 10), want: 512 << 10},
		"an eighth is others'":   {pause: 0, take: true, budget: NewBudget(256 << 10), want: 256 << 10},
		"budget for nothing":     {pause: 0, take: true, budget: NewBudget(1), want: 256 << 10},
		"budget for all but one": {pause: 0, take: true, budget: NewBudget(2 << 20), want: 2 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig
			cfg.Budget = tc.budget
			p := newPeer(t, false, cfg)
			s := p.connect(1)
			p.flush()
			for range 64 {
				p.now += tc.pause
				p.deliver(s, 256<<10, tc.take)
			}
			if s.recv.size != tc.want {
				t.Errorf("window %d, want %d", s.recv.size, tc.want)
			}
			if tc.budget != nil && tc.budget.Used() != s.recv.size-256<<10 {
				t.Errorf("budget used %d", tc.budget.Used())
			}
			p.c.Reset(s, no)
			if tc.budget.Used() != 0 {
				t.Errorf("budget used %d after the end", tc.budget.Used())
			}
		})
	}
}

func TestASlowReaderKeepsItsCredit(t *testing.T) {
	p := newPeer(t, false, testConfig)
	slow, fast := p.connect(1), p.connect(3)
	p.flush()
	p.deliver(slow, 256<<10, false) // never taken
	p.deliver(fast, 64<<20, true)   // goes through beside it
	if slow.recv.size != 256<<10 || slow.recv.avail != 0 {
		t.Errorf("slow reader's window: %+v", slow.recv)
	}
	p.must(p.fr.WriteData(1, false, []byte("x")))
	p.send()
	p.flush()
	wantLast(t, p, http2.FrameRSTStream, flow)
}

func TestCreditComesInQuarters(t *testing.T) {
	p := newPeer(t, false, testConfig)
	s := p.connect(1)
	p.flush()
	p.in.Reset()
	take := func(n int) int {
		p.must(p.fr.WriteData(1, false, make([]byte, n)))
		p.send()
		p.must(p.err)
		p.c.Consumed(s, n)
		p.flush()
		for _, f := range p.read() {
			if w, ok := f.(*http2.WindowUpdateFrame); ok && w.StreamID == 1 {
				return int(w.Increment)
			}
		}
		return 0
	}
	if n := take(60 << 10); n != 0 {
		t.Errorf("update of %d too early", n)
	}
	if n := take(4 << 10); n != 64<<10 {
		t.Errorf("update of %d, want a quarter", n)
	}
	// After the end there is nobody to give credit to.
	p.must(p.fr.WriteData(1, true, make([]byte, 100<<10)))
	p.send()
	p.c.Consumed(s, 100<<10)
	p.c.Consumed(s, 1<<30) // and more than came is not believed
	if p.c.HasControl() {
		t.Error("credit for a stream that ended")
	}
}

func TestSendersKeepToTheirCredit(t *testing.T) {
	p := newPeer(t, true, testConfig)
	a, b := p.open(), p.open()
	have := map[*Stream]int{a: 1 << 20, b: 1 << 20}
	p.c.Ready(a)
	p.c.Ready(b)
	total := func() int {
		sent, wire := pump(p.c, 1<<20, have, true)
		p.in.Write(wire)
		p.read()
		return sent[a.ID] + sent[b.ID]
	}
	if n := total(); n != initialWindow {
		t.Errorf("sent %d on the first windows", n)
	}
	p.must(p.fr.WriteWindowUpdate(0, 100000))
	p.send()
	if n := total(); n != initialWindow {
		t.Errorf("sent %d: the streams have their own windows", n)
	}
	p.must(p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: initialWindow + 10000}))
	p.send()
	if n := total(); n != 20000 {
		t.Errorf("sent %d after the windows were raised by 10000", n)
	}
	// Lowered below what is out: nothing until updates make up for it.
	p.must(p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1000}))
	p.must(p.fr.WriteWindowUpdate(a.ID, 10000))
	p.send()
	if n := total(); n != 0 {
		t.Errorf("sent %d into a negative window", n)
	}
	p.must(p.fr.WriteWindowUpdate(a.ID, 65535))
	p.send()
	if n := total(); n != 1000 {
		t.Errorf("sent %d, want what is positive", n)
	}
}

// TestWindowsLoweredWhileStreamsWait: a peer may lower the window of a stream that has its
// place in the round, to nothing and below. It has no turn until there is credit again,
// and then it has.
func TestWindowsLoweredWhileStreamsWait(t *testing.T) {
	const sent = 1000
	for name, initial := range map[string]uint32{"below nothing": 0, "to nothing": sent} {
		t.Run(name, func(t *testing.T) {
			p := newPeer(t, true, testConfig)
			s := p.open()
			p.c.Ready(s)
			hs, _ := p.c.Next(sent)
			if hs != s || !p.c.Sent(s, make([]byte, frameHeaderLen), sent, false, true) {
				t.Fatal("nothing was sent")
			}
			p.must(p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: initial}))
			p.send()
			p.must(p.err)
			if hs, n := p.c.Next(1 << 20); hs != nil {
				t.Fatalf("a frame of %d bytes on a window of %d", n, s.send)
			}
			p.must(p.fr.WriteWindowUpdate(s.ID, 2*sent))
			p.send()
			p.must(p.err)
			if hs, n := p.c.Next(1 << 20); hs != s || int64(n) != s.send {
				t.Errorf("with credit again: %d bytes of %d", n, s.send)
			}
		})
	}
}

// TestNoCreditOutOfNothing: an owner that reports more than it was given does not
// widen the window.
func TestNoCreditOutOfNothing(t *testing.T) {
	p := newPeer(t, false, testConfig)
	s := p.connect(1)
	p.must(p.fr.WriteData(1, false, make([]byte, 1000)))
	p.send()
	p.c.Consumed(s, 1<<20)
	p.flush()
	if s.recv.avail != s.recv.size-1000 || s.recv.pending != 1000 {
		t.Errorf("%+v", s.recv)
	}
}
