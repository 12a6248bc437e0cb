// Package cni is Warren's CNI plugin: chained behind the one that makes a pod's
// interface, it brings the pod into the mesh, or leaves it alone, before
// anything runs in it.
//
// It holds no credentials and decides nothing itself. ADD asks the node agent
// over a Unix socket (cni/event), programs the redirection that the agent wants
// in the pod's namespace (cni/redirect), waits until the agent says that the
// pod is served, and prints prevResult exactly as it came. What fails is undone,
// and the runtime tries again. While the agent is away it decides by the file
// that the agent left (decideAway). DEL never fails for what is gone, and leaves
// a tombstone for an agent that is away. CHECK compares the rules with what the
// agent wants, GC passes the runtime's list on, STATUS fails only when not even
// a pod outside the mesh could be admitted.
//
// Nothing here blocks for ever: every verb has [event.PluginTimeout], and the
// undoing after it a bound of its own.
//
// Kind: root. cni/cmd/warren-cni is the program. It is run for every pod, so it
// links no client-go, grpc or protobuf; a test holds it to that.
package cni
