package hbone_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/warren-mesh/warren/proxy/hbone"
)

// framed is a peer made of crypto/tls and http2.Framer, which does what it is told.
type framed struct {
	t    testing.TB
	c    *tls.Conn
	fr   *http2.Framer
	enc  *hpack.Encoder
	hb   bytes.Buffer
	conn net.Conn
}

func newFramed(t testing.TB, c *tls.Conn, raw net.Conn) *framed {
	f := &framed{t: t, c: c, conn: raw, fr: http2.NewFramer(c, c)}
	f.fr.AllowIllegalWrites = true
	f.fr.SetMaxReadFrameSize(1 << 20)
	f.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	f.enc = hpack.NewEncoder(&f.hb)
	return f
}

// headers writes a HEADERS frame: name, value, name, value.
func (f *framed) headers(id uint32, end bool, kv ...string) error {
	f.hb.Reset()
	for i := 0; i < len(kv); i += 2 {
		_ = f.enc.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
	}
	return f.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: f.hb.Bytes(), EndHeaders: true, EndStream: end})
}

func (f *framed) connect(id uint32, authority string) error {
	return f.headers(id, false, ":method", "CONNECT", ":authority", authority)
}

// next returns the next frame that is not about settings, windows or pings.
func (f *framed) next() http2.Frame {
	f.t.Helper()
	for {
		fr, err := f.fr.ReadFrame()
		if err != nil {
			f.t.Fatal(err)
		}
		switch x := fr.(type) {
		case *http2.SettingsFrame:
			if !x.IsAck() {
				_ = f.fr.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !x.IsAck() {
				_ = f.fr.WritePing(true, x.Data)
			}
		case *http2.WindowUpdateFrame:
		default:
			return fr
		}
	}
}

// oneTunnel serves a single tunnel; the peer's end is returned.
type oneTunnel struct {
	peer, ours  net.Conn
	served      chan error
	drain, kill context.CancelFunc
}

func serveOne(t testing.TB, p *pki, cfg hbone.Config, h hbone.HandlerFunc) *oneTunnel {
	t.Helper()
	cfg.Records = records
	l := listen(t)
	peer := dial(t, l.Addr().String())
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	o := &oneTunnel{peer: peer, ours: c, served: make(chan error, 1)}
	var life, ctx context.Context
	life, o.kill = context.WithCancel(context.Background())
	ctx, o.drain = context.WithCancel(context.Background())
	if h == nil {
		h = func(in *hbone.Incoming) { in.Reject(503) }
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		o.served <- hbone.Serve(life, ctx, c, p.server(t, "server"), cfg, h)
	}()
	t.Cleanup(func() { o.kill(); o.drain(); <-done })
	return o
}

// framed completes TLS and the greeting as a client.
func (o *oneTunnel) framed(t testing.TB, p *pki) *framed {
	t.Helper()
	c := tls.Client(o.peer, p.client(t, "client"))
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := newFramed(t, c, o.peer)
	if err := f.fr.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return f
}

func (o *oneTunnel) wait(t testing.TB) error {
	t.Helper()
	select {
	case err := <-o.served:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("the tunnel lives on")
		return nil
	}
}

// impatient makes every time limit short.
var impatient = hbone.Config{
	HandshakeTimeout: time.Second,
	ResponseTimeout:  200 * time.Millisecond,
	PingInterval:     50 * time.Millisecond,
	PingTimeout:      150 * time.Millisecond,
}

// flooding is a peer that does one thing again and again until it is cut off.
func flooding(once func(f *framed, i int) error) func(*tls.Conn) {
	return func(c *tls.Conn) {
		_, _ = io.WriteString(c, http2.ClientPreface)
		var out bytes.Buffer // many frames a record: nothing else fits
		f := newFramed(nil, c, nil)
		f.fr = http2.NewFramer(&out, nil)
		f.fr.AllowIllegalWrites = true
		_ = f.fr.WriteSettings()
		for i := 0; ; i++ {
			if once(f, i) != nil {
				return
			}
			if out.Len() < 16<<10 {
				continue
			}
			if _, err := c.Write(out.Bytes()); err != nil {
				return
			}
			out.Reset()
		}
	}
}

// tables are n settings that ask for a huge table and none by turns.
func tables(n int) (all []http2.Setting) {
	for i := range n {
		all = append(all, http2.Setting{ID: http2.SettingHeaderTableSize, Val: uint32(i%2) * (1<<32 - 1)})
	}
	return all
}

func TestHostilePeers(t *testing.T) {
	p := newPKI(t)
	secure := func(f func(*tls.Conn)) func(net.Conn) {
		return func(c net.Conn) {
			tc := tls.Client(c, p.client(t, "client"))
			if err := tc.Handshake(); err != nil {
				t.Error(err)
			}
			f(tc)
		}
	}
	for name, tc := range map[string]struct {
		do   func(net.Conn)
		want string
		busy bool // refused for what it does, however slow the machine is: no PING is missed
	}{
		"says nothing":     {do: func(net.Conn) {}, want: "timed out"},
		"garbage":          {do: func(c net.Conn) { _, _ = c.Write(bytes.Repeat([]byte{0xa5}, 5000)) }, want: "does not speak TLS"},
		"http/1 in clear":  {do: func(c net.Conn) { _, _ = io.WriteString(c, "CONNECT a:1 HTTP/1.1\r\n\r\n") }, want: "does not speak TLS"},
		"half a handshake": {do: func(c net.Conn) { _, _ = c.Write([]byte{22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}) }, want: "timed out"},
		"http/1 in TLS":    {do: secure(func(c *tls.Conn) { _, _ = io.WriteString(c, "CONNECT a:1 HTTP/1.1\r\n\r\n") }), want: "does not speak HTTP/2"},
		"silent in TLS":    {do: secure(func(*tls.Conn) {}), want: "no HTTP/2 settings"},
		"preface only":     {do: secure(func(c *tls.Conn) { _, _ = io.WriteString(c, http2.ClientPreface) }), want: "no HTTP/2 settings"},
		"garbage in TLS": {do: secure(func(c *tls.Conn) {
			_, _ = io.WriteString(c, http2.ClientPreface+strings.Repeat("\xff\x00\x13", 100))
		}), want: "http2: "},
		"garbage after TLS": {do: secure(func(c *tls.Conn) {
			_, _ = io.WriteString(c.NetConn(), strings.Repeat("\xff\x00\x13", 100))
		}), want: "TLS"},
		"floods resets": {do: secure(func(c *tls.Conn) {
			_, _ = io.WriteString(c, http2.ClientPreface)
			f := newFramed(t, c, nil)
			_ = f.fr.WriteSettings()
			for i := uint32(1); ; i += 2 {
				_ = f.connect(i, "10.0.0.1:1")
				if f.fr.WriteRSTStream(i, http2.ErrCodeCancel) != nil {
					return
				}
			}
		}), want: "taken back", busy: true},
		"floods small data": {do: secure(flooding(func(f *framed, i int) error {
			if i == 0 {
				_ = f.connect(1, "a:1")
				_ = f.connect(3, "a:1")
			}
			return f.fr.WriteData(uint32(1+i%2*2), false, []byte("x"))
		})), want: "ENHANCE_YOUR_CALM", busy: true},
		"floods empty data": {do: secure(flooding(func(f *framed, i int) error {
			if i == 0 {
				_ = f.connect(1, "a:1")
			}
			return f.fr.WriteData(1, false, nil)
		})), want: "flood of empty DATA", busy: true},
		"floods pings": {do: secure(flooding(func(f *framed, i int) error {
			if i == 0 {
				_ = f.fr.WriteSettingsAck() // or that would be missed first
			}
			return f.fr.WritePing(true, [8]byte{})
		})), want: "flood of PING", busy: true},
		"floods settings":       {do: secure(flooding(func(f *framed, i int) error { return f.fr.WriteSettings(tables(1 + i%32)...) })), want: "ENHANCE_YOUR_CALM", busy: true},
		"one endless settings":  {do: secure(flooding(func(f *framed, _ int) error { return f.fr.WriteSettings(tables(2000)...) })), want: "too many settings", busy: true},
		"floods window updates": {do: secure(flooding(func(f *framed, _ int) error { return f.fr.WriteWindowUpdate(0, 1) })), want: "flood of window updates", busy: true},
		"floods continuations": {do: secure(flooding(func(f *framed, i int) error {
			if i == 0 {
				return f.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x88}})
			}
			return f.fr.WriteContinuation(1, false, nil)
		})), want: "field block too long", busy: true},
		"continues with megabytes": {do: secure(flooding(func(f *framed, i int) error {
			if i == 0 {
				return f.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: make([]byte, 16<<10)})
			}
			return f.fr.WriteContinuation(1, false, make([]byte, 16<<10))
		})), want: "field block too long", busy: true},
		"a huge table": {do: secure(flooding(func(f *framed, i int) error {
			return f.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x3f, 0xe0, 0xff, 0xff, 0xff, 0x0f}, EndHeaders: true})
		})), want: "COMPRESSION_ERROR", busy: true},
		"a table that comes and goes": {do: secure(flooding(func(f *framed, i int) error {
			return f.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: bytes.Repeat([]byte{0x20}, 16<<10), EndHeaders: true})
		})), want: "changes the table's size", busy: true},
		"never answers pings": {do: secure(func(c *tls.Conn) {
			_, _ = io.WriteString(c, http2.ClientPreface)
			_ = newFramed(t, c, nil).fr.WriteSettings()
		}), want: "no answer to PING"},
		"never reads": {do: secure(func(c *tls.Conn) {
			_ = c.NetConn().(*net.TCPConn).SetReadBuffer(1)
			_, _ = io.WriteString(c, http2.ClientPreface)
			f := newFramed(t, c, nil)
			_ = f.fr.WriteSettings()
			for range 100000 {
				if f.fr.WritePing(false, [8]byte{}) != nil {
					return
				}
			}
		}), want: "ENHANCE_YOUR_CALM", busy: true},
		"goes away": {do: secure(func(c *tls.Conn) {
			_, _ = io.WriteString(c, http2.ClientPreface)
			f := newFramed(t, c, nil)
			_ = f.fr.WriteSettings()
			_ = f.connect(1, "a:1")
			_ = c.NetConn().Close()
		}), want: "" /* anything: with or without a stream */},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := impatient
			if tc.busy {
				cfg.PingInterval = time.Minute
			}
			o := serveOne(t, p, cfg, func(in *hbone.Incoming) {
				// Slow to answer, so that resets come first.
				go func() { <-in.Done() }()
			})
			go tc.do(o.peer)
			err := o.wait(t)
			if tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want something about %q", err, tc.want)
			}
		})
	}
}

