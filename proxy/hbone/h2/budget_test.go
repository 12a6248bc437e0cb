package h2

import (
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestWindowsShrinkWhenMemoryIsShort: growth goes back first, then the window
// down to what HTTP/2 begins with; the peer is never taken anything it was given,
// and traffic goes on.
func TestWindowsShrinkWhenMemoryIsShort(t *testing.T) {
	budget := NewBudget(1 << 30)
	cfg := testConfig
	cfg.Budget = budget
	p := newPeer(t, false, cfg)
	s := p.connect(1)
	p.flush()
	run := func(windows int) {
		for range windows {
			// A peer that sends what it may, never more: p.must sees to that.
			n := int(s.recv.avail)
			if n == 0 {
				t.Fatalf("no credit: %+v", s.recv)
			}
			p.now += 10 * time.Millisecond
			p.deliver(s, n, true)
			if r := s.recv; r.avail+r.held()+r.pending != r.size || r.avail > r.size {
				t.Fatalf("%+v", r)
			}
		}
	}
	steps := []struct {
		name   string
		budget int64
		size   int64
	}{
		{"plenty", 1 << 30, 4 << 20},
		{"a little less than is taken", 3 << 20, 3 << 20},
		{"almost nothing", 1, 256 << 10},
		{"nothing", 0, initialWindow},
		{"still nothing", 0, initialWindow},
		{"plenty again", 1 << 30, 4 << 20},
	}
	for _, step := range steps {
		budget.Resize(step.budget)
		run(12)
		if s.recv.size != step.size {
			t.Errorf("%s: window %d, want %d", step.name, s.recv.size, step.size)
		}
		if budget.Used() != s.recv.grown || budget.Used() > max(step.budget, 0) {
			t.Errorf("%s: %d of the budget used, %d grown", step.name, budget.Used(), s.recv.grown)
		}
	}
	p.c.Reset(s, no)
	if budget.Used() != 0 {
		t.Errorf("budget used %d after the end", budget.Used())
	}
}

// TestNoUpdateOfNothing: all credit that is due may be kept back; an update of
// nothing would be an error at the peer (RFC 9113 §6.9).
func TestNoUpdateOfNothing(t *testing.T) {
	budget := NewBudget(1 << 30)
	cfg := testConfig
	cfg.Budget = budget
	p := newPeer(t, false, cfg)
	s := p.connect(1)
	p.flush()
	for range 16 {
		p.deliver(s, 256<<10, true)
	}
	budget.Resize(0)
	p.deliver(s, int(s.recv.size/4), true)
	p.deliver(s, int(s.recv.size/4), true)
	p.c.Consumed(s, 1)
	p.flush()
	for _, f := range p.read() {
		if w, ok := f.(*http2.WindowUpdateFrame); ok && w.Increment == 0 {
			t.Error(w)
		}
	}
}

// TestNewTunnelsStartSmallWhenMemoryIsShort: what is announced is what is kept.
func TestNewTunnelsStartSmallWhenMemoryIsShort(t *testing.T) {
	cfg := testConfig
	cfg.Budget = NewBudget(0)
	p := rawPeer(t, false, cfg)
	p.flush()
	first, err := p.fr.ReadFrame()
	p.must(err)
	f, ok := first.(*http2.SettingsFrame)
	if !ok {
		t.Fatal(first)
	}
	if v, _ := f.Value(http2.SettingInitialWindowSize); v != initialWindow {
		t.Errorf("announced %d", v)
	}
	p.out.WriteString(http2.ClientPreface)
	p.must(p.fr.WriteSettings())
	p.send()
	if s := p.connect(1); s.recv.size != initialWindow {
		t.Errorf("kept %+v", s.recv)
	}
}
