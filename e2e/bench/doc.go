// Package bench measures what a mesh costs: the same traffic through Warren,
// through another proxy in its place (by path), straight over the same wire,
// and over TLS without a mesh, in interleaved rounds of one run, so that the
// machine's mood falls on all of them alike. It prints medians; it judges
// nothing and fails only when traffic does.
//
// Each subject is a whole mesh of package onehost: pods by CNI, the real
// in-pod rules, a real CA. The server end is a process of its own inside its
// pod; the client end is this process.
//
// Kind: root of the bench program.
package bench
