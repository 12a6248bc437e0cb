// Package dns answers the DNS queries of a pod in the mesh: those for services
// that the mesh knows, from its view, and all others by asking the resolver that
// the pod asked itself.
//
// Kind: adapter. Zone and the messages are pure: a view, the asking pod and bytes
// go in, a Decision or bytes come out. Server is the edge, with sockets that the
// proxy made in the pod's namespace. It has no system calls of its own.
//
// The pod's resolver expands short names, by its own search list and ndots, and
// the proxy does not guess at either: every name that the pod asks for is judged
// as it stands. A search domain is taken off again only where that saves the pod
// questions to which the answer is known; and a short name that the public DNS
// might know as well, such as "web.dev", goes there first.
//
// What is not answered is forwarded as it came, byte for byte but for the ID, and
// so is the answer: types, options and signatures that nobody here knows pass.
// An answer is kept for seconds, for the same question of the same pod to the same
// resolver, within a bound: a burst costs one question, and no pod can leave an
// answer behind for another. What the mesh answers is never kept.
package dns
