// Package client keeps a workload.Store in step with a control plane by delta ADS.
//
// Kind: adapter. It owns one gRPC connection and the goroutines of Run. Used by
// the proxy; the control plane at the other end is xds/server's or Istio's.
//
// Both resource types share one stream. Each response is acknowledged once the
// store has it. A resource that cannot be converted is refused by name in a NACK
// and keeps its previous version, while the rest of the response is applied. On
// reconnect the names and versions that the store holds are sent, so that only
// the difference comes back.
package client