// TestAPeerThatStopsReading: its streams stall, its tunnel is dropped by the
// missing PONG, and nothing is left behind.
func TestAPeerThatStopsReading(t *testing.T) {
	p := newPKI(t)
	ended := make(chan error, 1)
	o := serveOne(t, p, impatient, func(in *hbone.Incoming) {
		s := in.Accept(nil)
		attach(s, func(dst []byte) (int, error) { return len(dst), nil }, // endless
			func(bufs [][]byte) (int, error) { return 0, nil },
			func(err error) { ended <- err })
		go isReady(s)
	})
	f := o.framed(t, p)
	_ = f.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	_ = f.fr.WriteWindowUpdate(0, 1<<30)
	_ = f.connect(1, "a:1")
	if err := o.wait(t); !errors.Is(err, hbone.ErrTimeout) {
		t.Errorf("Serve: %v", err)
	}
	var lost *hbone.TunnelError
	if err := <-ended; !errors.As(err, &lost) || !errors.Is(err, hbone.ErrTimeout) {
		t.Errorf("the stream ended with %v", err)
	}
}

// TestABusyPeerIsAlive: as long as anything comes, no PONG is missed.
func TestABusyPeerIsAlive(t *testing.T) {
	p := newPKI(t)
	o := serveOne(t, p, impatient, nil)
	f := o.framed(t, p)
	for start := time.Now(); time.Since(start) < 3*impatient.PingTimeout; {
		if err := f.fr.WriteWindowUpdate(0, 1); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-o.served:
			t.Fatalf("dropped: %v", err)
		case <-time.After(impatient.PingTimeout / 10):
		}
	}
	if err := o.wait(t); !errors.Is(err, hbone.ErrTimeout) {
		t.Errorf("then silent: %v", err)
	}
}

