// Package hostdir works in one folder of the host as seen below some root, such
// as a container's mount of the host's file system: read, write, put in place
// atomically, exchange.
//
// Symbolic links are followed as the host would follow them, an absolute one
// from the host's root and not from ours, and none leads out of that root,
// whoever changes what meanwhile. What is read is bounded and must be a regular
// file: nothing on a host makes a reader hang or swell.
//
// Kind: adapter, at the bottom of everything. Used by nodeagent/install.
package hostdir
