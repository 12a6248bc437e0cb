// Package conflist puts Warren's plugin into a CNI network configuration list
// and takes it out again: bytes to bytes. What is not ours stays as it is, byte
// for byte: unknown fields, the order of keys, numbers, indentation. Doing
// either twice changes nothing.
//
// Kind: pure. Used by the node agent's installer; the plugin takes its name and
// versions from here.
package conflist
