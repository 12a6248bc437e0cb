// Package proxyproto writes and reads the header of the PROXY protocol, version 2:
// what an application behind a tunnel is told about a connection, before its
// first byte.
//
// Kind: pure. Bytes in, values out, and the other way round.
package proxyproto
