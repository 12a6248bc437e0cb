package h2

import (
	"bytes"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Config is what one side of a connection announces and holds itself to.
type Config struct {
	// StreamWindow is what a stream's receive window may grow to, in bytes.
	StreamWindow uint32
	// InitialWindow is what it starts at, SETTINGS_INITIAL_WINDOW_SIZE.
	InitialWindow uint32
	// ConnWindow is the connection's receive window, at least 64 KiB − 1.
	ConnWindow uint32
	// MaxFrame is SETTINGS_MAX_FRAME_SIZE.
	MaxFrame uint32
	// MaxStreams is how many streams exist at a time; a server announces it.
	MaxStreams uint32
	// MaxHeaderList is SETTINGS_MAX_HEADER_LIST_SIZE, and bounds an encoded
	// field block as well.
	MaxHeaderList uint32
	// Budget caps the growth of windows over all connections; may be nil.
	Budget *Budget
}

// goneMemory is how many streams that we reset are remembered, so that what the
// peer sent before it learned of the reset is ignored (RFC 9113 §5.1, closed).
const goneMemory = 128

// tableSize bounds both HPACK tables: the default of §6.5.2, never raised.
const tableSize = 4096

// Conn is one side of a connection. Not safe for concurrent use.
type Conn struct {
	client bool
	cfg    Config
	limits limits
	err    error // set once: the connection is dead

	in  input
	dec *hpack.Decoder
	now time.Duration
	evs []Event

	streams  map[uint32]*Stream
	lastPeer uint32 // server: highest stream id that the peer used
	nextID   uint32 // client: the next stream id we use
	gone     [goneMemory]uint32
	goneNext int

	recv    recvWindow
	initial initialRecv
	updates []*Stream // streams whose window is to be returned
	send    int64     // connection credit to send

	peer        peerSettings
	gotSettings bool
	unacked     int  // SETTINGS of ours not acknowledged yet
	peerGone    bool // GOAWAY received
	peerLast    uint32
	draining    bool // we said GOAWAY with a final last id
	drainLast   uint32

	out    output
	enc    *hpack.Encoder
	encBuf bytes.Buffer
	sched  ring
}

// peerSettings is what the peer announced; the defaults of §6.5.2 until then.
type peerSettings struct {
	initialWindow int64
	maxFrame      int
	maxStreams    uint32
	maxHeaderList uint32
}

// assumedStreams is the limit on concurrent streams that a client assumes
// before the server's SETTINGS come: §6.5.2 recommends no limit below it.
const assumedStreams = 100

// NewClient returns the side that opens streams.
func NewClient(cfg Config) *Conn {
	c := newConn(cfg)
	c.client = true
	c.nextID = 1
	c.out.ctl = append(c.out.ctl, http2.ClientPreface...)
	c.appendSettings(
		http2.Setting{ID: http2.SettingEnablePush, Val: 0},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(c.initial.said)},
		http2.Setting{ID: http2.SettingMaxFrameSize, Val: cfg.MaxFrame},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: cfg.MaxHeaderList},
	)
	return c
}

// NewServer returns the side that answers.
func NewServer(cfg Config) *Conn {
	c := newConn(cfg)
	c.in.preface = len(http2.ClientPreface)
	c.appendSettings(
		http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: cfg.MaxStreams},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(c.initial.said)},
		http2.Setting{ID: http2.SettingMaxFrameSize, Val: cfg.MaxFrame},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: cfg.MaxHeaderList},
	)
	return c
}

func newConn(cfg Config) *Conn {
	c := &Conn{
		cfg:     cfg,
		limits:  newLimits(),
		streams: make(map[uint32]*Stream),
		send:    initialWindow,
		peer: peerSettings{
			initialWindow: initialWindow,
			maxFrame:      minMaxFrame,
			maxStreams:    assumedStreams,
			maxHeaderList: maxWindow,
		},
	}
	size := max(int64(cfg.ConnWindow), initialWindow)
	first := c.wantedWindow()
	c.initial = initialRecv{said: first, agreed: first}
	c.recv = recvWindow{size: size, avail: initialWindow, pending: size - initialWindow}
	c.out.connUpdate = c.recv.pending > 0
	c.dec = hpack.NewDecoder(tableSize, nil)
	c.dec.SetMaxStringLength(int(cfg.MaxHeaderList))
	c.enc = hpack.NewEncoder(&c.encBuf)
	c.enc.SetMaxDynamicTableSizeLimit(tableSize)
	return c
}

// Streams returns how many streams are open.
func (c *Conn) Streams() int { return len(c.streams) }

// Capacity returns how many streams we may have open at a time: the peer's
// limit and our own.
func (c *Conn) Capacity() int { return int(min(c.peer.maxStreams, c.cfg.MaxStreams)) }

// Greeted says that the peer's SETTINGS have come: until then its limits are assumed.
func (c *Conn) Greeted() bool { return c.gotSettings }

// GoingAway says that no new stream can be opened.
func (c *Conn) GoingAway() bool {
	return c.err != nil || c.peerGone || c.draining || c.nextID > maxWindow
}

// Each calls f for every open stream. f must not call back into c.
func (c *Conn) Each(f func(*Stream)) {
	for _, s := range c.streams {
		f(s)
	}
}

// newStream adds a stream under id.
func (c *Conn) newStream(id uint32) *Stream {
	s := &Stream{ID: id, recv: newRecvWindow(c.initial.agreed, c.now), send: c.peer.initialWindow}
	c.streams[id] = s
	return s
}

// forget closes s and gives back what it held.
func (c *Conn) forget(s *Stream) {
	if s.done {
		return
	}
	s.done = true
	s.ready = false
	c.sched.remove(s)
	s.recv.release(c.cfg.Budget)
	delete(c.streams, s.ID)
}

// maybeForget closes s once both directions have ended.
func (c *Conn) maybeForget(s *Stream) {
	if s.localEnd && s.remoteEnd {
		c.forget(s)
	}
}

// lookup finds the stream of a frame. idle: the id was never used, which is a
// connection error for every frame but the HEADERS that opens it (§5.1).
func (c *Conn) lookup(id uint32) (s *Stream, idle bool) {
	if s = c.streams[id]; s != nil {
		return s, false
	}
	if c.client {
		return nil, id%2 == 0 || id >= c.nextID
	}
	return nil, id%2 == 0 || id > c.lastPeer
}

// resetByUs says whether we reset id lately.
func (c *Conn) resetByUs(id uint32) bool {
	for _, g := range c.gone {
		if g == id {
			return true
		}
	}
	return false
}

// Close releases what the connection holds of the budget. Its streams are
// forgotten without a word to the peer.
func (c *Conn) Close() {
	for _, s := range c.streams {
		c.forget(s)
	}
	if c.err == nil {
		c.err = ErrGoingAway
	}
}
