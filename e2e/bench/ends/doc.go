// Package ends is both ends of the bench's traffic, made to cost little beside
// the proxies that they measure: one thread an end, epoll, buffers made once,
// no allocation for a request or a block of bytes.
//
// A connection begins with a head that says what it is for: taking what comes,
// sending all it can, or echoing messages. [Serve] is the server end, a process
// of its own in its pod; [Run] is the client end, on the thread that calls it,
// which is in the client pod's namespace. TLS without a mesh goes the ordinary
// way instead, a goroutine a connection over crypto/tls ([RunTLS]).
//
// What the server receives it counts in a [Board], memory that both processes
// see, so that the client can take a window out of the middle of a transfer.
//
// Kind: test support of e2e/bench.
package ends
