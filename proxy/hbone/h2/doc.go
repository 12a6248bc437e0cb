// Package h2 is HTTP/2 (RFC 9113) for CONNECT tunnels as a state machine
// without I/O: bytes in, events out; calls in, bytes out. Both roles. It has
// no socket, clock or goroutine and is not safe for concurrent use: its owner
// (a tunnel of package hbone) serialises the calls and passes in the time.
//
// CONNECT only: no push, no trailers, no priorities. DATA is handed on as it
// arrives, never as a whole frame, and points into the bytes received. Sending
// is pulled: the owner asks whose turn it is and builds the frame in place, so
// nothing is queued here but control frames, and those are bounded.
//
// Pure. HPACK and the frame type and error code constants are those of
// golang.org/x/net/http2, whose Framer is the tests' oracle.
package h2
