package h2

import (
	"errors"
	"testing"

	"golang.org/x/net/http2"
)

func TestHalfClosed(t *testing.T) {
	for _, peerFirst := range []bool{true, false} {
		p := newPeer(t, false, testConfig)
		s := p.connect(1)
		p.c.Ready(s)
		ours := func() { p.in.Write(second(pump(p.c, 1000, map[*Stream]int{s: 10}, true))) }
		theirs := func() { p.must(p.fr.WriteData(1, true, nil)); p.send() }
		if peerFirst {
			theirs()
		} else {
			ours()
		}
		if s.Done() || s.RemoteEnded() != peerFirst || s.LocalEnded() == peerFirst || p.c.Streams() != 1 {
			t.Errorf("peer first %v: half closed", peerFirst)
		}
		if peerFirst {
			ours()
		} else {
			theirs()
		}
		if !s.Done() || p.c.Streams() != 0 {
			t.Errorf("peer first %v: not closed", peerFirst)
		}
		p.flush()
		frames := p.read()
		if d, ok := frames[len(frames)-1].(*http2.DataFrame); !ok || !d.StreamEnded() || len(d.Data()) != 10 {
			t.Errorf("sent %v", frames)
		}
	}
}

func second[A, B any](_ A, b B) B { return b }

func TestRefuse(t *testing.T) {
	p := newPeer(t, false, testConfig)
	p.headers(1, false, connectTo...)
	evs := p.send()
	p.c.Refuse(evs[0].Stream, 401)
	p.c.Refuse(evs[0].Stream, 503) // once is enough
	p.c.Accept(evs[0].Stream, nil)
	p.flush()
	frames := p.read()
	if len(frames) != 2 {
		t.Fatalf("sent %v", frames)
	}
	h, ok := frames[0].(*http2.MetaHeadersFrame)
	if !ok || !h.StreamEnded() || h.PseudoValue("status") != "401" || len(h.RegularFields()) > 0 {
		t.Errorf("sent %v", frames[0])
	}
	if r, ok := frames[1].(*http2.RSTStreamFrame); !ok || r.ErrCode != no {
		t.Errorf("sent %v", frames[1])
	}
}

func TestOtherMethodsGet400(t *testing.T) {
	p := newPeer(t, false, testConfig)
	p.headers(1, true, ":method", "GET", ":scheme", "https", ":path", "/", ":authority", "x")
	if evs := p.send(); len(evs) > 0 || p.err != nil {
		t.Fatalf("%v, %v", kinds(evs), p.err)
	}
	p.flush()
	frames := p.read()
	if h, ok := frames[0].(*http2.MetaHeadersFrame); len(frames) != 1 || !ok || h.PseudoValue("status") != "400" {
		t.Errorf("sent %v", frames)
	}
}

func TestInterimAnswersAreSkipped(t *testing.T) {
	p := newPeer(t, true, testConfig)
	s, err := p.c.Open("a:1", nil)
	p.must(err)
	p.headers(s.ID, false, ":status", "103")
	p.headers(s.ID, false, ":status", "200", "baggage", "x")
	evs := p.send()
	if len(evs) != 1 || evs[0].Status != 200 || p.err != nil {
		t.Errorf("%v, %v", kinds(evs), p.err)
	}
	s2, err := p.c.Open("a:1", nil)
	p.must(err)
	for range maxInterim + 1 {
		p.headers(s2.ID, false, ":status", "103")
	}
	if evs := p.send(); len(evs) != 1 || evs[0].Kind != Reset {
		t.Errorf("%v, %v", kinds(evs), p.err)
	}
}

func TestGoAwayFromTheServer(t *testing.T) {
	p := newPeer(t, true, testConfig)
	a, b := p.open(), p.open()
	c, err := p.c.Open("a:1", nil)
	p.must(err)
	p.must(p.fr.WriteGoAway(b.ID, no, []byte("bye")))
	evs := p.send()
	if len(evs) != 2 || evs[0].Kind != Reset || evs[0].Stream != c || !evs[0].Unprocessed || evs[1].Kind != GoAway {
		t.Errorf("%v, %v", kinds(evs), p.err)
	}
	if _, err := p.c.Open("a:1", nil); !errors.Is(err, ErrGoingAway) {
		t.Errorf("Open: %v", err)
	}
	if a.Done() || b.Done() || !c.Done() || !p.c.GoingAway() {
		t.Error("wrong streams ended")
	}
}

