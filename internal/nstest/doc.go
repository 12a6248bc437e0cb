// Package nstest builds nodes and pods out of network namespaces, for tests.
//
//	              fabric: a namespace with one bridge, 10.99.0.0/24, fd99::/64
//	          ┌───────────────────┴───────────────────┐
//	node 1  eth0 10.99.0.1 fd99::1          node 2  eth0 10.99.0.2 fd99::2
//	          │ routes 10.99.1.0/24                    │ routes 10.99.2.0/24
//	    ┌─────┴─────┐                                 │
//	pod eth0     pod eth0                          pod eth0
//	10.99.1.2    10.99.1.3                         10.99.2.2
//	fd99:0:0:1::2  …:1::3                          fd99:0:0:2::2
//
// Nodes route: a pod is a veth pair whose far end is in its node's namespace.
// Nothing is made in the namespace the test runs in, so tests of several
// packages run at once without meeting. Each namespace is also bound to a file
// in the test's own temporary directory, for what wants a path (libcni).
//
// Everything is removed when the test ends, and the removal is checked: a
// namespace that something still holds fails the test.
//
// Tests need root, or a kernel that lets [Main] run them again as root of a new
// user namespace. Where neither is there a test is skipped, but with CI=true it
// fails.
//
// Kind: test support. No program imports it.
package nstest
