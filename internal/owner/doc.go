// Package owner says to whom files and the other ends of Unix sockets belong, for those who have to know before they
// believe what they read there.
//
// Kind: bottom. Used by ca/source, which talks to agents on this node, and ca/server, which gives files away.
package owner
