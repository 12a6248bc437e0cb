package h2

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// announced returns the initial windows that the Conn has said since it was asked last.
func (p *peer) announced() (all []uint32) {
	p.t.Helper()
	p.flush()
	for _, f := range p.read() {
		if s, ok := f.(*http2.SettingsFrame); ok && !s.IsAck() {
			if v, ok := s.Value(http2.SettingInitialWindowSize); ok {
				all = append(all, v)
			}
		}
	}
	return all
}

// TestOldConnectionsAreToldOfPressure: when memory runs short, what peers were promised
// on connections and streams that are there shrinks too, and comes back.
func TestOldConnectionsAreToldOfPressure(t *testing.T) {
	for _, client := range []bool{true, false} {
		cfg := testConfig
		cfg.Budget = NewBudget(1 << 30)
		p := newPeer(t, client, cfg)
		streams := func(id uint32) *Stream {
			if client {
				return p.open()
			}
			return p.connect(id)
		}
		idle, used, late := streams(1), streams(3), (*Stream)(nil)
		p.send()
		if got := p.announced(); got != nil {
			t.Fatalf("announced %d with plenty of memory", got)
		}
		p.must(p.fr.WriteData(used.ID, false, make([]byte, 100<<10)))
		p.send()

		cfg.Budget.Resize(0)
		p.must(p.fr.WritePing(false, [8]byte{}))
		p.send()
		if got := p.announced(); len(got) != 1 || got[0] != initialWindow {
			t.Fatalf("announced %d, want %d once", got, initialWindow)
		}
		p.send()
		if got := p.announced(); got != nil {
			t.Fatalf("announced %d before the first was acknowledged", got)
		}
		// What was promised holds until the peer says that it knows.
		p.must(p.fr.WriteData(used.ID, false, make([]byte, 100<<10)))
		p.send()
		late = streams(5)
		p.must(p.fr.WriteData(late.ID, false, make([]byte, 1<<10)))
		p.must(p.fr.WriteSettingsAck())
		p.send()
		p.must(p.err)
		for s, held := range map[*Stream]int64{idle: 0, late: 1 << 10, used: 200 << 10} {
			if r := s.recv; r.size != initialWindow || r.held() != held || r.avail != initialWindow-held {
				t.Errorf("stream %d: %+v, holds %d", s.ID, r, r.held())
			}
		}
		p.must(p.fr.WriteData(used.ID, true, nil)) // needs no credit where there is less than none
		p.send()
		p.must(p.err)
		p.must(p.fr.WriteData(late.ID, false, make([]byte, 64<<10)))
		p.send()
		p.must(p.err)
		if !late.Done() {
			t.Error("more than the window was taken")
		}

		cfg.Budget.Resize(1 << 30)
		p.send()
		if got := p.announced(); len(got) != 1 || got[0] != testConfig.InitialWindow {
			t.Fatalf("announced %d with plenty again", got)
		}
		p.must(p.fr.WriteSettingsAck())
		p.send()
		p.must(p.err)
		if r := idle.recv; r.size != 256<<10 || r.avail != 256<<10 {
			t.Errorf("%+v with plenty again", r)
		}
	}
}

// TestShrunkenWindowsStayOfUse: what had shrunk by credit kept back does not shrink
// twice.
func TestShrunkenWindowsStayOfUse(t *testing.T) {
	cfg := testConfig
	cfg.Budget = NewBudget(1 << 30)
	p := newPeer(t, false, cfg)
	s := p.connect(1)
	p.flush()
	p.deliver(s, 256<<10, true)
	cfg.Budget.Resize(0)
	for range 8 { // credit is due, and kept
		p.deliver(s, int(s.recv.avail), true)
		p.now += time.Millisecond
	}
	if s.recv.size != initialWindow {
		t.Fatalf("%+v", s.recv)
	}
	p.must(p.fr.WriteSettingsAck())
	p.send()
	p.must(p.err)
	p.flush()
	if r := s.recv; r.size != initialWindow || r.avail != initialWindow || r.pending != 0 {
		t.Errorf("%+v", r)
	}
}

// TestPeersThatIgnoreSettings lose their connection.
func TestPeersThatIgnoreSettings(t *testing.T) {
	cfg := testConfig
	cfg.Budget = NewBudget(1 << 30)
	p := newPeer(t, false, cfg)
	pong := func() { p.must(p.fr.WritePing(true, [8]byte{})); p.send() }
	for range 2 * maxPongs {
		pong()
	}
	p.must(p.err)
	cfg.Budget.Resize(0)
	p.c.Ping([8]byte{})
	for range maxPongs {
		pong()
	}
	p.must(p.err)
	pong()
	var ce *ConnError
	if !errors.As(p.err, &ce) || ce.Code != http2.ErrCodeSettingsTimeout {
		t.Fatal(p.err)
	}
}

// TestPeersThatIgnoreTheFirstSettings lose theirs, too: they could be told of no pressure.
func TestPeersThatIgnoreTheFirstSettings(t *testing.T) {
	for _, client := range []bool{true, false} {
		for _, acks := range []bool{true, false} {
			p := rawPeer(t, client, testConfig)
			if !client {
				p.out.WriteString(http2.ClientPreface)
			}
			p.must(p.fr.WriteSettings())
			p.send()
			p.flush()
			p.must(p.err)
			for i := range 2 * maxPongs {
				if acks && i == maxPongs-1 { // late, but not too late
					p.must(p.fr.WriteSettingsAck())
				}
				p.must(p.fr.WritePing(true, [8]byte{}))
				p.send()
				if !acks && i >= maxPongs {
					break
				}
				p.must(p.err)
			}
			var ce *ConnError
			if ended := errors.As(p.err, &ce) && ce.Code == http2.ErrCodeSettingsTimeout; ended == acks {
				t.Errorf("client %v, acknowledges %v: %v", client, acks, p.err)
			}
		}
	}
}
