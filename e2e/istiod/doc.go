// Package istiod holds Warren against Istio's own control plane.
//
// Kind: test. Its tests are built with the tag istiod and run by `make test-istiod`:
// they need the programs that ISTIOD_BIN (pilot-discovery), KUBE_APISERVER_BIN and
// ETCD_BIN name, built from source, and root. They are no part of `make test`, and
// fail, naming the variable, where one is not set. With ISTIOCTL_BIN, Istio's own reader
// of dumps is given ours.
//
// world_test.go puts a real istiod on a bare API server into the place of Warren's
// control plane in the mesh of e2e/onehost; the scenarios run the same traffic, services
// and policies on both, and asserts_test.go says what counts: a change is waited for, and
// from its first effect on there must be no other. diff_test.go gives both control planes
// the same objects and compares, field by field, what they tell proxies, with every
// difference that is meant to be there and why.
//
// clusters_test.go has two such meshes, of two clusters on two networks that touch in their
// gateways alone: TestMultiNetwork.
//
// Of Istio's acceptance tests for ambient those are not here that are about
//   - what a waypoint's or an ingress gateway's Envoy does with requests: routing, splits,
//     TCPRoute and TLSRoute, EnvoyFilter, extensions, authorization and telemetry at layer
//     7, egress by a waypoint, conformance to the Gateway API. The waypoints here are
//     applications of our own;
//   - what istiod deploys and writes into status: TestWaypointChanges, TestWaypointStatus,
//     TestOtherRevisionIgnored;
//   - sidecars and the migration from them: there are none in Warren's mesh;
//   - a cloud's metadata server, the API server as a destination, enrolment of running
//     pods, the node agent and its upgrades, taints: e2e/kube has those that a cluster can
//     show.
package istiod
