package h2

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

var testConfig = Config{
	StreamWindow:  4 << 20,
	InitialWindow: 256 << 10,
	ConnWindow:    16 << 20,
	MaxFrame:      1 << 20,
	MaxStreams:    200,
	MaxHeaderList: 16 << 10,
}

// peer is the other side of a Conn, made of http2.Framer: the oracle. What it
// writes goes to the Conn by send; what the Conn has to say comes by read.
type peer struct {
	t   testing.TB
	c   *Conn
	now time.Duration
	out bytes.Buffer // written by fr, not sent yet
	in  bytes.Buffer // read by fr
	fr  *http2.Framer
	enc *hpack.Encoder
	hb  bytes.Buffer
	err error // of the last send
}

// newPeer returns a peer of a fresh Conn, both past the greeting.
func newPeer(t testing.TB, client bool, cfg Config) *peer {
	t.Helper()
	p := rawPeer(t, client, cfg)
	if !client {
		p.out.WriteString(http2.ClientPreface)
	}
	p.must(p.fr.WriteSettings())
	p.send()
	p.flush()
	frames := p.read()
	if len(frames) < 2 || frames[0].Header().Type != http2.FrameSettings {
		t.Fatalf("greeting: %v", frames)
	}
	p.must(p.fr.WriteSettingsAck())
	p.send()
	if p.err != nil {
		t.Fatal(p.err)
	}
	return p
}

// rawPeer is a peer that has not said anything.
func rawPeer(t testing.TB, client bool, cfg Config) *peer {
	p := &peer{t: t}
	if client {
		p.c = NewClient(cfg)
	} else {
		p.c = NewServer(cfg)
	}
	p.fr = http2.NewFramer(&p.out, &p.in)
	p.fr.AllowIllegalWrites = true
	p.fr.AllowIllegalReads = false
	p.fr.SetMaxReadFrameSize(1 << 20)
	p.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.enc = hpack.NewEncoder(&p.hb)
	return p
}

func (p *peer) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// send hands what was written to the Conn.
func (p *peer) send() []Event {
	evs, err := p.c.Receive(p.now, p.out.Bytes(), nil)
	for i := range evs { // the buffer is reused
		evs[i].Data = bytes.Clone(evs[i].Data)
	}
	p.out.Reset()
	p.err = err
	return evs
}

// flush moves the Conn's control frames to where read finds them.
func (p *peer) flush() {
	b := p.c.AppendControl(nil)
	if p.c.client {
		b = bytes.TrimPrefix(b, []byte(http2.ClientPreface))
	}
	p.in.Write(b)
}

// read parses all frames that the Conn sent.
func (p *peer) read() []http2.Frame {
	p.t.Helper()
	var frames []http2.Frame
	for p.in.Len() > 0 {
		f, err := p.fr.ReadFrame()
		if err != nil {
			p.t.Fatalf("our own frame does not parse: %v", err)
		}
		frames = append(frames, f)
	}
	return frames
}

// block encodes a field block: name, value, name, value.
func (p *peer) block(kv ...string) []byte {
	p.hb.Reset()
	for i := 0; i < len(kv); i += 2 {
		p.must(p.enc.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]}))
	}
	return bytes.Clone(p.hb.Bytes())
}

// headers writes a HEADERS frame.
func (p *peer) headers(id uint32, end bool, kv ...string) {
	p.must(p.fr.WriteHeaders(http2.HeadersFrameParam{
		StreamID: id, BlockFragment: p.block(kv...), EndHeaders: true, EndStream: end,
	}))
}

// connect opens stream id on a server and accepts it.
func (p *peer) connect(id uint32) *Stream {
	p.t.Helper()
	p.headers(id, false, ":method", "CONNECT", ":authority", "10.0.0.1:80")
	evs := p.send()
	if p.err != nil || len(evs) != 1 || evs[0].Kind != Request {
		p.t.Fatalf("CONNECT: %v, %v", kinds(evs), p.err)
	}
	p.c.Accept(evs[0].Stream, nil)
	return evs[0].Stream
}

// open opens a stream on a client and answers it.
func (p *peer) open() *Stream {
	p.t.Helper()
	s, err := p.c.Open("10.0.0.1:80", nil)
	p.must(err)
	p.headers(s.ID, false, ":status", "200")
	evs := p.send()
	if p.err != nil || len(evs) != 1 || evs[0].Kind != Response || evs[0].Status != 200 {
		p.t.Fatalf("answer: %v, %v", kinds(evs), p.err)
	}
	return s
}

// pump sends up to max bytes from all ready streams, as a tunnel does, and
// returns the bytes by stream. have says how many bytes a stream has left.
func pump(c *Conn, max int, have map[*Stream]int, end bool) (sent map[uint32]int, wire []byte) {
	sent = map[uint32]int{}
	for max > 0 {
		wire = c.AppendControl(wire)
		s, n := c.Next(max)
		if s == nil {
			break
		}
		k := min(n, have[s])
		have[s] -= k
		frame := make([]byte, 9+k)
		last := have[s] == 0
		if c.Sent(s, frame, k, last && end, !last) {
			wire = append(wire, frame...)
			sent[s.ID] += k
		}
		max -= k
	}
	return sent, wire
}

// kinds lists what happened, for messages.
func kinds(evs []Event) []string {
	var k []string
	for _, e := range evs {
		k = append(k, e.Kind.String())
	}
	return k
}
