// Package bench measures what a mesh costs: the same traffic through Warren,
// through another proxy in its place (by path), straight over the same wire,
// and over TLS without a mesh, in interleaved rounds of one run, so that the
// machine's mood falls on all of them alike. It prints medians, spread and the
// ratio to the peer; it judges nothing and fails only when traffic does.
//
// Each proxy has a [bed]: two nodes of package onehost with pods that no CNI
// plugin made but whose rules are the real ones, a proxy process on each node,
// the bench itself as node agent (ZDS) and world (a file, LOCAL_XDS_PATH), and a
// process of the bench as control plane: CA (CreateCertificate over TLS) and, for a
// large mesh, delta xDS. So any proxy that speaks those can be a subject.
//
// While the control plane tells of changes it competes with what is measured. So all
// that it says is on hand as bytes of the wire, answers are read in bulk, what it uses
// is a column, and the same changes told to a control on each node, which is on
// nobody's way, show what of the loss is the machine's and the bench's own.
//
// What warren-cni adds to an ADD is measured on a whole mesh of onehost, with CNI.
//
// The traffic's ends are package ends: the server end a process in its pod, the
// client end a thread of this process in the client's pod.
//
// Kind: root of the bench program.
package bench
