// Package relay moves bytes between two half-closable ends: an application's
// TCP connection and a far end, which is another TCP connection or a stream
// of an HBONE tunnel.
//
// Completion, not blocking: [Start] returns at once and done is called once,
// when both directions have ended or the flow was cut. A direction that ends
// cleanly is passed on as a half-close; one that ends badly is passed on as a
// reset, so that an application never takes a cut stream for a whole one.
//
// Sockets wait in a [ready.Set], whose loops move what is little by themselves:
// idle, a flow costs neither goroutine nor buffer. Between two sockets, bulk is
// spliced and never enters user space. Towards a tunnel nothing is queued: when
// the tunnel can take bytes it pulls, and the application's socket is read
// straight into the record being built. From a tunnel, what the application
// does not take at once waits here; the tunnel's flow control bounds it.
//
// An adapter, used by the proxy root. Beside package ready it imports nothing
// of Warren's: [Far] is declared here and *hbone.Stream satisfies it.
package relay
