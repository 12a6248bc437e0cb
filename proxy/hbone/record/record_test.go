package record_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/proxy/hbone/record"
)

// conns is a TCP connection, both ends.
func conns(tb testing.TB) (client, server net.Conn) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	client, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	server, err = l.Accept()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// ends are the layers chosen by the two ends of a connection.
type ends struct{ client, server record.Choice }

// everyPair runs f for each pair of layers.
func everyPair(t *testing.T, f func(t *testing.T, e ends)) {
	names := map[record.Choice]string{record.Own: "own", record.Stock: "stock"}
	for c, client := range names {
		for s, server := range names {
			t.Run(client+"-"+server, func(t *testing.T) { f(t, ends{c, s}) })
		}
	}
}

// pair runs a handshake; what is sealed must be carried by the test.
func (e ends) pair(tb testing.TB, change func(*tls.Config)) (client, server record.Layer) {
	tb.Helper()
	c, s := conns(tb)
	p := newPKI(tb)
	cc, sc := p.client(tb, "client"), p.server(tb, "server")
	if change != nil {
		change(cc)
		change(sc)
	}
	done := make(chan error, 1)
	var err error
	go func() {
		var err error
		server, err = record.Handshake(context.Background(), s, sc, false, e.server)
		done <- err
	}()
	client, err = record.Handshake(context.Background(), c, cc, true, e.client)
	if err = errors.Join(err, <-done); err != nil {
		tb.Fatal(err)
	}
	return client, server
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

// open opens everything in wire, handed over in chunks of up to max bytes, with
// room for room bytes of plaintext a call.
func open(l record.Layer, wire []byte, max, room int) ([]byte, error) {
	var plain []byte
	buf := make([]byte, 0, room)
	r := rand.New(rand.NewPCG(3, 4))
	for len(wire) > 0 {
		chunk := wire[:min(len(wire), 1+r.IntN(max))]
		wire = wire[len(chunk):]
		for {
			got, n, err := l.Open(buf, chunk)
			plain = append(plain, got...)
			if err != nil {
				return plain, err
			}
			chunk = chunk[n:]
			if len(chunk) == 0 && cap(got)-len(got) >= record.Room {
				break
			}
		}
	}
	return plain, nil
}

func TestSealAndOpen(t *testing.T) { everyPair(t, testSealAndOpen) }

func testSealAndOpen(t *testing.T, e ends) {
	versions := map[string]func(*tls.Config){
		"1.3": nil,
		"1.2": func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
	}
	for name, change := range versions {
		t.Run(name, func(t *testing.T) {
			client, server := e.pair(t, change)
			for _, n := range []int{1, 1000, record.MaxPlain, record.MaxPlain + 1, 300_000} {
				want := randomBytes(n)
				wire, err := client.Seal([]byte("kept"), want)
				if err != nil || string(wire[:4]) != "kept" {
					t.Fatalf("seal: %v", err)
				}
				wire = wire[4:]
				if len(wire) > record.SealedSize(n) {
					t.Errorf("%d bytes sealed to %d, more than %d", n, len(wire), record.SealedSize(n))
				}
				if records := (n + record.MaxPlain - 1) / record.MaxPlain; len(wire) > n+records*record.Overhead {
					t.Errorf("%d bytes in more than %d records", n, records)
				}
				for _, max := range []int{3, 5000, 1 << 20} {
					if max == 3 && n > 50_000 {
						continue
					}
					got, err := open(server, wire, max, 100_000)
					if err != nil || !bytes.Equal(got, want) {
						t.Fatalf("%d bytes in chunks of %d: %d bytes, %v", n, max, len(got), err)
					}
					if wire, err = client.Seal(nil, want); err != nil {
						t.Fatal(err)
					}
				}
				if _, err := open(server, wire, 1<<20, record.Room); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestBothDirectionsAtOnce(t *testing.T) { everyPair(t, testBothDirectionsAtOnce) }

func testBothDirectionsAtOnce(t *testing.T, e ends) {
	client, server := e.pair(t, nil)
	errs := make(chan error, 2)
	ab, ba := make(chan []byte), make(chan []byte)
	side := func(l record.Layer, out chan<- []byte, in <-chan []byte) {
		go func() {
			defer close(out)
			for range 200 {
				b, err := l.Seal(nil, make([]byte, 10_000))
				if err != nil {
					return
				}
				out <- b
			}
		}()
		total := 0
		for b := range in {
			p, err := open(l, b, 1<<20, 64<<10)
			if err != nil {
				errs <- err
				for range in {
				}
				return
			}
			total += len(p)
		}
		if total != 2_000_000 {
			errs <- errors.New("bytes lost")
			return
		}
		errs <- nil
	}
	go side(client, ab, ba)
	go side(server, ba, ab)
	if err := errors.Join(<-errs, <-errs); err != nil {
		t.Error(err)
	}
}

// TestBytesBehindTheHandshake: what a peer sends along with its last handshake
// message is not lost.
func TestBytesBehindTheHandshake(t *testing.T) { everyPair(t, testBytesBehindTheHandshake) }

func testBytesBehindTheHandshake(t *testing.T, e ends) {
	c, s := conns(t)
	p := newPKI(t)
	cc, sc := p.client(t, "client"), p.server(t, "server")
	go func() {
		// The client's Finished and its first record leave in one segment.
		hold := &holding{Conn: c}
		tc := tls.Client(hold, cc)
		if tc.Handshake() == nil {
			_, _ = tc.Write([]byte("early"))
		}
		hold.release()
	}()
	l, err := record.Handshake(context.Background(), s, sc, false, e.server)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 0, 64<<10)
	got, _, err := l.Open(buf, nil)
	for err == nil && len(got) == 0 { // or it came a moment later
		in := make([]byte, 4096)
		var n int
		if n, err = s.Read(in); err == nil {
			got, _, err = l.Open(buf, in[:n])
		}
	}
	if err != nil || string(got) != "early" {
		t.Errorf("got %q, %v", got, err)
	}
}

// holding keeps back what is written after the first message.
type holding struct {
	net.Conn
	writes int
	held   []byte
}

func (h *holding) Write(p []byte) (int, error) {
	if h.writes++; h.writes == 1 {
		return h.Conn.Write(p)
	}
	h.held = append(h.held, p...)
	return len(p), nil
}

func (h *holding) release() { _, _ = h.Conn.Write(h.held) }

func TestCloseNotify(t *testing.T) { everyPair(t, testCloseNotify) }

func testCloseNotify(t *testing.T, e ends) {
	client, server := e.pair(t, nil)
	wire, err := client.Seal(nil, []byte("last words"))
	if err != nil {
		t.Fatal(err)
	}
	if wire, err = client.CloseWrite(wire); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Seal(nil, []byte("more")); err == nil {
		t.Error("sealed after close_notify")
	}
	got, err := open(server, wire, 1<<20, 64<<10)
	if string(got) != "last words" || err != io.EOF {
		t.Errorf("got %q, %v", got, err)
	}
	// The other direction goes on.
	if wire, err = server.Seal(nil, []byte("answer")); err != nil {
		t.Fatal(err)
	}
	if got, err := open(client, wire, 1<<20, 64<<10); string(got) != "answer" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestTamperingIsFatalAndSaid(t *testing.T) { everyPair(t, testTamperingIsFatalAndSaid) }

func testTamperingIsFatalAndSaid(t *testing.T, e ends) {
	client, server := e.pair(t, nil)
	wire, err := client.Seal(nil, []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	wire[len(wire)-1] ^= 1
	if _, err := open(server, wire, 1<<20, 64<<10); err == nil {
		t.Fatal("a changed record was accepted")
	}
	if !server.Pending() {
		t.Fatal("no alert")
	}
	alert, _ := server.Seal(nil, nil)
	_, err = open(client, alert, 1<<20, 64<<10)
	if err == nil || !strings.Contains(err.Error(), `peer sent alert "bad record MAC"`) {
		t.Errorf("the peer learns %v", err)
	}
	if server.Pending() {
		t.Error("alert is still pending")
	}
}

func TestHandshakeFailures(t *testing.T) { everyPair(t, testHandshakeFailures) }

func testHandshakeFailures(t *testing.T, e ends) {
	p, foreign := newPKI(t), newPKI(t)
	for name, tc := range map[string]struct {
		client     *tls.Config
		peer       func(net.Conn) // in place of the client
		want, side string
	}{
		"http/1":              {peer: func(c net.Conn) { _, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") }, want: "does not speak TLS"},
		"closes at once":      {peer: func(c net.Conn) { c.Close() }, want: "closed the connection during the handshake"},
		"half a handshake":    {peer: func(c net.Conn) { _, _ = c.Write([]byte{22, 3, 1, 2, 0, 1, 0, 1}) }, want: "not finished: took too long"},
		"says nothing":        {peer: func(net.Conn) {}, want: "not finished: took too long"},
		"foreign certificate": {client: foreignClient(p.client(t, "x"), foreign.client(t, "x")), want: "certificate"},
		"http/1.1 only":       {client: with(p.client(t, "x"), func(c *tls.Config) { c.NextProtos = []string{"spdy"} }), want: "protocol"},
	} {
		t.Run(name, func(t *testing.T) {
			c, s := conns(t)
			if tc.client != nil {
				go func() {
					tl := tls.Client(c, tc.client)
					_ = tl.Handshake()
					_, _ = tl.Read(make([]byte, 1))
					c.Close()
				}()
			} else {
				tc.peer(c)
			}
			ctx, cancel := context.WithTimeoutCause(context.Background(), 300*time.Millisecond, errors.New("took too long"))
			defer cancel()
			_, err := record.Handshake(ctx, s, p.server(t, "server"), false, e.server)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want something about %q", err, tc.want)
			}
			s.Close()
		})
	}
}

func with(c *tls.Config, change func(*tls.Config)) *tls.Config {
	change(c)
	return c
}

// foreignClient trusts the server, but shows another CA's certificate.
func foreignClient(ours, foreign *tls.Config) *tls.Config {
	ours.Certificates = foreign.Certificates
	return ours
}

// TestWhyTheServerRefused: in TLS 1.3 a client learns of it after its handshake.
func TestWhyTheServerRefused(t *testing.T) { everyPair(t, testWhyTheServerRefused) }

func testWhyTheServerRefused(t *testing.T, e ends) {
	c, s := conns(t)
	p, foreign := newPKI(t), newPKI(t)
	go func() {
		_, _ = record.Handshake(context.Background(), s, p.server(t, "server"), false, e.server)
		s.Close()
	}()
	l, err := record.Handshake(context.Background(), c, foreignClient(p.client(t, "x"), foreign.client(t, "x")), true, e.client)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 0, 64<<10)
	in := make([]byte, 4096)
	for err == nil {
		_, n := 0, 0
		if n, err = c.Read(in); err == nil {
			_, _, err = l.Open(buf, in[:n])
		}
	}
	if !strings.Contains(err.Error(), "peer sent alert") || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("the client learns %v", err)
	}
}

func BenchmarkSealOpen(b *testing.B) {
	for _, choice := range []record.Choice{record.Stock, record.Own} {
		benchmarkSealOpen(b, choice)
	}
}

func benchmarkSealOpen(b *testing.B, choice record.Choice) {
	layer := map[record.Choice]string{record.Stock: "stock", record.Own: "own"}[choice]
	for _, n := range []int{1, 64, 1024, 16 << 10, 256 << 10} {
		client, server := ends{choice, choice}.pair(b, nil)
		plain := make([]byte, n)
		wire := make([]byte, 0, record.SealedSize(n))
		out := make([]byte, 0, record.SealedSize(n)+record.Room)
		b.Run(fmt.Sprintf("%s/%d", layer, n), func(b *testing.B) {
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				w, err := client.Seal(wire, plain)
				if err != nil {
					b.Fatal(err)
				}
				got, took, err := server.Open(out, w)
				if err != nil || took != len(w) || len(got) != n {
					b.Fatal(len(got), took, err)
				}
			}
		})
	}
}
