package h2

import (
	"encoding/binary"
	"time"

	"golang.org/x/net/http2"
)

const (
	frameHeaderLen = 9
	minMaxFrame    = 16 << 10    // §4.2: the least a peer may announce
	maxMaxFrame    = 1<<24 - 1   // and the most
	maxControl     = 16 << 10    // GOAWAY: more is abuse
	maxFragments   = 64          // HEADERS and CONTINUATION frames of one block (CVE-2024-27316)
	headerExtras   = 255 + 1 + 5 // padding and priority in a HEADERS frame
	streamMask     = 1<<31 - 1   // §4.1: the reserved bit is ignored
)

// frameHeader is the nine bytes before a payload (§4.1).
type frameHeader struct {
	length int
	typ    http2.FrameType
	flags  http2.Flags
	id     uint32
}

func (f frameHeader) has(flag http2.Flags) bool { return f.flags&flag != 0 }

// mode says what becomes of a payload.
type mode uint8

const (
	collect mode = iota // gather it, then handle it as a whole
	stream              // DATA: hand it on as it comes
	skip                // drop it
)

// input is the parser's state between two calls of Receive: at most one frame
// header, or one control frame, or one field block is held.
type input struct {
	preface int // bytes of the client preface still to come
	hdr     [frameHeaderLen]byte
	hn      int
	f       frameHeader
	left    int // payload bytes still to come
	mode    mode
	buf     []byte // payload of a frame in mode collect
	data    dataState
	block   blockState
}

// Receive takes bytes from the peer, all of them, and appends what they mean to
// evs. now is any monotonic time. After an error, always a *ConnError, the
// connection is dead: what AppendControl returns then is its GOAWAY.
func (c *Conn) Receive(now time.Duration, b []byte, evs []Event) ([]Event, error) {
	if c.err != nil {
		return evs, c.err
	}
	c.now, c.evs = now, evs
	err := c.parse(b)
	evs, c.evs = c.evs, nil
	if err == nil {
		c.fit()
		err = c.out.err
	}
	if err != nil {
		c.fail(err)
	}
	return evs, err
}

func (c *Conn) parse(b []byte) error {
	in := &c.in
	if in.preface > 0 {
		n := min(in.preface, len(b))
		at := len(http2.ClientPreface) - in.preface
		if string(b[:n]) != http2.ClientPreface[at:at+n] {
			return connError(http2.ErrCodeProtocol, "peer does not speak HTTP/2: no connection preface")
		}
		in.preface -= n
		b = b[n:]
	}
	for len(b) > 0 {
		if in.hn < frameHeaderLen {
			n := copy(in.hdr[in.hn:], b)
			in.hn += n
			b = b[n:]
			if in.hn < frameHeaderLen {
				break
			}
			if err := c.tolerate(c.begin()); err != nil {
				return err
			}
		}
		n := min(in.left, len(b))
		if err := c.tolerate(c.payload(b[:n])); err != nil {
			return err
		}
		b = b[n:]
		in.left -= n
		if in.left == 0 {
			in.hn = 0
			if err := c.tolerate(c.finish()); err != nil {
				return err
			}
			if c.out.err != nil { // nothing more is taken of who floods us
				return c.out.err
			}
		}
	}
	return nil
}

// tolerate turns a stream error into a reset of that stream. What is left of
// the frame is skipped, but a field block is still collected: it changes the
// HPACK state (§4.3).
func (c *Conn) tolerate(err error) error {
	se, ok := err.(*streamError)
	if !ok {
		return err
	}
	if !c.limits.strays.take(c.now) {
		return connError(http2.ErrCodeEnhanceYourCalm, "too many stream errors")
	}
	if c.in.f.typ != http2.FrameHeaders && c.in.f.typ != http2.FrameContinuation {
		c.in.mode = skip
	}
	if s := c.streams[se.id]; s != nil {
		c.Reset(s, se.code)
		c.emit(Event{Kind: Reset, Stream: s, Code: se.code, Local: true})
	} else if _, idle := c.lookup(se.id); !idle {
		c.appendReset(se.id, se.code)
	}
	return nil
}

func (c *Conn) emit(e Event) { c.evs = append(c.evs, e) }

