// Package archtest holds the repository to DESIGN.md: which package may import
// which, where system calls, processes and TLS configurations may be made, and
// the size and shape of source files. It has only tests.
//
// Kind: test.
package archtest
