// Package kube runs the mesh on a real Kubernetes: any cluster that $KUBECONFIG
// reaches and whose nodes have the images of `make images` (and the tests' own), by
// `make e2e-kube`, or one that `make e2e-kind` makes for it. The tests are behind the
// build tag kube: they take a cluster over, and they fail where there is none.
//
//	KUBECONFIG            the cluster; its user must be an administrator
//	E2E_RENDER            the program that `make render` builds
//	E2E_HELM              helm itself, which `make helm` builds
//	E2E_MANIFESTS_DIR     the folder with the chart and the kustomize folders
//	E2E_VALUES            values of the chart that the cluster needs, name=value
//	E2E_MANIFESTS         rendered manifests to install instead, a file of YAML
//	E2E_APP_IMAGE         the image with the tests' application
//	E2E_KEEP              leave the mesh and the tests' namespaces where they are
//	E2E_IDLE_PODS         pods of TestIdlePods, all on one node (80)
//	E2E_CYCLES            times that TestLabelUnderLoad goes into the mesh and out
//
// What no API can do is done by commands that depend on the cluster:
//
//	E2E_RESTART_KUBELET   is called with a node, and restarts its kubelet
//	E2E_APISERVER         is called with stop or start
//	E2E_REBOOT            is called with a node: all that ran there is dead, what
//	                      lay in /run is gone, and kubelet begins anew
//
// A test whose command is not set fails, unless E2E_PARTIAL=yes says that it may be
// left out; those that were are named at the end.
//
// The mesh is installed once and stays installed from test to test; a test that takes
// it away brings it back. Whoever reads the output finds the figures in lines that
// begin with "measure:".
//
// Kind: test.
package kube
