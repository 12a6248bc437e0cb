// Package bearer reads the token that a gRPC caller comes with.
//
// Kind: pure. Used by ca/server, which knows tokens from a file, and ca/kubeauth, which
// asks an API server about them.
package bearer
