// Package podproc proves that a process belongs to a pod, and notices when it ends: by pidfd, network namespace and
// control groups, none of which a process can choose for itself.
//
// Kind: bottom. Used by ca/source/delegated, which has SPIRE attest processes, and nodeagent/podns, which finds the
// namespaces of running pods.
package podproc
