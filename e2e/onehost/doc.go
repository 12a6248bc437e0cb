// Package onehost runs a whole Warren mesh on one Linux machine, without
// Kubernetes: real binaries, real CNI, real rules, real TLS.
//
// A [Mesh] is a fabric (a bridge in a namespace of its own), one control plane
// on it and any number of nodes. A node is a network namespace with its own
// node agent and proxy process. A pod is created as a container runtime does
// it: a fresh namespace, then libcni runs the node's conflist in it (bridge,
// host-local, warren-cni). The package plays the API server (a folder of YAML),
// the kubelet (the Pod before ADD, status.podIPs after it) and the
// applications (sockets opened inside pods).
//
// Kind: test support. The tests beside it and the program behind `make demo`
// (e2e/demo) use it; no program of Warren does.
package onehost
