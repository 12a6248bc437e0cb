// Package zds is the protocol between the node agent and the proxy: which pods
// are in the mesh, each with an open descriptor of its network namespace. It is
// ztunnel's, byte for byte, so that either end may be Istio's.
//
// The proxy connects to the agent's Unix socket of type SOCK_SEQPACKET. One
// packet is one protobuf message without a length prefix; a descriptor travels
// in the packet of the message that it belongs to.
//
//	proxy → agent   ZdsHello{V1}               once, not answered
//	agent → proxy   AddWorkload + netns fd     the snapshot: every pod there is,
//	agent → proxy   KeepWorkload               or, without its fd, its name;
//	agent → proxy   SnapshotSent               pods not named so far are gone
//	agent → proxy   AddWorkload + netns fd     from then on: changes
//	agent → proxy   DelWorkload
//	proxy → agent   Ack                        to each of these, in order
//
// One message is in flight at a time, and acks are matched by order alone. That
// is why an ack that is late, or bytes that nobody asked for, end the
// connection: the next snapshot puts both ends in step again. An Ack may carry
// an error text; both ends read into 1024 bytes, so texts are kept far below.
//
// Several proxies may be connected (a rollout): Adds go to the newest one that
// is through its snapshot, Dels to all. The same Add may come more than once,
// from a snapshot and from a retry.
//
// Kind: contract. [Server] is the node agent's end, [Client] with a [Handler]
// the proxy's; [FakeProxy] is a proxy for tests. wire.go turns bytes into values
// and knows no sockets.
package zds
