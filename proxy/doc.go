// Package proxy serves every mesh pod of a node from sockets inside that pod's
// own network namespace, and carries pod-to-pod TCP as HBONE.
//
// The walk of a connection: the node agent hands a pod over (workloads.go), its
// listeners are opened (pod.go), a captured connection is accepted (accept.go) and
// belongs to that pod, whoever it says it is (identity.go).
// One that the pod makes goes through outbound.go: package route decides where
// it goes, package hbone carries it. One made to the pod comes in through
// inbound.go, or in plaintext through passthrough.go: package rbac decides
// whether it may. From then on package relay moves its bytes, and package track
// holds its guard, by which a change of policy still reaches it (recheck.go).
// When it ends it leaves a line in the access log (accesslog.go) and its bytes
// in the metrics (metrics.go).
//
// Kind: root. proxy/cmd/proxy runs it.
package proxy
