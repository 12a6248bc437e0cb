// Package istiod holds Warren against Istio's own control plane.
//
// Kind: test. Its tests are built with the tag istiod and run by `make test-istiod`:
// they need the programs that ISTIOD_BIN (pilot-discovery), KUBE_APISERVER_BIN and
// ETCD_BIN name, built from source, and root. They are no part of `make test`, and
// fail, naming the variable, where one is not set.
//
// world_test.go puts a real istiod on a bare API server into the place of Warren's
// control plane in the mesh of e2e/onehost; scenarios_test.go runs the same traffic,
// services and policies on both; diff_test.go gives both the same objects and compares,
// field by field, what they tell proxies, with every difference that is meant to be
// there and why.
package istiod
