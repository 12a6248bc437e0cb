package h2

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

const (
	no       = http2.ErrCodeNo
	protocol = http2.ErrCodeProtocol
	flow     = http2.ErrCodeFlowControl
	size     = http2.ErrCodeFrameSize
	closed   = http2.ErrCodeStreamClosed
	calm     = http2.ErrCodeEnhanceYourCalm
)

// violation is something a peer must not do. conn is the code of the GOAWAY it
// gets; reset, with conn zero, that of the RST_STREAM.
type violation struct {
	name   string
	client bool // the Conn is a client
	do     func(p *peer)
	conn   http2.ErrCode
	reset  http2.ErrCode
}

var violations = []violation{
	{name: "settings on a stream", do: func(p *peer) { raw(p, http2.FrameSettings, 0, 1, 6) }, conn: protocol},
	{name: "settings of odd size", do: func(p *peer) { raw(p, http2.FrameSettings, 0, 0, 5) }, conn: size},
	{name: "settings ack with payload", do: func(p *peer) { raw(p, http2.FrameSettings, 1, 0, 6) }, conn: size},
	{name: "settings ack too many", do: func(p *peer) { raw(p, http2.FrameSettings, 1, 0, 0) }, conn: protocol},
	{name: "settings too long", do: func(p *peer) { raw(p, http2.FrameSettings, 0, 0, 6*4000) }, conn: calm},
	{name: "too many settings", do: func(p *peer) { p.must(p.fr.WriteSettings(tableSizes(33, 0)...)) }, conn: calm},
	{name: "enable push 2", do: setting(http2.SettingEnablePush, 2), conn: protocol},
	{name: "server enables push", client: true, do: setting(http2.SettingEnablePush, 1), conn: protocol},
	{name: "initial window too large", do: setting(http2.SettingInitialWindowSize, 1<<31), conn: flow},
	{name: "max frame too small", do: setting(http2.SettingMaxFrameSize, 16383), conn: protocol},
	{name: "max frame too large", do: setting(http2.SettingMaxFrameSize, 1<<24), conn: protocol},
	{name: "initial window overflows a stream's", do: func(p *peer) {
		p.connect(1)
		p.must(p.fr.WriteWindowUpdate(1, 1<<31-1-initialWindow))
		setting(http2.SettingInitialWindowSize, 1<<31-1)(p)
	}, conn: flow},
	{name: "ping on a stream", do: func(p *peer) { raw(p, http2.FramePing, 0, 1, 8) }, conn: protocol},
	{name: "ping of wrong size", do: func(p *peer) { raw(p, http2.FramePing, 0, 0, 7) }, conn: size},
	{name: "goaway on a stream", do: func(p *peer) { raw(p, http2.FrameGoAway, 0, 1, 8) }, conn: protocol},
	{name: "goaway too short", do: func(p *peer) { raw(p, http2.FrameGoAway, 0, 0, 7) }, conn: size},
	{name: "goaway raises its last stream", client: true, do: func(p *peer) {
		p.must(p.fr.WriteGoAway(1, no, nil))
		p.must(p.fr.WriteGoAway(3, no, nil))
	}, conn: protocol},
	{name: "push promise", client: true, do: func(p *peer) { raw(p, http2.FramePushPromise, 4, 1, 8) }, conn: protocol},
	{name: "reset on stream 0", do: func(p *peer) { raw(p, http2.FrameRSTStream, 0, 0, 4) }, conn: protocol},
	{name: "reset of an idle stream", do: func(p *peer) { raw(p, http2.FrameRSTStream, 0, 7, 4) }, conn: protocol},
	{name: "reset of wrong size", do: func(p *peer) { raw(p, http2.FrameRSTStream, 0, 1, 5) }, conn: size},
	{name: "priority on stream 0", do: func(p *peer) { raw(p, http2.FramePriority, 0, 0, 5) }, conn: protocol},
	{name: "priority of wrong size", do: func(p *peer) { p.connect(1); raw(p, http2.FramePriority, 0, 1, 4) }, reset: size},
	{name: "window update on an idle stream", do: func(p *peer) { raw(p, http2.FrameWindowUpdate, 0, 3, 4) }, conn: protocol},
	{name: "window update of wrong size", do: func(p *peer) { raw(p, http2.FrameWindowUpdate, 0, 0, 3) }, conn: size},
	{name: "window update of nothing", do: func(p *peer) { p.must(p.fr.WriteWindowUpdate(0, 0)) }, conn: protocol},
	{name: "window update of nothing on a stream", do: func(p *peer) { p.connect(1); p.must(p.fr.WriteWindowUpdate(1, 0)) }, reset: protocol},
	{name: "connection window overflow", do: func(p *peer) { p.must(p.fr.WriteWindowUpdate(0, 1<<31-1)) }, conn: flow},
	{name: "stream window overflow", do: func(p *peer) { p.connect(1); p.must(p.fr.WriteWindowUpdate(1, 1<<31-1)) }, reset: flow},
	{name: "frame larger than announced", do: func(p *peer) { raw(p, 99, 0, 0, 1<<20+1) }, conn: size},

	{name: "data on stream 0", do: func(p *peer) { p.must(p.fr.WriteData(0, false, []byte("x"))) }, conn: protocol},
	{name: "data on an idle stream", do: func(p *peer) { p.must(p.fr.WriteData(1, false, []byte("x"))) }, conn: protocol},
	{name: "data on an even stream", do: func(p *peer) { p.must(p.fr.WriteData(2, false, []byte("x"))) }, conn: protocol},
	{name: "data after the end", do: func(p *peer) {
		p.connect(1)
		p.must(p.fr.WriteData(1, true, nil))
		p.must(p.fr.WriteData(1, false, []byte("x")))
	}, reset: closed},
	{name: "data on a closed stream", do: func(p *peer) {
		p.connect(1)
		p.must(p.fr.WriteRSTStream(1, no))
		p.must(p.fr.WriteData(1, false, []byte("x")))
	}, reset: closed},
	{name: "data before the answer", client: true, do: func(p *peer) {
		_, err := p.c.Open("a:1", nil)
		p.must(err)
		p.must(p.fr.WriteData(1, false, []byte("x")))
	}, reset: protocol},
	{name: "data over the stream's window", do: func(p *peer) {
		p.connect(1)
		p.must(p.fr.WriteData(1, false, make([]byte, 256<<10)))
		p.must(p.fr.WriteData(1, false, []byte("x")))
	}, reset: flow},
	{name: "data over the connection's window", do: func(p *peer) {
		for id := uint32(1); id < 200; id += 2 { // 100 × 256 KiB, credit not read
			p.connect(id)
		}
		for id := uint32(1); id < 200; id += 2 {
			p.must(p.fr.WriteData(id, false, make([]byte, 256<<10)))
		}
	}, conn: flow},
	{name: "padding longer than data", do: func(p *peer) {
		p.connect(1)
		p.must(p.fr.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{4, 1, 2, 3}))
	}, conn: protocol},
	{name: "padded data without pad length", do: func(p *peer) {
		p.connect(1)
		p.must(p.fr.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, nil))
	}, conn: size},

	{name: "headers on stream 0", do: func(p *peer) { p.headers(0, false, connectTo...) }, conn: protocol},
	{name: "headers on an even stream", do: func(p *peer) { p.headers(2, false, connectTo...) }, conn: protocol},
	{name: "headers on a lower stream", do: func(p *peer) { p.connect(5); p.headers(3, false, connectTo...) }, conn: closed},
	{name: "headers on a stream in use", do: func(p *peer) { p.connect(1); p.headers(1, false, connectTo...) }, reset: protocol},
	{name: "headers behind the end", do: func(p *peer) {
		p.connect(1)
		p.must(p.fr.WriteData(1, true, nil))
		p.headers(1, true, "trailer", "x")
	}, reset: closed},
	{name: "trailers", do: func(p *peer) { p.connect(1); p.headers(1, true, "trailer", "x") }, reset: protocol},
	{name: "trailers from a server", client: true, do: func(p *peer) { p.open(); p.headers(1, true, "trailer", "x") }, reset: protocol},
	{name: "answer to nothing", client: true, do: func(p *peer) { p.headers(1, false, ":status", "200") }, conn: protocol},
	{name: "continuation of nothing", do: func(p *peer) { p.must(p.fr.WriteContinuation(1, true, nil)) }, conn: protocol},
	{name: "continuation of another stream", do: func(p *peer) {
		p.must(p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(connectTo...)}))
		p.must(p.fr.WriteContinuation(3, true, nil))
	}, conn: protocol},
	{name: "block interrupted", do: func(p *peer) {
		p.must(p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(connectTo...)}))
		p.must(p.fr.WritePing(false, [8]byte{}))
	}, conn: protocol},
	{name: "block that does not decode", do: func(p *peer) {
		p.must(p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true}))
	}, conn: http2.ErrCodeCompression},
	{name: "table larger than ours", do: func(p *peer) {
		p.must(p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x3f, 0xe2, 0x1f, 0x88}, EndHeaders: true})) // 4097
	}, conn: http2.ErrCodeCompression},
	{name: "huge table", do: func(p *peer) {
		p.must(p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x3f, 0xe0, 0xff, 0xff, 0xff, 0x0f, 0x88}, EndHeaders: true}))
	}, conn: http2.ErrCodeCompression},
	{name: "table that grows and shrinks", do: func(p *peer) {
		p.must(p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: append([]byte{0x3f, 0xe1, 0x1f, 0x20, 0x20}, p.block(connectTo...)...), EndHeaders: true}))
	}, conn: http2.ErrCodeCompression},
	{name: "padding longer than headers", do: func(p *peer) {
		p.must(p.fr.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersPadded|http2.FlagHeadersEndHeaders, 1, []byte{9, 0x82}))
	}, conn: protocol},
	{name: "headers without priority", do: func(p *peer) {
		p.must(p.fr.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersPriority|http2.FlagHeadersEndHeaders, 1, []byte{9}))
	}, conn: size},
	{name: "block too long", do: func(p *peer) {
		p.must(p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: make([]byte, 17<<10)}))
	}, conn: calm},
	{name: "empty continuations without end", do: func(p *peer) {
		p.must(p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1}))
		for range 100 {
			p.must(p.fr.WriteContinuation(1, false, nil))
		}
	}, conn: calm},
	{name: "list too large", do: func(p *peer) {
		// Small on the wire: one entry of the table, many times.
		kv := append([]string{}, connectTo...)
		for range 20 {
			kv = append(kv, "x-large", strings.Repeat("a", 1000))
		}
		p.headers(1, false, kv...)
	}, reset: calm},
}

