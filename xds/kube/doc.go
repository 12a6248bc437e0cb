// Package kube feeds translate.Objects from a Kubernetes API server: everything the
// mesh is made from for the control plane, or the pods of one node, with all
// namespaces, for that node's agent.
//
// Kind: adapter. Readers: nodeagent and xds/controlplane, where xds/file is the other
// feeder.
//
// Every kind is listed and watched on its own (follow.go) into a table (table.go) that
// keeps of an object only what is read of it (prune.go): most of a pod is nobody's
// business here, and a cluster has many. What arrives is handed out together, the
// first change at once and those behind it a moment later (feeder.go).
//
// Nothing is handed out before every kind has been read once. From then on what was
// last read stays: an API server that is slow, sends everybody away or is gone makes
// the state old, which Problems and Status say, and never empty.
//
// The kinds of Istio and of the Gateway API are there when their definitions are
// (custom.go), which may come and go while we run.
package kube
