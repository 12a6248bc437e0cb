package h2

import (
	"testing"

	"golang.org/x/net/http2"
)

// wide opens the peer's windows and frame size as far as they go.
func (p *peer) wide(frame uint32) {
	p.must(p.fr.WriteSettings(
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30},
		http2.Setting{ID: http2.SettingMaxFrameSize, Val: frame}))
	p.must(p.fr.WriteWindowUpdate(0, 1<<30))
	p.send()
	p.must(p.err)
	p.flush()
	p.in.Reset()
}

func TestStreamsTakeTurns(t *testing.T) {
	for _, frame := range []uint32{16 << 10, 1 << 20} {
		p := newPeer(t, true, testConfig)
		p.wide(frame)
		have := map[*Stream]int{}
		for range 10 {
			s := p.open()
			have[s] = 1 << 30
			p.c.Ready(s)
		}
		total := map[uint32]int{}
		for range 400 {
			sent, _ := pump(p.c, 100<<10, have, false)
			for id, n := range sent {
				total[id] += n
			}
		}
		lo, hi := 1<<62, 0
		for _, n := range total {
			lo, hi = min(lo, n), max(hi, n)
		}
		if hi-lo > quantum || len(total) != 10 {
			t.Errorf("frame %d: between %d and %d bytes for %d streams", frame, lo, hi, len(total))
		}
	}
}

func TestAloneThereIsNoQuantum(t *testing.T) {
	p := newPeer(t, true, testConfig)
	p.wide(1 << 20)
	s := p.open()
	p.c.Ready(s)
	if _, n := p.c.Next(256 << 10); n != 256<<10 {
		t.Errorf("may send %d", n)
	}
}

func TestReadyBetweenNextAndSent(t *testing.T) {
	p := newPeer(t, true, testConfig)
	s := p.open()
	p.c.Ready(s)
	next, _ := p.c.Next(100)
	if next != s {
		t.Fatal("no turn")
	}
	p.c.Ready(s) // while the owner found it empty
	p.c.Sent(s, make([]byte, 9), 0, false, false)
	if next, _ = p.c.Next(100); next != s {
		t.Error("Ready was lost")
	}
}

func TestClosedBetweenNextAndSent(t *testing.T) {
	p := newPeer(t, true, testConfig)
	p.wide(1 << 20)
	s, other := p.open(), p.open()
	p.c.Ready(s)
	p.c.Ready(other)
	if next, _ := p.c.Next(100); next != s {
		t.Fatal("not its turn")
	}
	before := p.c.send
	p.c.Reset(s, http2.ErrCodeConnect)
	if p.c.Sent(s, make([]byte, 9), 100, false, true) || p.c.send != before {
		t.Error("a frame for a closed stream")
	}
	if next, _ := p.c.Next(100); next != other {
		t.Error("the other stream lost its turn")
	}
}

func TestNothingIsSentBeforeTheAnswer(t *testing.T) {
	p := newPeer(t, true, testConfig)
	s, err := p.c.Open("a:1", nil)
	p.must(err)
	p.c.Ready(s)
	if next, _ := p.c.Next(100); next != nil {
		t.Error("data before the 200")
	}
	p.headers(s.ID, false, ":status", "200")
	p.send()
	p.c.Ready(s)
	if next, _ := p.c.Next(100); next != s {
		t.Error("no data after the 200")
	}
}

func TestRingKeepsItsOrder(t *testing.T) {
	var r ring
	s := make([]*Stream, 5)
	for i := range s {
		s[i] = &Stream{ID: uint32(i)}
		r.add(s[i])
		r.add(s[i]) // twice is once
	}
	r.spend(quantum) // 1 has the turn
	r.remove(s[3])
	r.remove(s[3])
	r.remove(s[1])
	var got []uint32
	for range 4 {
		got = append(got, r.head.ID)
		r.spend(quantum)
	}
	if want := [4]uint32{2, 4, 0, 2}; [4]uint32(got) != want {
		t.Errorf("order %v, want %v", got, want)
	}
	for _, x := range s {
		r.remove(x)
	}
	if r.head != nil || r.n != 0 {
		t.Error("not empty")
	}
}
