// Package envoy holds Warren's proxy against a real Envoy: the waypoint and the HBONE
// peer of Istio's meshes.
//
// Kind: test. Its tests are built with the tag envoy and run by `make test-envoy`: they
// need an upstream Envoy, whose path ENVOY_BIN names, and root. They are no part of
// `make test`, and fail, naming the variable, where it is not set.
//
// The mesh is e2e/onehost's, under Warren's own control plane. Envoy runs in a pod's network
// namespace with a static configuration that the tests write and a certificate of the mesh's
// CA; it has none of Istio's filters. hbone_test.go has the parts that make an Envoy a
// waypoint as Istio builds one: CONNECT terminated on 15008, an internal listener that finds
// by the authority where the client wanted to go, and CONNECT originated to the endpoint's
// own 15008.
package envoy
