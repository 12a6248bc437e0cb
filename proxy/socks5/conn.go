package socks5

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// Accept reads what the client of a new connection wants, within so much time.
// It reads no byte of what follows. A client that is not served has been told so
// when Accept returns its error; the connection stays the caller's.
func Accept(c net.Conn, within time.Duration) (Request, error) {
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		return Request{}, fmt.Errorf("socks5: %w", err)
	}
	r, err := accept(c)
	var refused *Error
	if errors.As(err, &refused) {
		_, werr := c.Write(reply(refused.Code, netip.AddrPort{}))
		return r, errors.Join(err, werr)
	}
	if err != nil {
		return r, err
	}
	return r, c.SetDeadline(time.Time{})
}

func accept(c io.ReadWriter) (r Request, err error) {
	hello, err := read(c, greetingSize)
	if err != nil {
		return r, err
	}
	method := byte(noAuth)
	if err = parseGreeting(hello); err != nil {
		method = noneAccepted
	}
	if _, werr := c.Write([]byte{version, method}); werr != nil || err != nil {
		return r, errors.Join(err, werr)
	}
	request, err := read(c, requestSize)
	if err != nil {
		return r, err
	}
	return parseRequest(request)
}

// Answer tells the client how its request ended, within so much time. bound is
// where the connection comes from, or none.
func Answer(c net.Conn, code Code, bound netip.AddrPort, within time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		return fmt.Errorf("socks5: %w", err)
	}
	if _, err := c.Write(reply(code, bound)); err != nil {
		return fmt.Errorf("socks5: %w", err)
	}
	return c.SetDeadline(time.Time{})
}

// read reads one message: as much as size says of what is there.
func read(r io.Reader, size func([]byte) int) ([]byte, error) {
	var b []byte
	for n := size(b); len(b) < n; n = size(b) {
		more := make([]byte, n-len(b))
		if _, err := io.ReadFull(r, more); err != nil {
			if errors.Is(err, io.EOF) && len(b) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("socks5: %w", err)
		}
		b = append(b, more...)
	}
	return b, nil
}
