package relay

import "sync/atomic"

// Near is what a flow gives its far end to call.
//
// Calls of Pull never overlap, nor do calls of Push and End. None of the three
// may block.
type Near = interface {
	// Pull is called when the far end can send: it fills dst and returns how much.
	// 0 and nil: nothing now, Ready follows. io.EOF, with or without bytes:
	// half-close after them. Another error: reset.
	Pull(dst []byte) (int, error)
	// Push is called when bytes came in: bufs are valid during the call only. All
	// bytes are accepted; the result says how many the application already has,
	// Took reports the rest. An error: reset.
	Push(bufs [][]byte) (int, error)
	// End is called when no more bytes will come: io.EOF for a half-close, after
	// which Pull goes on; nil when the peer, having half-closed, wants no more from
	// us either; another error when it was reset or the tunnel died. An error with a
	// method Closed is an end like nil, and the result of the flow. nil and errors
	// other than io.EOF are final: nothing is called after them.
	End(error)
}

// Flusher is ready.Flusher.
type Flusher = interface{ Flush() }

// Far is the end of a flow that is not the application's own socket. An
// implementation needs nothing of this package: Near is an alias of an interface
// without a name. All methods may be called from any goroutine, and none may
// block.
type Far interface {
	// Attach starts the traffic; it is called once.
	Attach(Near)
	// Ready says that Pull has something again: bytes, the end or an error, or,
	// rarely, nothing after all. What it returns, if not nil, must be flushed once,
	// soon, but after others that are ready at the same time have said so.
	Ready() Flusher
	// Took returns flow-control credit for n bytes that Push kept back.
	Took(n int)
	// Reset ends the stream in both directions as an abnormal close; nothing
	// is called back afterwards, except calls already under way. err is for
	// the log. Resetting an ended stream does nothing.
	Reset(err error)
}

// Counters are the bytes of one flow so far, to be read at any time.
type Counters struct {
	Sent     atomic.Int64 // from the application to the far end
	Received atomic.Int64 // from the far end to the application
}

// Result says how a flow ended.
type Result struct {
	Sent, Received int64 // bytes, as in Counters
	// Err is nil when both directions ended cleanly, the error given to Cut
	// when the flow was cut, that of an End which only closed, else what broke
	// first.
	Err error
}

// TCP makes the far end out of a TCP connection, which then belongs to the flow.
func TCP(c App) Far { return tcpFar{conn: c} }
