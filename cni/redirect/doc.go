// Package redirect puts the in-pod rules in place that turn a pod's traffic to
// the proxy's listeners, checks them, and takes them away without a trace.
//
// The rules are data ([Rules], [Routes]), a pure function of a [Config]; a
// [Backend] makes the namespace's kernel state match them.
//
// Kind: pure, with an adapter for Linux in files named after it. Used by the
// CNI plugin (which programs a new pod itself) and the node agent (which
// verifies, and programs pods that already run).
package redirect
