// Package app is the application that the cluster tests put into pods: server and
// client in one program, which needs nothing else in its image. A test steers it by
// commands exec'd in the pod; they reach the server over a socket in the abstract
// namespace, which needs no file system and which no redirection touches. So a load
// goes on when the exec that started it, or kubelet, is long gone.
//
// Kind: test.
package app
