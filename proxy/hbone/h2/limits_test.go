package h2

import (
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// flood is something that a peer may do now and then, but not without end.
type flood struct {
	name   string
	client bool
	prep   func(*peer)
	once   func(p *peer, i int)
	honest int // in a burst, that must pass
	pace   int // a second, that must pass for ever
	reason string
}

var floods = []flood{
	{name: "ping", once: func(p *peer, _ int) { p.must(p.fr.WritePing(false, [8]byte{})) }, honest: 100, pace: 10, reason: "PING"},
	{name: "pong", once: func(p *peer, _ int) { p.must(p.fr.WritePing(true, [8]byte{})) }, honest: 100, pace: 10, reason: "PING"},
	{name: "settings", once: func(p *peer, _ int) { p.must(p.fr.WriteSettings()) }, honest: 50, pace: 10, reason: "SETTINGS"},
	{name: "priority", once: func(p *peer, i int) { raw(p, http2.FramePriority, 0, uint32(i*2+1), 5) }, honest: 500, pace: 40, reason: "PRIORITY"},
	{name: "unknown frames", once: func(p *peer, _ int) { raw(p, 99, 0, 0, 1000) }, honest: 500, pace: 40, reason: "UNKNOWN"},
	{name: "goaway", client: true, once: func(p *peer, _ int) { p.must(p.fr.WriteGoAway(0, no, nil)) }, honest: 2, pace: 1, reason: "GOAWAY"},
	{name: "empty data", prep: func(p *peer) { p.connect(1) }, once: func(p *peer, _ int) { p.must(p.fr.WriteData(1, false, nil)) }, honest: 100, pace: 5, reason: "empty DATA"},
	{name: "window updates", prep: func(p *peer) { p.connect(1) }, once: func(p *peer, _ int) { p.must(p.fr.WriteWindowUpdate(1, 1)) }, honest: 10000, pace: 1000, reason: "window updates"},
	{name: "rapid reset", once: func(p *peer, i int) {
		p.headers(uint32(i*2+1), false, connectTo...)
		p.must(p.fr.WriteRSTStream(uint32(i*2+1), http2.ErrCodeCancel))
	}, honest: 500, pace: 100, reason: "taken back"},
	{name: "requests over the limit", prep: func(p *peer) {
		for i := range uint32(200) {
			p.connect(i*2 + 1)
		}
	}, once: func(p *peer, i int) { p.headers(uint32(i*2+1001), false, connectTo...) }, honest: 500, pace: 100, reason: "over the limit"},
	{name: "malformed requests", once: func(p *peer, i int) { p.headers(uint32(i*2+1), false, ":method", "CONNECT") }, honest: 500, pace: 100, reason: "stream errors"},
	{name: "data on closed streams", prep: func(p *peer) {
		p.connect(1)
		p.must(p.fr.WriteRSTStream(1, no))
	}, once: func(p *peer, _ int) { p.must(p.fr.WriteData(1, false, []byte("x"))) }, honest: 1000, pace: 100, reason: "closed streams"},
	{name: "resets of closed streams", prep: func(p *peer) {
		p.connect(1)
		p.must(p.fr.WriteRSTStream(1, no))
	}, once: func(p *peer, _ int) { p.must(p.fr.WriteRSTStream(1, no)) }, honest: 1000, pace: 100, reason: "closed streams"},
}

func TestFloods(t *testing.T) {
	for _, f := range floods {
		t.Run(f.name, func(t *testing.T) {
			start := func() *peer {
				p := newPeer(t, f.client, testConfig)
				if f.prep != nil {
					f.prep(p)
				}
				p.send()
				p.must(p.err)
				return p
			}
			// A burst passes, also for a peer that is not read meanwhile, and so
			// does a steady pace.
			p, i := start(), 0
			for ; i < f.honest; i++ {
				f.once(p, i)
			}
			p.send()
			if p.err != nil {
				t.Fatalf("honest burst of %d: %v", f.honest, p.err)
			}
			p.c.AppendControl(nil)
			for ; i < f.honest+30*f.pace; i++ {
				p.now += time.Second / time.Duration(f.pace)
				f.once(p, i)
				p.send()
				if p.err != nil {
					t.Fatalf("honest pace of %d a second, after %d: %v", f.pace, i, p.err)
				}
				p.c.AppendControl(nil)
			}
			// Without pause it ends the connection.
			p = start()
			for i = 0; p.err == nil && i < 200000; i++ {
				f.once(p, i)
				p.send()
				p.c.AppendControl(nil)
			}
			var ce *ConnError
			if !errors.As(p.err, &ce) || ce.Code != calm || !strings.Contains(ce.Reason, f.reason) {
				t.Fatalf("after %d: %v, want a complaint about %q", i, p.err, f.reason)
			}
			t.Logf("ended after %d", i)
		})
	}
}

func TestAPeerThatDoesNotRead(t *testing.T) {
	p := newPeer(t, false, testConfig)
	for range maxPendingAcks + 1 {
		p.must(p.fr.WritePing(false, [8]byte{}))
	}
	p.send()
	var ce *ConnError
	if !errors.As(p.err, &ce) || ce.Code != calm {
		t.Fatalf("%v, want ENHANCE_YOUR_CALM", p.err)
	}
	p.flush()
	wantLast(t, p, http2.FrameGoAway, calm)
}

func TestWhatWeSendEarnsWindowUpdates(t *testing.T) {
	p := newPeer(t, true, testConfig)
	p.wide(1 << 20)
	s := p.open()
	p.c.Ready(s)
	have := map[*Stream]int{s: 1 << 30}
	for i := range 1000 { // a receiver that returns credit for each KiB
		pump(p.c, 256<<10, have, false)
		for range 256 {
			p.must(p.fr.WriteWindowUpdate(0, 1024))
		}
		p.send()
		if p.err != nil {
			t.Fatalf("after %d × 256 KiB: %v", i, p.err)
		}
	}
}

// TestAPeerThatDoesNotReadRefusals: answers other than acknowledgements are
// bounded as well.
func TestAPeerThatDoesNotReadRefusals(t *testing.T) {
	p := newPeer(t, false, testConfig)
	for id := uint32(1); p.err == nil && id < 1<<17; id += 2 {
		p.headers(id, false, ":method", "GET", ":scheme", "https", ":path", "/", ":authority", "x")
		p.send()
	}
	var ce *ConnError
	if !errors.As(p.err, &ce) || ce.Code != calm {
		t.Fatalf("%v, want ENHANCE_YOUR_CALM", p.err)
	}
}