// TestRequestsTakenBack: a dial for a request that is gone can stop. The peer then
// leaves in good order, with a reset behind it that a write may meet first: many
// rounds, for it rarely does.
func TestRequestsTakenBack(t *testing.T) {
	p := newPKI(t)
	for range 50 {
		takeBack(t, p)
	}
}

func takeBack(t *testing.T, p *pki) {
	gone, accepted := make(chan struct{}), make(chan error, 1)
	o := serveOne(t, p, hbone.Config{}, func(in *hbone.Incoming) {
		go func() {
			<-in.Done()
			close(gone)
			s := in.Accept(nil) // too late
			attach(s, func([]byte) (int, error) { return 0, nil },
				func([][]byte) (int, error) { return 0, nil },
				func(err error) { accepted <- err })
		}()
	})
	f := o.framed(t, p)
	_ = f.connect(1, "a:1")
	_ = f.fr.WriteRSTStream(1, http2.ErrCodeCancel)
	<-gone
	var reset *hbone.ResetError
	if err := <-accepted; !errors.As(err, &reset) || reset.Code != http2.ErrCodeCancel {
		t.Errorf("the stream ended with %v", err)
	}
	f.c.Close()
	if err := o.wait(t); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// TestPeerGoesAwayUnderAStream: an end in good order of the connection is none of
// the stream.
func TestPeerGoesAwayUnderAStream(t *testing.T) {
	p := newPKI(t)
	ended, up := make(chan error, 1), make(chan struct{})
	o := serveOne(t, p, hbone.Config{}, func(in *hbone.Incoming) {
		attach(in.Accept(nil), func([]byte) (int, error) { return 0, nil },
			func([][]byte) (int, error) { return 0, nil },
			func(err error) { ended <- err })
		close(up)
	})
	f := o.framed(t, p)
	_ = f.connect(1, "a:1")
	<-up
	f.c.Close() // with close_notify
	// What we still had to say may have met the closed socket first.
	if err := o.wait(t); !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("Serve: %v", err)
	}
	var lost *hbone.TunnelError
	if err := <-ended; !errors.As(err, &lost) {
		t.Errorf("the stream ended with %v", err)
	}
}

