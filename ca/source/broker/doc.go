// Package broker gets pods' SVIDs from a SPIFFE Broker API (incubating; SPIRE 1.15.2 and newer): the agent is asked by
// the pod's UID, at its CNI ADD, and attests the pod against its own kubelet.
//
// What one pod's stream brings is used for that pod alone (SPIFFE Broker API §4.2).
//
// Kind: adapter. A Watcher of ca/svid, used by proxy.
package broker
