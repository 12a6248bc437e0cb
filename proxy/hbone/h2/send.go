package h2

import (
	"strconv"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Open sends a CONNECT and returns its stream. Header names must be lower case.
func (c *Conn) Open(authority string, header [][2]string) (*Stream, error) {
	switch {
	case c.GoingAway():
		return nil, ErrGoingAway
	case len(c.streams) >= c.Capacity():
		return nil, ErrStreams
	}
	fields := make([]hpack.HeaderField, 0, 2+len(header))
	fields = append(fields,
		hpack.HeaderField{Name: ":method", Value: "CONNECT"},
		hpack.HeaderField{Name: ":authority", Value: authority})
	fields = appendFields(fields, header)
	size := uint32(0)
	for _, f := range fields {
		size += f.Size()
	}
	if size > c.peer.maxHeaderList {
		return nil, ErrHeaderSize
	}
	s := c.newStream(c.nextID)
	c.nextID += 2
	c.appendHeader(s.ID, false, fields)
	return s, nil
}

// Accept answers a request with 200; the stream then carries data both ways.
func (c *Conn) Accept(s *Stream, header [][2]string) {
	if s.done || s.answered {
		return
	}
	s.answered = true
	fields := make([]hpack.HeaderField, 0, 1+len(header))
	fields = append(fields, hpack.HeaderField{Name: ":status", Value: "200"})
	c.appendHeader(s.ID, false, appendFields(fields, header))
	c.schedule(s)
}

// Refuse answers a request with status and no body, and closes the stream. A
// client that has not ended its side is told to stop (§8.1).
func (c *Conn) Refuse(s *Stream, status int) {
	if s.done || s.answered {
		return
	}
	s.answered = true
	c.appendHeader(s.ID, true, []hpack.HeaderField{{Name: ":status", Value: strconv.Itoa(status)}})
	if !s.remoteEnd {
		c.appendReset(s.ID, http2.ErrCodeNo)
	}
	c.forget(s)
}

func appendFields(fields []hpack.HeaderField, header [][2]string) []hpack.HeaderField {
	for _, h := range header {
		fields = append(fields, hpack.HeaderField{Name: h[0], Value: h[1], Sensitive: unique(h[0])})
	}
	return fields
}

// unique says of a header that no two requests have the same value: such are kept
// out of both ends' tables, where they would drive out what does come again
// (RFC 7541 §6.2.3).
func unique(name string) bool { return name == "traceparent" || name == "forwarded" }

// Reset closes s in both directions and tells the peer why.
func (c *Conn) Reset(s *Stream, code http2.ErrCode) {
	if s.done {
		return
	}
	c.forget(s)
	c.appendReset(s.ID, code)
}

// Ready says that s has something to send: bytes or its end.
func (c *Conn) Ready(s *Stream) {
	s.again = true
	s.ready = true
	c.schedule(s)
}

// schedule puts s into the round if it can send. A server's stream cannot
// before its answer (§8.1), a client's before the peer's (§8.5: the tunnel
// stands only then).
func (c *Conn) schedule(s *Stream) {
	if s.ready && s.send > 0 && s.answered && !s.done && !s.localEnd {
		c.sched.add(s)
	}
}

// CanSend says whether Next would return a stream, given room.
func (c *Conn) CanSend() bool { return c.err == nil && c.send > 0 && c.sched.head != nil }

// Next returns the stream whose turn it is and how many bytes of payload its
// next frame may have, at most room; nil when nobody can send. The owner then
// fills the payload, may release its lock meanwhile, and calls Sent.
func (c *Conn) Next(room int) (*Stream, int) {
	if !c.CanSend() || room <= 0 {
		return nil, 0
	}
	s := c.sched.head
	n := c.sched.turn(min(room, c.peer.maxFrame, int(min(s.send, c.send))))
	s.again = false
	return s, n
}

// Sent completes Next: the frame of s carries n bytes. It writes the frame
// header to hdr (9 bytes). end: END_STREAM goes with it. more: s has more to
// send; otherwise Ready will say so. False: s was closed meanwhile, or there
// was nothing to send; the frame must be dropped.
func (c *Conn) Sent(s *Stream, hdr []byte, n int, end, more bool) bool {
	if s.done || s.localEnd {
		return false
	}
	s.send -= int64(n)
	c.send -= int64(n)
	c.limits.updates.earn(int64(n)/sentPerUpdate + 1)
	if c.sched.head == s {
		c.sched.spend(n)
	}
	if !more && !s.again {
		s.ready = false
	}
	if !s.ready || s.send <= 0 || end {
		c.sched.remove(s)
	}
	if n == 0 && !end {
		return false
	}
	var flags http2.Flags
	c.limits.small.earn(bytesPerData)
	if end {
		flags = http2.FlagDataEndStream
		s.localEnd = true
	}
	putFrameHeader(hdr, n, http2.FrameData, flags, s.ID)
	if end {
		c.maybeForget(s)
	}
	return true
}
