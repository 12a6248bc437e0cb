package h2

import (
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Kind says what an Event is about.
type Kind uint8

// The kinds of events.
const (
	// Request: a peer opened Stream with CONNECT; Header is its field list.
	Request Kind = iota + 1
	// Response: the final answer on Stream; Status and Header are set.
	Response
	// Data: bytes arrived on Stream. Credit goes back by Consumed.
	Data
	// End: the peer sent END_STREAM; nothing follows but Reset.
	End
	// Reset: Stream is over in both directions: the peer reset it, or broke the
	// protocol on it (Local). Unprocessed: the peer did nothing with it, so it
	// may be tried elsewhere.
	Reset
	// Settings: the peer's settings came, the first time or changed.
	Settings
	// Pong: the peer answered our PING; Ping holds its payload.
	Pong
	// GoAway: the peer takes no more streams; Code says why. Streams it will
	// not process got their Reset before.
	GoAway
)

func (k Kind) String() string {
	names := [...]string{"?", "Request", "Response", "Data", "End", "Reset", "Settings", "Pong", "GoAway"}
	if int(k) < len(names) {
		return names[k]
	}
	return names[0]
}

// Event is one thing that happened in the bytes given to Receive.
type Event struct {
	Kind        Kind
	Stream      *Stream // nil for Settings, Pong and GoAway
	Data        []byte  // part of the input of Receive: valid as long as that is
	Header      []hpack.HeaderField
	Status      int
	Code        http2.ErrCode
	Local       bool
	Unprocessed bool
	Ended       bool // Reset: the peer had sent END_STREAM before
	Ping        [8]byte
}
