// Package delegated gets pods' SVIDs from SPIRE's Delegated Identity API (SPIRE 1.10.2 and newer), for agents that have
// no Broker API: SPIRE attests a process of the pod (Mode PID) or believes what we say of the pod (Mode Selectors).
//
// In PID mode the process is proven to be the pod's before SPIRE is asked, and again when it has answered; when it ends
// the stream is cut, because SPIRE's own streams outlive their process and a PID is used again.
//
// SVIDs and trust bundles come on two streams. One of bundles serves all pods; an SVID counts its trust domain's and those
// that it federates with.
//
// Kind: adapter. A Watcher of ca/svid, used by proxy.
package delegated
