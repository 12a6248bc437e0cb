// Package nodump keeps the memory of a process that holds private keys out of core dumps and away from debuggers.
//
// Kind: bottom. Used by the programs that hold keys, before anything else that they do.
package nodump
