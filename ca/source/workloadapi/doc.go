// Package workloadapi gets the SVIDs of this process itself from a SPIFFE Workload API (SPIFFE Workload API 1.0): for
// the identity with which the proxy calls the Broker API, and for the one workload of dedicated mode.
//
// Kind: adapter. Source is a Watcher of ca/svid; Self keeps one identity current. Used by proxy.
package workloadapi
