// Package spire tests the sources of certificates against a real SPIRE server and agent, given by path in
// SPIRE_SERVER_BIN and SPIRE_AGENT_BIN, on this machine: join-token attestation, Unix sockets, the unix workload attestor,
// pods that are processes in control groups as a kubelet makes them. The tests have the build tag spire, need root, and
// are no part of make test: make e2e-spire runs them.
//
// Kind: test.
package spire
