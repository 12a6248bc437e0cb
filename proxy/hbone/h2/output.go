package h2

import (
	"encoding/binary"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// maxControlOut bounds the control frames that wait for a peer which does not
// read. Every answer and reset is among them, so it allows for a few thousand.
const maxControlOut = 256 << 10

// output is what waits to be sent: control frames, ready encoded, in order.
type output struct {
	ctl        []byte
	acks       int // answers to PING and SETTINGS among them
	connUpdate bool
	err        error
}

func putFrameHeader(b []byte, n int, typ http2.FrameType, flags http2.Flags, id uint32) {
	_ = b[8]
	b[0], b[1], b[2] = byte(n>>16), byte(n>>8), byte(n)
	b[3], b[4] = byte(typ), byte(flags)
	binary.BigEndian.PutUint32(b[5:], id)
}

// appendFrame queues a control frame.
func (c *Conn) appendFrame(typ http2.FrameType, flags http2.Flags, id uint32, payload []byte) {
	var h [frameHeaderLen]byte
	putFrameHeader(h[:], len(payload), typ, flags, id)
	c.out.ctl = append(c.out.ctl, h[:]...)
	c.out.ctl = append(c.out.ctl, payload...)
	if flags&http2.FlagPingAck != 0 && (typ == http2.FramePing || typ == http2.FrameSettings) {
		c.out.acks++
	}
	if c.out.err == nil && (len(c.out.ctl) > maxControlOut || c.out.acks > maxPendingAcks) {
		c.out.err = connError(http2.ErrCodeEnhanceYourCalm, "peer does not read our answers")
	}
}

func (c *Conn) appendSettings(settings ...http2.Setting) {
	var p []byte
	for _, s := range settings {
		p = binary.BigEndian.AppendUint16(p, uint16(s.ID))
		p = binary.BigEndian.AppendUint32(p, s.Val)
	}
	c.appendFrame(http2.FrameSettings, 0, 0, p)
	c.unacked++
}

func (c *Conn) appendWindowUpdate(id uint32, n int64) {
	c.appendFrame(http2.FrameWindowUpdate, 0, id, binary.BigEndian.AppendUint32(nil, uint32(n)))
}

// appendReset queues an RST_STREAM and remembers it.
func (c *Conn) appendReset(id uint32, code http2.ErrCode) {
	c.gone[c.goneNext%goneMemory] = id
	c.goneNext++
	c.appendFrame(http2.FrameRSTStream, 0, id, binary.BigEndian.AppendUint32(nil, uint32(code)))
}

// appendHeader encodes a field block and queues it, split to the peer's frame
// size (§6.10).
func (c *Conn) appendHeader(id uint32, end bool, fields []hpack.HeaderField) {
	c.encBuf.Reset()
	for _, f := range fields {
		// Writing to a bytes.Buffer cannot fail.
		_ = c.enc.WriteField(f)
	}
	block := c.encBuf.Bytes()
	typ, flags := http2.FrameHeaders, http2.Flags(0)
	if end {
		flags |= http2.FlagHeadersEndStream
	}
	for {
		part := block[:min(len(block), c.peer.maxFrame)]
		block = block[len(part):]
		if len(block) == 0 {
			flags |= http2.FlagHeadersEndHeaders
		}
		c.appendFrame(typ, flags, id, part)
		if len(block) == 0 {
			return
		}
		typ, flags = http2.FrameContinuation, 0
	}
}

// fail kills the connection: nothing is sent any more but a GOAWAY.
func (c *Conn) fail(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	code := http2.ErrCodeInternal
	if ce, ok := err.(*ConnError); ok {
		code = ce.Code
	}
	c.out = output{}
	c.updates = nil
	c.appendGoAway(c.lastPeer, code)
}

func (c *Conn) appendGoAway(last uint32, code http2.ErrCode) {
	p := binary.BigEndian.AppendUint32(nil, last)
	c.appendFrame(http2.FrameGoAway, 0, 0, binary.BigEndian.AppendUint32(p, uint32(code)))
}

// GoAway says that no further streams are taken (§6.8). With final false the
// peer is only warned: it may still send requests for a while, and the final
// call follows a round trip later.
func (c *Conn) GoAway(final bool, code http2.ErrCode) {
	if c.err != nil || c.draining {
		return
	}
	last := uint32(maxWindow)
	if final {
		c.draining, c.drainLast = true, c.lastPeer
		last = c.lastPeer
	}
	c.appendGoAway(last, code)
}

// Ping queues a PING; its answer is a Pong event.
func (c *Conn) Ping(data [8]byte) {
	if c.err == nil {
		c.fit() // of idle connections too
		c.appendFrame(http2.FramePing, 0, 0, data[:])
	}
}

// HasControl says whether AppendControl has something.
func (c *Conn) HasControl() bool {
	return len(c.out.ctl) > 0 || c.out.connUpdate || len(c.updates) > 0
}

// AppendControl appends all control frames that are due to dst. It must be
// called before Next: answers go before the data of their stream.
func (c *Conn) AppendControl(dst []byte) []byte {
	if c.out.connUpdate {
		c.out.connUpdate = false
		c.appendWindowUpdate(0, c.recv.refill())
	}
	for _, s := range c.updates {
		s.update = false
		if s.done || s.remoteEnd {
			continue
		}
		if !s.recv.shrink(c.cfg.Budget) {
			s.recv.grow(c.now, int64(c.cfg.StreamWindow), c.cfg.Budget)
		}
		if n := s.recv.refill(); n > 0 {
			c.appendWindowUpdate(s.ID, n)
		}
	}
	c.updates = c.updates[:0]
	dst = append(dst, c.out.ctl...)
	if cap(c.out.ctl) > 4<<10 {
		c.out.ctl = nil // do not hold a burst's buffer while idle
	}
	c.out.ctl, c.out.acks = c.out.ctl[:0], 0
	return dst
}