// begin checks a frame header and decides what becomes of the payload.
func (c *Conn) begin() error {
	in := &c.in
	f := frameHeader{
		length: int(in.hdr[0])<<16 | int(in.hdr[1])<<8 | int(in.hdr[2]),
		typ:    http2.FrameType(in.hdr[3]),
		flags:  http2.Flags(in.hdr[4]),
		id:     binary.BigEndian.Uint32(in.hdr[5:]) & streamMask,
	}
	in.f, in.left, in.mode, in.buf = f, f.length, collect, in.buf[:0]
	switch {
	case f.length > int(c.cfg.MaxFrame):
		return connError(http2.ErrCodeFrameSize, "frame larger than announced")
	case !c.gotSettings && (f.typ != http2.FrameSettings || f.has(http2.FlagSettingsAck)):
		return connError(http2.ErrCodeProtocol, "first frame is not SETTINGS")
	case in.block.open && (f.typ != http2.FrameContinuation || f.id != in.block.id):
		return connError(http2.ErrCodeProtocol, "field block interrupted")
	}
	switch f.typ {
	case http2.FrameData:
		in.mode = stream
		return c.beginData()
	case http2.FrameHeaders, http2.FrameContinuation:
		return c.beginBlock()
	case http2.FrameSettings:
		return c.beginSettings()
	case http2.FramePushPromise:
		return connError(http2.ErrCodeProtocol, "PUSH_PROMISE, which we do not allow")
	default:
		return c.beginOther()
	}
}

// onConn lists the frames that must be on stream 0; the others here must not.
func onConn(t http2.FrameType) bool { return t == http2.FramePing || t == http2.FrameGoAway }

// beginOther checks the frames of fixed size, GOAWAY and unknown ones.
func (c *Conn) beginOther() error {
	f := &c.in.f
	size := 4
	switch f.typ {
	case http2.FrameRSTStream:
	case http2.FrameWindowUpdate:
		if f.length != size {
			return connError(http2.ErrCodeFrameSize, "WINDOW_UPDATE of wrong size")
		}
		return nil
	case http2.FramePing:
		size = 8
	case http2.FramePriority:
		c.in.mode = skip
		size = 5
	case http2.FrameGoAway:
		if f.length < 8 || f.length > maxControl {
			return connError(http2.ErrCodeFrameSize, "GOAWAY of wrong size")
		}
		size = f.length
	default: // §4.1: unknown types are ignored
		c.in.mode = skip
		return c.takeControl()
	}
	if (f.id == 0) != onConn(f.typ) {
		return connError(http2.ErrCodeProtocol, f.typ.String()+" on the wrong stream")
	}
	if f.length != size {
		if f.typ == http2.FramePriority { // §6.3
			return &streamError{f.id, http2.ErrCodeFrameSize}
		}
		return connError(http2.ErrCodeFrameSize, f.typ.String()+" of wrong size")
	}
	if f.typ == http2.FramePriority {
		return c.takeControl()
	}
	return nil
}

// takeControl counts a frame that costs the peer nothing.
func (c *Conn) takeControl() error {
	if !c.limits.control.take(c.now) {
		return connError(http2.ErrCodeEnhanceYourCalm, "flood of "+c.in.f.typ.String()+" frames")
	}
	return nil
}

// payload takes the next part of a payload.
func (c *Conn) payload(b []byte) error {
	switch c.in.mode {
	case stream:
		return c.dataPart(b)
	case collect:
		c.in.buf = append(c.in.buf, b...)
	case skip:
	}
	return nil
}

// finish handles a frame whose payload is complete.
func (c *Conn) finish() error {
	if c.in.mode == skip {
		return nil
	}
	switch c.in.f.typ {
	case http2.FrameData:
		return c.endData()
	case http2.FrameHeaders, http2.FrameContinuation:
		return c.endFragment()
	case http2.FrameSettings:
		return c.endSettings()
	case http2.FrameRSTStream:
		return c.onReset()
	case http2.FramePing:
		return c.onPing()
	case http2.FrameGoAway:
		return c.onGoAway()
	case http2.FrameWindowUpdate:
		return c.onWindowUpdate()
	default:
		return nil
	}
}
