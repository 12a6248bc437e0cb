package h2

import (
	"errors"
	"fmt"

	"golang.org/x/net/http2"
)

// ConnError ends a connection (RFC 9113 §5.4.1). The GOAWAY that says so is
// already among the control frames when it is returned.
type ConnError struct {
	Code   http2.ErrCode
	Reason string
}

func (e *ConnError) Error() string { return fmt.Sprintf("http2: %v: %s", e.Code, e.Reason) }

// Errors of Open. All leave the connection as it was.
var (
	// ErrStreams: the peer's limit on concurrent streams is reached.
	ErrStreams = errors.New("http2: peer takes no more streams")
	// ErrGoingAway: the peer or we said GOAWAY, or the stream ids are used up.
	ErrGoingAway = errors.New("http2: connection is going away")
	// ErrHeaderSize: the header is larger than the peer takes.
	ErrHeaderSize = errors.New("http2: header larger than the peer accepts")
)

func connError(code http2.ErrCode, reason string) error {
	return &ConnError{Code: code, Reason: reason}
}

// streamError resets one stream and lets the connection live (§5.4.2). It never
// leaves the package: the parser turns it into an RST_STREAM and a Reset event.
type streamError struct {
	id   uint32
	code http2.ErrCode
}

func (e *streamError) Error() string { return fmt.Sprintf("http2: stream %d: %v", e.id, e.code) }
