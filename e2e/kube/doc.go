// Package kube runs the mesh on a real Kubernetes: any cluster that $KUBECONFIG
// reaches and whose nodes have the images of `make images` (and the tests' own), by
// `make e2e-kube`, or one that `make e2e-kind` makes for it. The tests are behind the
// build tag kube: they take a cluster over, and they fail where there is none.
//
//	KUBECONFIG            the cluster; its user must be an administrator
//	E2E_MANIFESTS         the rendered manifests of the mesh, a file of YAML
//	E2E_APP_IMAGE         the image with the tests' application
//	E2E_RESTART_KUBELET   a command that restarts kubelet of the node it is called with
//	E2E_KEEP              leave the mesh and the tests' namespaces where they are
//
// The mesh is installed once and stays installed from test to test; a test that takes
// it away brings it back. Whoever reads the output finds the figures in lines that
// begin with "measure:".
//
// Kind: test.
package kube