func TestRefusedStreamIsUnprocessed(t *testing.T) {
	p := newPeer(t, true, testConfig)
	for _, code := range []http2.ErrCode{http2.ErrCodeRefusedStream, http2.ErrCodeCancel} {
		s, err := p.c.Open("a:1", nil)
		p.must(err)
		p.must(p.fr.WriteRSTStream(s.ID, code))
		evs := p.send()
		if len(evs) != 1 || evs[0].Unprocessed != (code == http2.ErrCodeRefusedStream) || evs[0].Code != code {
			t.Errorf("%v: %v", code, evs)
		}
	}
}

func TestDrain(t *testing.T) {
	p := newPeer(t, false, testConfig)
	p.connect(1)
	p.c.GoAway(false, no) // warning: a request may be on its way
	p.connect(3)
	p.c.GoAway(true, no)
	p.c.GoAway(true, no) // said once
	p.headers(5, false, connectTo...)
	if evs := p.send(); len(evs) > 0 || p.err != nil || p.c.Streams() != 2 {
		t.Errorf("%v, %v", kinds(evs), p.err)
	}
	p.flush()
	var last []uint32
	for _, f := range p.read() {
		if g, ok := f.(*http2.GoAwayFrame); ok {
			last = append(last, g.LastStreamID)
		}
	}
	if len(last) != 2 || last[0] != 1<<31-1 || last[1] != 3 {
		t.Errorf("last streams %v", last)
	}
}

func TestConcurrencyLimits(t *testing.T) {
	t.Run("server", func(t *testing.T) {
		cfg := testConfig
		cfg.MaxStreams = 2
		p := newPeer(t, false, cfg)
		p.connect(1)
		p.connect(3)
		p.headers(5, false, connectTo...)
		if evs := p.send(); len(evs) > 0 || p.err != nil {
			t.Fatalf("%v, %v", kinds(evs), p.err)
		}
		p.flush()
		wantLast(t, p, http2.FrameRSTStream, http2.ErrCodeRefusedStream)
	})
	t.Run("client", func(t *testing.T) {
		p := newPeer(t, true, testConfig)
		if n := p.c.Capacity(); n != assumedStreams {
			t.Errorf("capacity %d before the peer says", n)
		}
		p.must(p.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 2}))
		p.send()
		a := p.open()
		p.open()
		if _, err := p.c.Open("a:1", nil); !errors.Is(err, ErrStreams) {
			t.Errorf("third stream: %v", err)
		}
		p.c.Reset(a, http2.ErrCodeCancel)
		p.open()
	})
}

func TestHeaderListOfThePeer(t *testing.T) {
	p := newPeer(t, true, testConfig)
	p.must(p.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 200}))
	p.send()
	if _, err := p.c.Open("a:1", [][2]string{{"baggage", string(make([]byte, 200))}}); !errors.Is(err, ErrHeaderSize) {
		t.Errorf("Open: %v", err)
	}
	p.open()
}

func TestLongHeadersAreContinued(t *testing.T) {
	cfg := testConfig
	cfg.MaxHeaderList = 64 << 10
	client, server := NewClient(cfg), NewServer(cfg)
	value := make([]byte, 40<<10)
	for i := range value {
		value[i] = byte('!' + i*7%90)
	}
	if _, err := client.Open("a:1", [][2]string{{"baggage", string(value)}}); err != nil {
		t.Fatal(err)
	}
	evs, err := server.Receive(0, client.AppendControl(nil), nil)
	if err != nil || len(evs) != 2 || evs[1].Kind != Request || evs[1].Header[2].Value != string(value) {
		t.Errorf("%v, %v", kinds(evs), err)
	}
}
