// Package controlplane is the ambient part of istiod on its own: it feeds the mesh
// model from a folder of Kubernetes YAML and serves it to proxies over delta ADS, and
// signs their pods' certificates, both on one TLS port.
//
// Kind: root. Its program is xds/cmd/controlplane.
//
//	xds/file ──objects──▶ translate ──snapshot──▶ xds/server ──▶ proxies
//	                          └────placements──▶ ca/server  ──▶ proxies
//
// config.go is what can be set, run.go starts and stops the parts, model.go is the
// arrow in the middle, serving.go the certificate of the TLS port.
package controlplane
