// Package rotation keeps the authority of a mesh over time: which one signs, which roots everybody is told, and how one
// is replaced by another without a moment at which two pods do not trust each other.
//
// Kind: core. A Store holds what is durable: files (ca/server's StateDir) or Secrets of Kubernetes (xds/controlplane). A
// Keeper is one replica's view of it: it signs, follows what others put there, and writes down what it signed.
//
// # A guarded rotation
//
// The root that we made ourselves is rotated by hand, in three steps (`controlplane ca`), each of which is one write of
// the Record, so that a crash leaves either the step before or the step after:
//
//	prepare   a new root is made and given to everybody beside the old one; the old one signs
//	activate  the new one signs; both are trusted
//	retire    the old one is given to nobody any more, and takes the new one's place in the store
//
// A step that comes too early would cut pods off from each other, and is refused:
//
//   - activate, while an SVID is valid whose holder was not told the new root. A proxy learns of roots with the answer to
//     its request, so its SVIDs that are older than that prove nothing; and until Settle has passed, in which those that
//     read the root from a file or a ConfigMap find it.
//   - retire, while an SVID is valid that the old root signed.
//   - both, while a replica has not taken up the step before: it may sign as before; and unless one that runs has written
//     within the last half a minute that it has, so that an empty Ledger is not taken for nobody's need.
//
// For this each replica counts what it signed that is still valid (Ledger), by issuer and by the roots that went along,
// and keeps the counts in the store under its name, with the step that it is at; before it has written there
// it signs nothing, and before it has written there that it signs for so long, it gives out nothing that lives longer than
// what it has written about. A replica that vanished without a word counts until the longest certificate that it can have
// signed has ended, of the default lifetime at least, and five minutes more: not for less, for it may have been given out
// just before, and not for ever, unless its clock was ahead by years. So does an authority that is found, and of which nobody
// wrote down what it signed, such as istiod's, or of which that was removed: for istiod's longest lifetime of 90 days, or for
// ours if that is longer. There is no way to force a step. A command whose clock is more than half a minute away from what
// the replicas wrote last is refused.
//
// What retire does not wait for are connections: a proxy that withdraws trust from a root ends those whose peer proved
// itself by it (proxy/distrust.go), however old they are. They are those that were opened before activate, or within one
// lifetime after it, and are still open.
//
// # A replacement
//
// An authority that somebody else put into the store (Istio's cacerts) is replaced when another one is put there, by
// time alone: the old one signs for Overlap while both roots are given out, then the new one signs and both are trusted
// for Overlap, then the new one stands alone. Where everybody has the new one's roots already, as with another
// intermediate certificate, the first part is left out: where no SVID is valid that was given out without them, and no
// replacement is in its first part, in which they may have come a moment ago. Where only the list of roots is another, it
// is taken as it is. One that is put there while no control plane runs is treated the same: the authority that was installed
// last is kept beside the record (Record.Last), with its key, for without that nothing could be signed that those trust who
// were told of no other. With an Overlap of zero it is not. Only an old one that has expired is passed over before its time. What is half written, or does not belong
// together, is not used: what was last good stays in force, and Differs says why.
package rotation
