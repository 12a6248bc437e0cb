package h2

import "golang.org/x/net/http2"

// dataState is what is known of the DATA frame being received.
type dataState struct {
	s       *Stream // nil: nobody wants it
	padding int     // bytes at the end that are no data
	needPad bool    // the pad length byte is still to come
}

// beginData does the accounting of a DATA frame when its header is there: flow
// control covers the whole payload, padding included (§6.9.1). The connection's
// credit is taken for frames of closed streams too.
func (c *Conn) beginData() error {
	f := c.in.f
	d := &c.in.data
	*d = dataState{needPad: f.has(http2.FlagDataPadded)}
	if f.id == 0 {
		return connError(http2.ErrCodeProtocol, "DATA on stream 0")
	}
	if d.needPad && f.length == 0 {
		return connError(http2.ErrCodeFrameSize, "padded DATA without pad length")
	}
	s, idle := c.lookup(f.id)
	if idle {
		return connError(http2.ErrCodeProtocol, "DATA on an idle stream")
	}
	if !c.recv.arrive(int64(f.length)) {
		return connError(http2.ErrCodeFlowControl, "DATA over the connection's window")
	}
	if f.length == 0 && !f.has(http2.FlagDataEndStream) && !c.limits.empty.take(c.now) {
		return connError(http2.ErrCodeEnhanceYourCalm, "flood of empty DATA frames")
	}
	c.limits.small.perSecond = int64(freeData+streamData*len(c.streams)) * bytesPerData
	c.limits.small.earn(int64(f.length))
	if !c.limits.small.spend(c.now, bytesPerData) {
		return connError(http2.ErrCodeEnhanceYourCalm, "flood of small DATA frames")
	}
	switch {
	case s == nil && c.resetByUs(f.id):
		return c.stray()
	case s == nil || s.remoteEnd:
		c.returnConn(f.length)
		c.in.mode = skip
		return &streamError{f.id, http2.ErrCodeStreamClosed}
	case c.client && !s.answered:
		c.returnConn(f.length)
		c.in.mode = skip
		return &streamError{f.id, http2.ErrCodeProtocol}
	case !s.recv.arrive(int64(f.length)):
		c.returnConn(f.length)
		c.in.mode = skip
		return &streamError{f.id, http2.ErrCodeFlowControl}
	}
	d.s = s
	return nil
}

// stray skips a DATA frame that the peer sent before it knew of our reset.
func (c *Conn) stray() error {
	c.returnConn(c.in.f.length)
	c.in.mode = skip
	if !c.limits.strays.take(c.now) {
		return connError(http2.ErrCodeEnhanceYourCalm, "flood of frames on closed streams")
	}
	return nil
}

// dataPart hands on the next part of a DATA payload.
func (c *Conn) dataPart(b []byte) error {
	d := &c.in.data
	rest := c.in.left - len(b) // what comes after this part
	if d.needPad && len(b) > 0 {
		d.needPad = false
		d.padding = int(b[0])
		if d.padding >= c.in.f.length { // §6.1
			return connError(http2.ErrCodeProtocol, "padding longer than the frame")
		}
		c.returnConn(d.padding + 1)
		c.Consumed(d.s, d.padding+1)
		b = b[1:]
	}
	if pad := d.padding - rest; pad > 0 { // the frame's last bytes
		b = b[:len(b)-min(pad, len(b))]
	}
	if len(b) == 0 {
		return nil
	}
	// Connection credit goes back as soon as the bytes leave here: a stream
	// whose application is slow must not hold up the others.
	c.returnConn(len(b))
	if d.s.done { // reset by its owner half way through the frame
		return nil
	}
	c.emit(Event{Kind: Data, Stream: d.s, Data: b})
	return nil
}

// endData applies END_STREAM.
func (c *Conn) endData() error {
	s := c.in.data.s
	c.in.data.s = nil
	if !c.in.f.has(http2.FlagDataEndStream) || s == nil || s.done {
		return nil
	}
	c.endRemote(s)
	return nil
}

// endRemote notes the peer's END_STREAM.
func (c *Conn) endRemote(s *Stream) {
	s.remoteEnd = true
	c.emit(Event{Kind: End, Stream: s})
	c.maybeForget(s)
}

// returnConn counts n bytes as gone from the connection.
func (c *Conn) returnConn(n int) {
	if c.recv.taken(int64(n)) {
		c.out.connUpdate = true
	}
}

// Consumed says that the application took n bytes of s's data: the peer may
// send as many again.
func (c *Conn) Consumed(s *Stream, n int) {
	if s.done || s.remoteEnd {
		return
	}
	if !s.recv.taken(int64(n)) || s.update {
		return
	}
	s.update = true
	c.updates = append(c.updates, s)
}
