// Package translate turns Kubernetes and Istio objects into the mesh model of
// xds/workload, and says whether a pod belongs to the mesh and, if not, why.
//
// Kind: pure. No clock, no I/O, no goroutine: the same objects and options give
// the same result, in the same order, whatever order the objects come in.
//
// Readers: the control plane (All) and the node agent (Eligible, NamespaceMode).
// Both feed it from an API server or from a folder of YAML (xds/file), so that
// agent and control plane never disagree about who is in the mesh.
//
// Names, defaults and precedence are those of Istio's control plane, so that either can
// stand in the other's place. Where that one is mistaken this one is not: what has no
// labels is selected by nothing, an endpoint by its own labels and not those of the
// ServiceEntry around it, the network of one endpoint is not that of the next, a waypoint
// is reached at the port of its listener, and exportTo holds for proxies, too.
//
// What cannot be translated is left out and reported as a Problem that names the
// object and the field. Where leaving a piece of a policy out would let more
// through, the piece is replaced by the stricter reading instead.
package translate
