package record

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
)

// twins are both layers of one end of one connection, with the same keys, and
// what the other end has.
type twins struct {
	own       *own
	stock     *stock
	peer      half // the peer seals with it
	ownSays   half // the peer opens with it what ours says
	stockSays half // and with it what crypto/tls says
	t         testing.TB
}

// newTwins runs one handshake, with what it needs from cfg.
func newTwins(t testing.TB, client bool, server *tls.Config) *twins {
	c, s := net.Pipe()
	defer c.Close()
	defer s.Close()
	dialing := trusting()
	dialing.CurvePreferences = []tls.CurveID{tls.X25519}
	conn, cfg := s, server
	peer := tls.Client(c, dialing)
	if client {
		conn, cfg = c, dialing
		server = server.Clone()
		server.SessionTicketsDisabled = true
		peer = tls.Server(s, server)
	}
	mem := &memConn{Conn: conn, measured: &measured{}}
	keys := &secrets{mem: mem}
	cfg = prepare(cfg, keys)
	us := tls.Server(mem, cfg)
	if client {
		us = tls.Client(mem, cfg)
	}
	done := make(chan error, 1)
	go func() { done <- peer.Handshake() }()
	err := shake(context.Background(), conn, us)
	if err = errors.Join(err, <-done); err != nil {
		t.Fatal(err)
	}
	if rest := mem.detach(); len(rest) > 0 {
		t.Fatal("something came behind the handshake")
	}
	state := us.ConnectionState()
	suite, _ := suiteOf(state.CipherSuite)
	in, out := keys.client, keys.server
	if client {
		in, out = out, in
	}
	w := &twins{stock: &stock{mem: mem, tls: us}, t: t}
	for _, h := range []struct {
		half   *half
		secret []byte
	}{{&w.peer, in}, {&w.ownSays, out}, {&w.stockSays, out}} {
		h.half.suite = suite
		if err := h.half.use(bytes.Clone(h.secret)); err != nil {
			t.Fatal(err)
		}
	}
	l, err := keys.layer(state, client, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.own = l.(*own)
	return w
}

// verdict is what a layer makes of a stream.
type verdict struct {
	plain  []byte
	end    string // "", "EOF", "refused" or "alert": why it stopped
	alert  byte   // what it says when it refused
	err    error
	update bool // it has changed its key
}

// judge hands stream over in chunks and sees what comes of it.
func (w *twins) judge(l Layer, says *half, stream []byte, chunk int) (v verdict) {
	buf := make([]byte, 0, 3*Room)
	for part := range slices.Chunk(stream, chunk) {
		for v.err == nil {
			got, n, err := l.Open(buf, part)
			v.plain, v.err = append(v.plain, got...), err
			if part = part[n:]; len(part) == 0 && cap(got)-len(got) >= Room {
				break
			}
		}
		if v.err != nil {
			break
		}
	}
	out, err := l.Seal(nil, nil)
	if err != nil {
		w.t.Fatalf("%T: saying: %v", l, err)
	}
	alerted := false
	for len(out) > 0 {
		size, err := recordSize(out)
		if err != nil {
			w.t.Fatalf("%T says %x", l, out)
		}
		content, typ, err := says.open(make([]byte, 0, Room), out[:size])
		out = out[size:]
		switch {
		case err == nil && typ == typeAlert && content[0] == levelFatal && len(out) == 0:
			v.alert, alerted = content[1], true
		case err == nil && typ == typeHandshake && bytes.Equal(content, []byte{24, 0, 0, 1, 0}):
			v.update = true
			if err := says.update(); err != nil {
				w.t.Fatal(err)
			}
		default:
			w.t.Fatalf("%T says %x of type %d, %v", l, content, typ, err)
		}
	}
	switch {
	case v.err == io.EOF:
		v.end = "EOF"
	case alerted:
		v.end = "refused"
	case v.err != nil:
		v.end = "alert"
	}
	if alerted && v.end != "refused" {
		w.t.Fatalf("%T: alert %d with %v", l, v.alert, v.err)
	}
	return v
}

// compare demands the same of both layers, but for where ours is stricter or
// says it with the alert that the RFC demands.
func (w *twins) compare(own, stock verdict) {
	same := own.end == stock.end && bytes.Equal(own.plain, stock.plain)
	switch {
	case same && own.alert == stock.alert && (own.update == stock.update || own.end == "refused" || own.end == "alert"):
		return
	case stock.end == "refused" && strings.Contains(stock.err.Error(), "too many") && bytes.HasPrefix(own.plain, stock.plain):
		return // ours is more patient with what carries no data
	case own.end != "refused":
	case same && errorIn(own.err, errOuterType, errInnerType, errTooLong, errKeyUpdateValue, errKeyUpdateSize, errUpdates, errMessage, errTicket):
		return // crypto/tls finds another word for it
	case !same && bytes.HasPrefix(stock.plain, own.plain) &&
		errorIn(own.err, errOuterType, errTooLong, errNoType, errInnerType, errMessage, errTicket, errKeyUpdateSize, errUpdates):
		return // it goes on, or waits for the rest
	}
	w.t.Errorf("ours: %q %d, %d bytes, update %v, %v\nstock: %q %d, %d bytes, update %v, %v",
		own.end, own.alert, len(own.plain), own.update, own.err, stock.end, stock.alert, len(stock.plain), stock.update, stock.err)
}

func errorIn(err error, list ...error) bool {
	return slices.ContainsFunc(list, func(e error) bool { return errors.Is(err, e) })
}

// script turns a fuzzer's bytes into what a peer sends.
type script struct {
	b   []byte
	out []byte
	h   *half
}

func (s *script) byte() byte {
	if len(s.b) == 0 {
		return 0
	}
	c := s.b[0]
	s.b = s.b[1:]
	return c
}

func (s *script) bytes(n int) []byte {
	n = min(n, len(s.b))
	b := s.b[:n]
	s.b = s.b[n:]
	return b
}

func (s *script) record(typ byte, content []byte) { s.out = s.h.seal(s.out, typ, content) }

func (s *script) step() {
	switch s.byte() % 14 {
	case 0:
		s.record(typeData, bytes.Repeat([]byte{s.byte()}, int(s.byte())*70))
	case 1: // padded, of any type
		n := int(s.byte())
		s.out = append(s.out, s.h.raw(append(append(bytes.Clone(s.bytes(n%8)), s.byte()), make([]byte, n)...))...)
	case 2:
		s.record(typeAlert, s.bytes(2))
	case 3:
		s.record(typeHandshake, s.bytes(int(s.byte())%16))
	case 4:
		s.record(typeHandshake, message(messageKeyUpdate, s.byte()&1))
		if err := s.h.update(); err != nil {
			panic(err)
		}
	case 5:
		s.record(typeHandshake, ticket(int(s.byte()), s.bytes(int(s.byte())%8)...))
	case 6:
		s.out = append(s.out, s.bytes(int(s.byte())%32)...)
	case 7:
		s.record(s.byte(), s.bytes(int(s.byte())%32))
	case 8: // one bit of a record is another
		at := len(s.out)
		s.record(typeData, []byte("tampered with"))
		s.out[at+int(s.byte())%(len(s.out)-at)] ^= 1 << (s.byte() % 8)
	case 9:
		for range int(s.byte()) % 20 {
			s.record(typeData, nil)
		}
	case 10: // around the limits
		s.out = append(s.out, s.h.raw(append(make([]byte, MaxPlain-2+int(s.byte())%5), s.byte(), s.byte()))...)
	case 11:
		s.record(typeData, []byte("cut off"))
		s.out = s.out[:len(s.out)-int(s.byte())%20]
	case 12: // a message in pieces
		msg := message(messageKeyUpdate, s.byte())
		if s.byte()&1 == 1 {
			msg = ticket(int(s.byte()) * 40)
		}
		for piece := range slices.Chunk(msg, 1+int(s.byte())%9*100) {
			s.record(typeHandshake, piece)
		}
	case 13:
		s.record(typeChangeCipherSpec+s.byte()%5, s.bytes(1))
	}
}

// FuzzBothLayers gives both layers the same bytes and demands the same verdict.
func FuzzBothLayers(f *testing.F) {
	f.Add(true, byte(0), []byte{0, 'x', 1, 2, 1, 0})
	f.Add(false, byte(0), []byte{0, 'x', 255, 4, 1, 0, 'y', 2, 4, 0, 0, 'z', 1, 2, 2, 48})
	f.Add(true, byte(3), []byte{5, 9, 0, 0, 'x', 1, 12, 0, 1, 200, 1, 0, 'y', 1})
	f.Add(false, byte(200), []byte{1, 20, 'a', 'b', 23, 9, 17, 0, 'x', 1})
	f.Add(true, byte(1), []byte{10, 2, 23, 0, 10, 3, 1, 23})
	f.Add(false, byte(9), []byte{13, 0, 1, 0, 'x', 1})
	f.Add(false, byte(9), []byte{8, 0, 3, 11, 3})
	f.Add(true, byte(0), []byte{3, 4, 24, 0, 0, 1, 3, 1, 1, 6, 6, 20, 3, 3, 0, 1, 1})
	f.Add(true, byte(0), []byte(strings.Repeat("\x04\x01", 20)))
	server := selfSigned(f)
	f.Fuzz(func(t *testing.T, client bool, chunk byte, text []byte) {
		if len(text) > 1000 {
			return
		}
		w := newTwins(t, client, server)
		s := script{b: text, h: &w.peer}
		for len(s.b) > 0 && len(s.out) < 200_000 {
			s.step()
		}
		size := 1 + int(chunk)*int(chunk)
		if chunk < 2 {
			size = 1 << 20 // byte by byte is for short streams
			if len(s.out) < 2000 && chunk == 1 {
				size = 1
			}
		}
		w.compare(w.judge(w.own, &w.ownSays, s.out, size), w.judge(w.stock, &w.stockSays, bytes.Clone(s.out), size))
	})
}