// TestEarlyData: what a client sends before its answer, or before the stream is
// attached, arrives in order.
func TestEarlyData(t *testing.T) {
	p := newPKI(t)
	incoming := make(chan *hbone.Incoming, 1)
	o := serveOne(t, p, hbone.Config{}, func(in *hbone.Incoming) { incoming <- in })
	f := o.framed(t, p)
	_ = f.headers(1, false, ":method", "CONNECT", ":authority", "10.1.2.3:80", "baggage", "a=b", "x-y", "1", "x-y", "2")
	_ = f.fr.WriteData(1, false, []byte("before "))
	in := <-incoming
	if in.Authority != "10.1.2.3:80" || strings.Join(in.Header("x-y"), " ") != "1 2" || in.Header("none") != nil {
		t.Errorf("authority %q, x-y %q", in.Authority, in.Header("x-y"))
	}
	if len(in.TLS().PeerCertificates) != 1 || in.RemoteAddr().String() != o.peer.LocalAddr().String() {
		t.Error("not the peer")
	}
	s := in.Accept([][2]string{{"baggage", "c=d"}})
	if in.Accept(nil) != s {
		t.Error("accepted twice")
	}
	in.Reject(503) // too late
	h, ok := f.next().(*http2.MetaHeadersFrame)
	if !ok || h.PseudoValue("status") != "200" || h.StreamEnded() {
		t.Fatalf("answer %v", h)
	}
	_ = f.fr.WriteData(1, false, []byte("between "))
	var got bytes.Buffer
	done := make(chan error, 1)
	attach(s, func([]byte) (int, error) { return 0, io.EOF },
		func(bufs [][]byte) (int, error) {
			n := 0
			for _, b := range bufs {
				got.Write(b)
				n += len(b)
			}
			return n, nil
		},
		func(err error) { done <- err })
	isReady(s)
	_ = f.fr.WriteData(1, true, []byte("after"))
	if err := <-done; err != io.EOF || got.String() != "before between after" {
		t.Errorf("got %q, %v", got.String(), err)
	}
	if d, ok := f.next().(*http2.DataFrame); !ok || !d.StreamEnded() {
		t.Error("our end did not come")
	}
}