var connectTo = []string{":method", "CONNECT", ":authority", "10.0.0.1:80"}

// raw writes a frame of n zero bytes.
func raw(p *peer, typ http2.FrameType, flags http2.Flags, id uint32, n int) {
	p.must(p.fr.WriteRawFrame(typ, flags, id, make([]byte, n)))
}

func setting(id http2.SettingID, val uint32) func(*peer) {
	return func(p *peer) { p.must(p.fr.WriteSettings(http2.Setting{ID: id, Val: val})) }
}

func TestViolations(t *testing.T) {
	for _, v := range violations {
		t.Run(v.name, func(t *testing.T) {
			p := newPeer(t, v.client, testConfig)
			v.do(p)
			p.send()
			p.flush()
			if v.conn != 0 {
				var ce *ConnError
				if !errors.As(p.err, &ce) || ce.Code != v.conn {
					t.Fatalf("error %v, want %v", p.err, v.conn)
				}
				wantLast(t, p, http2.FrameGoAway, v.conn)
				if _, err := p.c.Receive(0, nil, nil); err == nil {
					t.Error("the connection lives on")
				}
				return
			}
			if p.err != nil {
				t.Fatalf("connection error %v, want a reset with %v", p.err, v.reset)
			}
			wantLast(t, p, http2.FrameRSTStream, v.reset)
			if n := p.c.Streams(); n != 0 {
				t.Errorf("%d streams left", n)
			}
			// The connection goes on, HPACK state included.
			if p.c.client {
				p.open()
			} else {
				p.connect(99)
			}
		})
	}
}

