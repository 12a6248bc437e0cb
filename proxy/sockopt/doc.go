// Package sockopt makes every socket of the proxy, in a pod's network
// namespace or in its own, with the options that the redirection rules and the
// data path need.
//
// Each option is one function named after the kernel's ([Option]); [Sockets]
// composes them. A socket enters its namespace once, to be made; connecting
// and waiting happen outside, so that the number of threads does not grow with
// connections.
//
// Kind: adapter. Used by proxy and its listeners.
package sockopt
