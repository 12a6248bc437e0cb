// Package redirect puts the in-pod rules in place that turn a pod's traffic to
// the proxy's listeners, checks them, and takes them away without a trace.
//
// The rules are data ([Rules], [Routes]), a pure function of a [Config]; a
// [Backend] makes the namespace's kernel state match them: by iptables, in either
// of its variants, or by nftables over netlink, without a program. Connections that
// are older than the rules are left alone, and what the rules captured goes on when
// they stop. [TakeOver] and [GiveBack] exchange them for Istio's and back.
//
// Kind: pure, with an adapter for Linux in files named after it. Used by the
// CNI plugin (which programs a new pod itself) and the node agent (which
// verifies, and programs pods that already run).
package redirect
