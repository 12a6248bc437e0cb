// Package client keeps a workload.Store in step with a control plane by delta ADS.
//
// Kind: adapter. It owns one gRPC connection and the goroutines of Run. Used by
// the proxy; the control plane at the other end is xds/server's or Istio's.
//
// Both resource types share one stream. Each response is acknowledged once the
// store has it. A resource that cannot be converted is refused by name in a NACK
// and keeps its previous version, while the rest of the response is applied. In
// place of a policy that has no previous version, and that guards a namespace or
// the mesh, stands one that lets nothing through (workload.StandIn). On reconnect
// the names and versions that the store holds are sent, so that only the
// difference comes back.
//
// client.go connects, again and again; connect.go is one connection, session.go
// one stream. response.go turns a response into a change without I/O, ledger.go
// remembers what was taken under which name and version.
//
// A workload whose policies are not there yet refuses everything, or plaintext only
// (workload.StrictOnly). Istio's control plane sends workloads before policies, so
// workloads of the node that would be left without are held back until the next
// response about policies, for a moment at most; then both become visible together.
// What did not come in that moment is not waited for again until it has come
// (awaited.go). The other way round, a policy that is gone
// stays for a moment while workloads of the node name it (leaving.go).
//
// Of the control plane nothing is taken on trust: the size of a message, the
// number of resources, names, versions, nonces and texts have limits, a resource
// must be what its name says, and a peer that does not answer or does not read is
// dropped.
package client
