// Package hbone carries TCP connections as HTTP/2 CONNECT streams over mutual
// TLS, in both roles: [Pool] opens streams through tunnels that it keeps by
// [Key], [Serve] answers on an accepted connection and hands each CONNECT to a
// [Handler]. It knows no workloads and no policy.
//
// A tunnel is one TCP connection, the record layer on it (package record), the
// protocol state (package h2) and the streams riding on it, all owned by one
// mutex. Nothing blocks on a stream: a [Stream] is attached to three callbacks
// and told when its application has bytes or took some (see package relay,
// which declares the other half of that contract). One goroutine reads the
// tunnel; writing is a role that whoever has something to send takes, and that
// passes to a goroutine of its own while there is more than one write to do.
//
// An adapter, used by the proxy root.
package hbone
