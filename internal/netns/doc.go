// Package netns opens, identifies and enters network namespaces, and makes
// sockets in them. It is the only way into a namespace in this repository.
//
// A namespace is entered only to create something that stays there (a socket,
// a netlink handle, a child process); the thing comes back, the code does not.
// Connecting, TLS, copying, logging and waiting happen outside, so that the
// number of threads does not grow with connections or pods.
//
// Every entry runs on a goroutine of its own, locked to its thread. If the way
// back to the home namespace fails, the thread dies with that goroutine: it
// never returns to the scheduler's pool in the wrong namespace. The process's
// main thread never enters anything, because /proc/<pid>/ns/net, by which other
// programs find our namespace, is the main thread's. An entry that happens to
// start there hops to another thread, which doubles its price of some 12 µs; a
// program that enters for every connection makes runtime.LockOSThread the first
// line of main, so that the main thread runs nothing else.
//
// Home is the namespace that the process had when this package first needed
// it; it is opened once and kept open for the life of the process.
//
// Kind: adapter, at the bottom of everything. Used by cni, nodeagent, proxy and
// the tests' nodes and pods (internal/nstest). It needs CAP_SYS_ADMIN;
// [SelfTest] says at start whether it is there.
package netns