// wantLast checks the last frame that the Conn sent.
func wantLast(t *testing.T, p *peer, typ http2.FrameType, code http2.ErrCode) {
	t.Helper()
	frames := p.read()
	if len(frames) == 0 {
		t.Fatalf("nothing sent, want %v", typ)
	}
	switch f := frames[len(frames)-1].(type) {
	case *http2.GoAwayFrame:
		if typ != http2.FrameGoAway || f.ErrCode != code {
			t.Fatalf("sent %v, want %v %v", f, typ, code)
		}
	case *http2.RSTStreamFrame:
		if typ != http2.FrameRSTStream || f.ErrCode != code {
			t.Fatalf("sent %v, want %v %v", f, typ, code)
		}
	default:
		t.Fatalf("sent %v, want %v", f, typ)
	}
}

func TestFirstFrame(t *testing.T) {
	for name, tc := range map[string]struct {
		client bool
		bytes  string
	}{
		"http/1":               {bytes: "GET / HTTP/1.1\r\nHost: x\r\n\r\n"},
		"garbage":              {bytes: strings.Repeat("\x00\xff", 40)},
		"no settings":          {bytes: http2.ClientPreface + "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678"},
		"acknowledgement only": {bytes: http2.ClientPreface + "\x00\x00\x00\x04\x01\x00\x00\x00\x00"},
		"http/1 to a client":   {client: true, bytes: "HTTP/1.1 400 Bad Request\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			p := rawPeer(t, tc.client, testConfig)
			p.out.WriteString(tc.bytes)
			if evs := p.send(); p.err == nil || len(evs) > 0 {
				t.Errorf("events %v, error %v", evs, p.err)
			}
		})
	}
}

