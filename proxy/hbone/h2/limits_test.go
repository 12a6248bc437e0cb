package h2

import (
	"bytes"
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
	{name: "small data", prep: func(p *peer) { p.connect(1) }, once: func(p *peer, _ int) { p.must(p.fr.WriteData(1, false, []byte("x"))) }, honest: 150_000, pace: 3000, reason: "small DATA"},
	{name: "small data, padded", prep: func(p *peer) { p.connect(1) }, once: func(p *peer, _ int) { p.must(p.fr.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{0})) }, honest: 150_000, pace: 3000, reason: "small DATA"},
	{name: "settings, as many as there may be", once: func(p *peer, i int) { p.must(p.fr.WriteSettings(tableSizes(32, i)...)) }, honest: 50, pace: 10, reason: "SETTINGS"},
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

// tableSizes are n settings that ask for tables of every size, huge and none.
func tableSizes(n, seed int) (all []http2.Setting) {
	for i := range n {
		all = append(all, http2.Setting{ID: http2.SettingHeaderTableSize, Val: []uint32{0, 1<<32 - 1, 1, 4096}[(seed+i)%4]})
	}
	return all
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
			for i = 0; p.err == nil && i < 400000; i++ {
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

// TestAnsweredMessagesAreNoFlood: neither messages that are answered nor such as
// carry something are ever too many, however fast they come.
func TestAnsweredMessagesAreNoFlood(t *testing.T) {
	for _, tc := range []struct {
		name    string
		size    int
		answers bool
	}{{"of 1 B, answered", 1, true}, {"of 32 B", 32, false}} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPeer(t, false, testConfig)
			p.wide(1 << 20)
			s := p.connect(1)
			hdr := make([]byte, frameHeaderLen+1)
			for i := range 300 {
				for range 1000 {
					p.must(p.fr.WriteData(1, false, make([]byte, tc.size)))
				}
				p.send()
				if p.err != nil {
					t.Fatalf("after %d: %v", i*1000, p.err)
				}
				p.c.Consumed(s, 1000*tc.size)
				for range 1000 {
					if tc.answers {
						p.c.Ready(s)
						if x, n := p.c.Next(1); x != s || n != 1 || !p.c.Sent(s, hdr, 1, false, false) {
							t.Fatal("an answer was not sent")
						}
					}
				}
				p.c.AppendControl(nil)
				p.must(p.fr.WriteWindowUpdate(1, 1000))
				p.must(p.fr.WriteWindowUpdate(0, 1000))
			}
		})
	}
}

// TestOverheadIsPaidFor: a peer that sends its bytes by ones, between streams that are
// answered and not too fast to be told from somebody honest at once, is found out all the
// same; one whose messages are half as long as they cost may send twice as many.
func TestOverheadIsPaidFor(t *testing.T) {
	for _, tc := range []struct {
		size, pace, streams int
		ends                bool
	}{{1, 19_000, 2, false}, {1, 60_000, 2, true}, {16, 38_000, 2, false}, {16, 120_000, 2, true}, {1, 80_000, 64, false}} {
		p := newPeer(t, false, testConfig)
		s := p.connect(1)
		other := p.connect(3)
		for id := range tc.streams - 2 {
			p.connect(uint32(2*id + 5))
		}
		for range tc.pace / 1000 {
			p.must(p.fr.WriteData(1, false, make([]byte, tc.size)))
		}
		p.must(p.fr.WriteData(3, false, []byte("x"))) // is answered
		wire := bytes.Clone(p.out.Bytes())
		n := 0
		for ; n < 12_000 && p.err == nil; n++ { // each a millisecond
			p.now += time.Millisecond
			_, p.err = p.c.Receive(p.now, wire, nil)
			p.c.Consumed(s, tc.pace/1000*tc.size)
			p.c.Consumed(other, 1)
			p.c.Ready(other)
			if x, _ := p.c.Next(1); x != nil {
				p.c.Sent(x, make([]byte, frameHeaderLen), 1, false, false)
			}
			p.c.AppendControl(nil)
		}
		if ended := p.err != nil; ended != tc.ends {
			t.Errorf("%+v: after %d ms: %v", tc, n, p.err)
		}
	}
}

// TestLongIdle: time that does not fit into the sums of a bucket is enough.
func TestLongIdle(t *testing.T) {
	b := newBucket(1_000_000, 10)
	for b.take(0) {
	}
	if !b.take(40 * 24 * time.Hour) {
		t.Error("nothing after forty days")
	}
}

// TestTableSizes: whatever size of table a peer asks for, ours stays small, and we
// go on understanding each other.
func TestTableSizes(t *testing.T) {
	p := newPeer(t, false, testConfig)
	id := uint32(1)
	for _, size := range []uint32{1<<32 - 1, 0, 1, 4096, 1 << 20} {
		p.must(p.fr.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: size}))
		p.send()
		p.must(p.err)
		if got := p.c.enc.MaxDynamicTableSize(); got != min(size, tableSize) {
			t.Errorf("asked for %d: our encoder's table has %d", size, got)
		}
		for range 3 {
			p.headers(id, false, connectTo...)
			evs := p.send()
			if p.err != nil || len(evs) != 1 {
				t.Fatalf("asked for %d: %v", size, p.err)
			}
			p.c.Accept(evs[0].Stream, [][2]string{{"baggage", "one=two"}})
			p.flush()
			id += 2
		}
	}
	answers := 0
	for _, f := range p.read() {
		if h, ok := f.(*http2.MetaHeadersFrame); ok && h.PseudoValue("status") == "200" {
			answers++
		}
	}
	if answers != 15 {
		t.Errorf("%d answers are understood, want 15", answers)
	}
	// The peer's own encoder may say twice what it has come to.
	p.enc.SetMaxDynamicTableSize(0)
	p.enc.SetMaxDynamicTableSize(4096)
	if block := p.block(connectTo...); sizeUpdates(block) != 2 {
		t.Fatalf("the block begins with %d changes", sizeUpdates(block))
	} else {
		p.must(p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true}))
	}
	if evs := p.send(); p.err != nil || len(evs) != 1 {
		t.Errorf("two changes in one block: %v", p.err)
	}
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
