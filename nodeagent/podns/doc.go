// Package podns finds the network namespaces of pods that run already, out of
// /proc, and the connections that are alive in one.
//
// A process belongs to a pod because the kernel says that it is in the pod's
// control group, where the runtime put it; a namespace is the pod's because the
// pod's first process is in it, and because the runtime holds it, as it holds
// every one that it made. A process of a pod may move into another namespace, or
// make one and give it any address it likes: it is not the first, and nobody holds
// what it made.
//
// The connections of before are known by the cookie that the kernel gives each
// socket, so that a new one in the place of an old one is never taken for it.
//
// Kind: adapter. Used by nodeagent.
package podns