func TestMalformedRequests(t *testing.T) {
	for name, kv := range map[string][]string{
		"scheme":              {":method", "CONNECT", ":authority", "a:1", ":scheme", "https"},
		"path":                {":method", "CONNECT", ":authority", "a:1", ":path", "/"},
		"no authority":        {":method", "CONNECT"},
		"empty authority":     {":method", "CONNECT", ":authority", ""},
		"protocol":            {":method", "CONNECT", ":authority", "a:1", ":protocol", "websocket"},
		"no method":           {":authority", "a:1"},
		"two methods":         {":method", "CONNECT", ":method", "CONNECT", ":authority", "a:1"},
		"status":              {":method", "CONNECT", ":authority", "a:1", ":status", "200"},
		"pseudo after a real": {":method", "CONNECT", "x", "y", ":authority", "a:1"},
		"upper case":          {":method", "CONNECT", ":authority", "a:1", "Baggage", "x"},
		"space in a name":     {":method", "CONNECT", ":authority", "a:1", "bag gage", "x"},
		"newline in a value":  {":method", "CONNECT", ":authority", "a:1", "baggage", "x\r\ny"},
		"connection":          {":method", "CONNECT", ":authority", "a:1", "connection", "close"},
		"te":                  {":method", "CONNECT", ":authority", "a:1", "te", "gzip"},
		"get without path":    {":method", "GET", ":authority", "a:1", ":scheme", "https"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPeer(t, false, testConfig)
			p.headers(1, false, kv...)
			if evs := p.send(); p.err != nil || len(evs) > 0 {
				t.Fatalf("events %v, error %v", evs, p.err)
			}
			p.flush()
			wantLast(t, p, http2.FrameRSTStream, protocol)
			p.connect(3)
		})
	}
}

func TestMalformedResponses(t *testing.T) {
	for name, kv := range map[string][]string{
		"no status":     {"x", "y"},
		"two":           {":status", "200", ":status", "200"},
		"not a number":  {":status", "2x0"},
		"switching":     {":status", "101"},
		"too low":       {":status", "099"},
		"a request":     {":method", "CONNECT"},
		"interim + end": {":status", "100"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPeer(t, true, testConfig)
			s, err := p.c.Open("a:1", nil)
			p.must(err)
			p.headers(s.ID, true, kv...)
			evs := p.send()
			if p.err != nil || len(evs) != 1 || evs[0].Kind != Reset || !evs[0].Local {
				t.Fatalf("events %v, error %v", evs, p.err)
			}
		})
	}
}
