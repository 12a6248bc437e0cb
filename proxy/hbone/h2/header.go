package h2

import (
	"errors"
	"strconv"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// blockState is the field block being received: HEADERS and what continues it.
type blockState struct {
	open      bool // END_HEADERS has not come
	id        uint32
	endStream bool
	frames    int
	buf       []byte
}

func (c *Conn) beginBlock() error {
	f, b := c.in.f, &c.in.block
	if f.id == 0 {
		return connError(http2.ErrCodeProtocol, "HEADERS on stream 0")
	}
	if f.typ == http2.FrameContinuation {
		if !b.open {
			return connError(http2.ErrCodeProtocol, "CONTINUATION of nothing")
		}
	} else {
		*b = blockState{open: true, id: f.id, endStream: f.has(http2.FlagHeadersEndStream), buf: b.buf[:0]}
	}
	b.frames++
	if b.frames > maxFragments || len(b.buf)+f.length > int(c.cfg.MaxHeaderList)+headerExtras {
		return connError(http2.ErrCodeEnhanceYourCalm, "field block too long")
	}
	return nil
}

// endFragment adds one frame to the block and, at its end, acts on it.
func (c *Conn) endFragment() error {
	f, b := c.in.f, &c.in.block
	frag := c.in.buf
	if f.typ == http2.FrameHeaders {
		var err error
		if frag, err = stripHeaders(f, frag); err != nil {
			return err
		}
	}
	b.buf = append(b.buf, frag...)
	if !f.has(http2.FlagHeadersEndHeaders) {
		return nil
	}
	b.open = false
	if sizeUpdates(b.buf) > maxSizeUpdates {
		return connError(http2.ErrCodeCompression, "field block that changes the table's size again and again")
	}
	fields, err := c.decode(b.buf)
	if cap(b.buf) > maxControl {
		b.buf = nil // a rare size: do not hold it while idle
	}
	if err != nil && !errors.Is(err, errListSize) {
		return connError(http2.ErrCodeCompression, err.Error())
	}
	if c.client {
		return c.onResponse(b.id, fields, err)
	}
	return c.onRequest(b.id, fields, err)
}

// stripHeaders removes padding and priority from a HEADERS payload (§6.2).
func stripHeaders(f frameHeader, p []byte) ([]byte, error) {
	pad := 0
	if f.has(http2.FlagHeadersPadded) {
		if len(p) < 1 {
			return nil, connError(http2.ErrCodeFrameSize, "HEADERS without pad length")
		}
		pad = int(p[0])
		p = p[1:]
	}
	if f.has(http2.FlagHeadersPriority) {
		if len(p) < 5 {
			return nil, connError(http2.ErrCodeFrameSize, "HEADERS without priority")
		}
		p = p[5:]
	}
	if pad > len(p) {
		return nil, connError(http2.ErrCodeProtocol, "padding longer than HEADERS")
	}
	return p[:len(p)-pad], nil
}

// maxSizeUpdates is how often a block may change the size of our table, which is
// enough for all changes since the block before (RFC 7541 §4.2).
const maxSizeUpdates = 2

// sizeUpdates counts the changes of the table's size that a block begins with
// (RFC 7541 §6.3); what is no number is the decoder's to refuse.
func sizeUpdates(block []byte) (n int) {
	const mark, prefix = 0x20, 0x1f // 001, and five bits of a number
	for len(block) > 0 && block[0]&^prefix == mark {
		n++
		more := block[0]&prefix == prefix
		for block = block[1:]; more && len(block) > 0; block = block[1:] {
			more = block[0]&0x80 != 0
		}
	}
	return n
}

var errListSize = errors.New("field list too large")

// decode runs HPACK over a block. The list is bounded as §10.5.1 has it; the
// rest of a list that is too large is decoded for the table's sake and dropped.
func (c *Conn) decode(block []byte) ([]hpack.HeaderField, error) {
	var fields []hpack.HeaderField
	size := uint32(0)
	c.dec.SetEmitEnabled(true)
	c.dec.SetEmitFunc(func(f hpack.HeaderField) {
		if size += f.Size(); size > c.cfg.MaxHeaderList {
			fields = nil
			c.dec.SetEmitEnabled(false)
			return
		}
		fields = append(fields, f)
	})
	if _, err := c.dec.Write(block); err != nil {
		return nil, err
	}
	if err := c.dec.Close(); err != nil {
		return nil, err
	}
	if size > c.cfg.MaxHeaderList {
		return nil, errListSize
	}
	return fields, nil
}

// onRequest opens a stream for a CONNECT (§8.5). Requests with another method
// are answered here: this is a tunnel endpoint and nothing else.
func (c *Conn) onRequest(id uint32, fields []hpack.HeaderField, listErr error) error {
	if s := c.streams[id]; s != nil {
		if s.remoteEnd { // §5.1, half-closed (remote)
			return &streamError{id, http2.ErrCodeStreamClosed}
		}
		// §8.5: on a connected stream only DATA and stream management.
		return &streamError{id, http2.ErrCodeProtocol}
	}
	if id%2 == 0 {
		return connError(http2.ErrCodeProtocol, "client used an even stream id")
	}
	if id <= c.lastPeer {
		if c.resetByUs(id) {
			return nil
		}
		return connError(http2.ErrCodeStreamClosed, "HEADERS on a closed stream")
	}
	c.lastPeer = id
	if c.draining && id > c.drainLast {
		return nil // §6.8: as if it never came
	}
	if len(c.streams) >= int(c.cfg.MaxStreams) {
		if !c.limits.early.take(c.now) {
			return connError(http2.ErrCodeEnhanceYourCalm, "flood of requests over the limit")
		}
		c.appendReset(id, http2.ErrCodeRefusedStream)
		return nil
	}
	if listErr != nil {
		return &streamError{id, http2.ErrCodeEnhanceYourCalm}
	}
	method, err := checkRequest(fields)
	if err != nil {
		return &streamError{id, http2.ErrCodeProtocol}
	}
	s := c.newStream(id)
	s.remoteEnd = c.in.block.endStream
	if method != "CONNECT" {
		c.Refuse(s, 400)
		return nil
	}
	c.emit(Event{Kind: Request, Stream: s, Header: fields})
	if s.remoteEnd {
		c.emit(Event{Kind: End, Stream: s})
	}
	return nil
}

// maxInterim is how many 1xx answers a stream may get.
const maxInterim = 5

func (c *Conn) onResponse(id uint32, fields []hpack.HeaderField, listErr error) error {
	s, idle := c.lookup(id)
	switch {
	case idle:
		return connError(http2.ErrCodeProtocol, "HEADERS on a stream we did not open")
	case s == nil:
		if c.resetByUs(id) {
			return nil
		}
		return &streamError{id, http2.ErrCodeStreamClosed}
	case s.remoteEnd:
		return &streamError{id, http2.ErrCodeStreamClosed}
	case s.answered: // §8.5: no trailers on a connected stream
		return &streamError{id, http2.ErrCodeProtocol}
	case listErr != nil:
		return &streamError{id, http2.ErrCodeEnhanceYourCalm}
	}
	status, err := checkResponse(fields)
	if err != nil {
		return &streamError{id, http2.ErrCodeProtocol}
	}
	if status < 200 {
		s.interim++
		if c.in.block.endStream || s.interim > maxInterim {
			return &streamError{id, http2.ErrCodeProtocol}
		}
		return nil
	}
	s.answered = true
	c.emit(Event{Kind: Response, Stream: s, Header: fields, Status: status})
	if c.in.block.endStream {
		c.endRemote(s)
	}
	return nil
}

var errMalformed = errors.New("malformed field list")

// walkFields checks what §8.2 and §8.3 ask of every list and hands each pseudo
// field to f.
func walkFields(fields []hpack.HeaderField, f func(name, value string) error) error {
	regular := false
	for _, h := range fields {
		if !httpguts.ValidHeaderFieldValue(h.Value) {
			return errMalformed
		}
		if h.IsPseudo() {
			if regular {
				return errMalformed
			}
			if err := f(h.Name, h.Value); err != nil {
				return err
			}
			continue
		}
		regular = true
		if !validName(h.Name) {
			return errMalformed
		}
		switch h.Name {
		case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
			return errMalformed // §8.2.2
		case "te":
			if h.Value != "trailers" {
				return errMalformed
			}
		}
	}
	return nil
}

// validName says whether name is a token in lower case (§8.2.1).
func validName(name string) bool {
	for i := range len(name) {
		if c := name[i]; c >= 'A' && c <= 'Z' {
			return false
		}
	}
	return httpguts.ValidHeaderFieldName(name)
}

// checkRequest returns the method of a well-formed request. CONNECT has
// :authority and neither :scheme nor :path (§8.5); the others have both.
func checkRequest(fields []hpack.HeaderField) (method string, err error) {
	seen := map[string]string{}
	err = walkFields(fields, func(name, value string) error {
		switch name {
		case ":method", ":scheme", ":path", ":authority":
		default: // also :protocol (RFC 8441), which we did not enable
			return errMalformed
		}
		if _, twice := seen[name]; twice || value == "" {
			return errMalformed
		}
		seen[name] = value
		return nil
	})
	if err != nil {
		return "", err
	}
	connect := seen[":method"] == "CONNECT"
	_, scheme := seen[":scheme"]
	_, path := seen[":path"]
	switch {
	case connect && (scheme || path || seen[":authority"] == ""):
		return "", errMalformed
	case !connect && (seen[":method"] == "" || !scheme || !path):
		return "", errMalformed
	}
	return seen[":method"], nil
}

// checkResponse returns the status of a well-formed response.
func checkResponse(fields []hpack.HeaderField) (status int, err error) {
	err = walkFields(fields, func(name, value string) error {
		if name != ":status" || status != 0 || len(value) != 3 {
			return errMalformed
		}
		n, err := strconv.ParseUint(value, 10, 16)
		if err != nil || n < 100 || n == 101 { // §8.6: no 101
			return errMalformed
		}
		status = int(n)
		return nil
	})
	if err == nil && status == 0 {
		err = errMalformed
	}
	return status, err
}