// TestHowPeersEndStreams: a peer that has ended its direction may drop the stream
// without calling it an error. Dropped before that it was cut, whatever the code.
// We ourselves say CONNECT_ERROR.
func TestHowPeersEndStreams(t *testing.T) {
	type how struct {
		code  http2.ErrCode
		ended bool
	}
	for end, clean := range map[how]bool{
		{http2.ErrCodeNo, true}: true, {http2.ErrCodeCancel, true}: true,
		{http2.ErrCodeNo, false}: false, {http2.ErrCodeCancel, false}: false,
		{http2.ErrCodeConnect, true}: false, {http2.ErrCodeConnect, false}: false,
		{http2.ErrCodeStreamClosed, true}: false, {http2.ErrCodeInternal, false}: false,
	} {
		p := newPKI(t)
		done := make(chan error, 2)
		o := serveOne(t, p, hbone.Config{}, func(in *hbone.Incoming) {
			attach(in.Accept(nil), func([]byte) (int, error) { return 0, nil },
				func(bufs [][]byte) (int, error) { return 0, nil },
				func(err error) { done <- err })
		})
		f := o.framed(t, p)
		_ = f.connect(1, "a:1")
		if end.ended {
			_ = f.fr.WriteData(1, true, []byte("all"))
			if err := <-done; err != io.EOF {
				t.Errorf("END_STREAM arrives as %v", err)
			}
		}
		_ = f.fr.WriteRSTStream(1, end.code)
		err := <-done
		var reset *hbone.ResetError
		if clean != (err == nil) || !clean && (!errors.As(err, &reset) || reset.Code != end.code) {
			t.Errorf("%+v arrives as %v", end, err)
		}
		f.c.Close()
	}
	p := newPKI(t)
	o := serveOne(t, p, hbone.Config{}, func(in *hbone.Incoming) { in.Accept(nil).Reset(errors.New("cut")) })
	f := o.framed(t, p)
	_ = f.connect(1, "a:1")
	f.next()
	if r, ok := f.next().(*http2.RSTStreamFrame); !ok || r.ErrCode != http2.ErrCodeConnect {
		t.Errorf("we said %v", r)
	}
}

// TestOffendersAreTold: the GOAWAY that says why reaches the peer, whatever was
// being written and however much of the peer's is unread.
func TestOffendersAreTold(t *testing.T) {
	p := newPKI(t)
	const rounds = 50
	reset := 0
	for range rounds {
		o := serveOne(t, p, hbone.Config{}, nil)
		f := o.framed(t, p)
		_ = f.fr.WriteSettings()
		_ = f.fr.WritePing(false, [8]byte{}) // something to write
		_ = f.fr.WriteRSTStream(7, http2.ErrCodeNo)
		junk := make(chan struct{})
		go func() {
			defer close(junk)
			_, _ = f.c.Write(make([]byte, 64<<10))
		}()
		var told bool
		for !told {
			fr, err := f.fr.ReadFrame()
			if err != nil {
				t.Fatalf("not told: %v", err)
			}
			g, ok := fr.(*http2.GoAwayFrame)
			told = ok && g.ErrCode == http2.ErrCodeProtocol
		}
		if _, err := f.c.Read(make([]byte, 1)); errors.Is(err, syscall.ECONNRESET) {
			reset++
		}
		f.c.Close()
		<-junk
		if err := o.wait(t); err == nil || !strings.Contains(err.Error(), "idle stream") {
			t.Errorf("Serve: %v", err)
		}
	}
	if reset > rounds*9/10 { // a peer that is slow to say all has no right to an end in good order
		t.Errorf("%d of %d were reset behind the GOAWAY", reset, rounds)
	}
}

// TestDrainWithoutAnswer: a peer that does not answer the PING of a drain, and is alive
// otherwise, gets nothing new for longer than any PING may take.
func TestDrainWithoutAnswer(t *testing.T) {
	p := newPKI(t)
	o := serveOne(t, p, impatient, nil)
	f := o.framed(t, p)
	over := time.Now().Add(20 * time.Second)
	_ = o.peer.SetDeadline(over)
	next, draining := uint32(1), false
	for {
		if err := f.connect(next, "10.0.0.1:80"); err != nil {
			t.Fatal(err)
		}
		next += 2
		fr, err := f.fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		switch x := fr.(type) {
		case *http2.SettingsFrame:
			if !x.IsAck() {
				_ = f.fr.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !x.IsAck() && x.Data != [8]byte{0xff} {
				_ = f.fr.WritePing(true, x.Data)
			}
		case *http2.GoAwayFrame:
			if x.ErrCode != http2.ErrCodeNo {
				t.Fatal(x)
			}
			if x.LastStreamID < 1<<31-1 {
				return
			}
		}
		if !draining {
			draining = true
			o.drain()
		}
		time.Sleep(time.Millisecond) // it is no flood
	}
}
