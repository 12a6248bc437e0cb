// Package socks5 is the server's side of SOCKS 5 (RFC 1928), as far as a proxy of
// TCP needs it: no authentication, for whoever reaches the port is the pod, and
// CONNECT, to an address or a name.
//
// Kind: adapter. The messages are pure: bytes in, values out, or the other way.
// [Accept] and [Answer] carry them over a connection; between the two the caller
// connects, so that the client is told how that went, not that it was tried.
package socks5
