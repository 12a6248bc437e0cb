// Package server is the control plane's delta ADS server: it gives every proxy the
// workloads, services and policies of the mesh, and from then on only what changed.
//
// Kind: adapter. Reader: xds/controlplane.
//
// The state of the mesh is a Snapshot, immutable and shared by all streams. A stream
// remembers the resources that its client holds and walks from there to the newest in one
// step, however many were skipped: a slow client costs no queue and keeps no old model
// in memory, and one that does not answer is cut off. session.go is that protocol without
// I/O, diff.go the step, stream.go the gRPC stream around them, response.go what goes
// over it: each resource encoded once, whoever it is on its way to.
//
// Order on a stream: policies that are new or changed, then workloads and services,
// then policies that are gone. A workload thus never names a policy that its proxy
// does not have, which proxies would take as no policy.
//
// Clients subscribe to everything of a type, or, to workloads and services, on demand
// (demand.go, index.go): to those of their node and to what they name.
package server
