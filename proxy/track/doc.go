// Package track keeps the live connections of a node, so that they can be
// listed, counted and, when a policy changes, judged again.
//
// A connection is added before it is authorized and taken out when it has
// ended: an update that comes in between finds it (see [Registry.Recheck]).
//
// Kind: pure. Used by the proxy root, which adds every proxied connection, and
// by proxy/admin, which lists them.
package track
