// Package ready says when sockets are ready, many of them on few goroutines: a
// socket that waits costs an entry in a table, and neither a goroutine nor a
// buffer.
//
// A [Set] is one or more loops, each a thread that waits in an epoll instance of
// its own. The runtime's poller would do without the thread, but hands what is
// ready to a goroutine, for which it wakes another thread that looks for more
// work: that cost a lone request a quarter of its CPU time. Registration is
// edge-triggered, once, for reading and writing alike, so that a busy socket
// costs no system call here.
//
// A [Socket] is a descriptor with exactly one owner. It is taken over from a
// net.TCPConn, lent out for the length of a call and closed once, when it has
// been closed and nobody uses it any more: no descriptor is used after its
// number may have become another's.
//
// An adapter, used by proxy/relay and proxy/hbone; the proxy root makes the one Set.
package ready
