// Package bench measures what a mesh costs: the same traffic through Warren,
// through another proxy in its place (by path), straight over the same wire,
// and over TLS without a mesh, in interleaved rounds of one run, so that the
// machine's mood falls on all of them alike. It prints medians, spread and the
// ratio to the peer; it judges nothing and fails only when traffic does.
//
// Each proxy has a [bed]: two nodes of package onehost with pods that no CNI
// plugin made but whose rules are the real ones, a proxy process on each node,
// and the bench itself as node agent (ZDS), CA (CreateCertificate over TLS) and
// world (a file, LOCAL_XDS_PATH). So any proxy that speaks those three can be a
// subject. What warren-cni adds to an ADD is measured on a whole mesh of
// onehost, with CNI.
//
// The traffic's ends are package ends: the server end a process in its pod, the
// client end a thread of this process in the client's pod.
//
// Kind: root of the bench program.
package bench
