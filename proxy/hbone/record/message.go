package record

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
)

// Messages after the handshake (RFC 8446 §4.6). Client authentication after the
// handshake was not offered, so that a CertificateRequest is out of place.
const (
	messageTicket    = 4
	messageKeyUpdate = 24

	messageHeader = 4
	// maxTicket bounds what a NewSessionTicket makes us keep, as crypto/tls does.
	maxTicket = 64 << 10
)

// handshake takes a piece of handshake messages, which may be spread over
// records.
func (o *own) handshake(piece []byte) error {
	if len(piece) == 0 {
		return errEmptyMessage // RFC 8446 §5.1
	}
	o.hand = append(o.hand, piece...)
	for len(o.hand) >= messageHeader {
		size := int(o.hand[1])<<16 | int(o.hand[2])<<8 | int(o.hand[3])
		if err := o.expected(o.hand[0], size); err != nil {
			return err
		}
		if len(o.hand) < messageHeader+size {
			return nil
		}
		typ, body := o.hand[0], o.hand[messageHeader:messageHeader+size]
		o.hand = o.hand[messageHeader+size:]
		if err := o.message(typ, body); err != nil {
			return err
		}
	}
	if len(o.hand) == 0 {
		o.hand = nil
	}
	return nil
}

// expected judges a message by its header, before any of it is waited for.
func (o *own) expected(typ byte, size int) error {
	switch {
	case typ == messageKeyUpdate && size != 1:
		return errKeyUpdateSize
	case typ == messageKeyUpdate:
		return nil
	case typ != messageTicket || !o.client:
		return errMessage
	case size > maxTicket:
		return errTicket
	}
	return nil
}

// message acts on a whole message that was expected.
func (o *own) message(typ byte, body []byte) error {
	switch {
	case typ == messageTicket && !validTicket(body):
		return errTicket
	case typ == messageKeyUpdate && body[0] > 1:
		return errKeyUpdateValue
	}
	if err := o.noData(); err != nil {
		return err
	}
	if typ == messageTicket {
		return nil // nothing is resumed here
	}
	if len(o.hand) > 0 {
		return errKeyBoundary // RFC 8446 §5.1
	}
	if o.credit -= keyPrice; o.credit < 0 {
		return errUpdates
	}
	if err := o.in.update(); err != nil {
		return err
	}
	if body[0] == 1 {
		o.want(&o.answer)
	}
	return nil
}

// validTicket says whether b is a NewSessionTicket (RFC 8446 §4.6.1).
func validTicket(b []byte) bool {
	b, ok := skip(b, 8) // lifetime, age
	_, b, ok = vector(b, 1, ok)
	_, b, ok = vector(b, 2, ok)
	ext, b, ok := vector(b, 2, ok)
	if !ok || len(b) > 0 {
		return false
	}
	for len(ext) > 0 {
		early := len(ext) > 1 && binary.BigEndian.Uint16(ext) == 42
		ext, ok = skip(ext, 2)
		var data []byte
		if data, ext, ok = vector(ext, 2, ok); !ok || early && len(data) != 4 {
			return false
		}
	}
	return true
}

func skip(b []byte, n int) ([]byte, bool) {
	if len(b) < n {
		return nil, false
	}
	return b[n:], true
}

// vector takes bytes off b that are preceded by their number, in size bytes.
func vector(b []byte, size int, ok bool) (data, rest []byte, _ bool) {
	if !ok || len(b) < size {
		return nil, nil, false
	}
	n := 0
	for _, x := range b[:size] {
		n = n<<8 | int(x)
	}
	if b = b[size:]; len(b) < n {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}

// alerted returns what an alert means (RFC 8446 §6). Its level says nothing.
func (o *own) alerted(content []byte) error {
	switch {
	case len(content) != 2:
		return errAlertSize // never fragmented, never two in a record: §5.1
	case content[1] == alertCloseNotify:
		return io.EOF
	case content[1] == alertUserCanceled:
		// close_notify is to follow. As everywhere, it means nothing by itself.
		return o.noData()
	}
	return clarify(&net.OpError{Op: "remote error", Err: tls.AlertError(content[1])})
}
