// Package controlplane is the ambient part of istiod on its own: it feeds the mesh
// model from a Kubernetes API server, or from a folder of Kubernetes YAML, serves it to
// proxies over delta ADS, and signs their pods' certificates, both on one TLS port.
//
// Kind: root. Its program is xds/cmd/controlplane.
//
//	xds/kube or xds/file ──objects──▶ translate ──snapshot──▶ xds/server ──▶ proxies
//	                                      └────placements──▶ ca/server  ──▶ proxies
//
// config.go is what can be set, run.go starts and stops the parts, feed.go is where
// objects come from, model.go the arrow in the middle, callers.go who may call,
// serving.go the certificate of the TLS port.
//
// What the CA is over time is ca/rotation's. In Kubernetes (kubernetes.go) it is in a
// Secret that all replicas read (casecret.go); and the one that leads (leader.go) keeps
// the ConfigMap with the root in every namespace (rootmaps.go), tells policies and what is bound to a waypoint what
// became of them (status.go, policystatus.go, waypointstatus.go), and gives hosts of
// ServiceEntries that have no address one (addresses.go). Every replica serves. An API server that is away stops none of it
// but the writing: what was last read is served, the keys are in memory.
package controlplane
