// Package nodeagent is the agent of one node. It answers the CNI plugin, keeps
// the right pods in the mesh, hands their network namespaces to the proxy, and
// says how all of that is.
//
//	runtime ── warren-cni ──▶ cni.sock ─┐                 ┌─▶ rules in the pod (cni/redirect)
//	           istio-cni ─▶ pluginevent.sock ─▶ enroll ───┤
//	objects (folder of YAML) ─▶ podwatch ─┘               └─▶ zds ──▶ proxy
//
//	nodeagent status ──▶ status.sock ──▶ enroll, and the proxy's admin.sock
//
// The whole state is in the state directory (attachments) and in the kernel:
// an agent may be killed at any time, and its successor goes on.
//
// Kind: root. Used by cmd/nodeagent.
package nodeagent
