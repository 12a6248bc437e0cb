// Package event is the protocol between the CNI plugin and the node agent of
// one node, and the files by which the two speak when the agent is away.
//
// The plugin connects to the agent's Unix socket of type SOCK_SEQPACKET and
// holds one conversation: one request and what belongs to it, then it closes.
// One packet is one JSON object, at most 16 KiB, with "version", "kind" and the
// body of that kind. An ADD goes
//
//	plugin → agent   add         who, and the netns as a descriptor (SCM_RIGHTS,
//	                             this packet only, exactly one)
//	agent → plugin   answer      leave: the conversation is over, or redirect: so
//	plugin → agent   programmed  by the plugin, or: the agent is to do it; or
//	                 failed      the plugin could not, everything is undone
//	agent → plugin   done        the pod is served
//
// and the others
//
//	plugin → agent   del         → done          plugin → agent   status → done
//	plugin → agent   check       → answer        plugin → agent   gc …gc → done
//
// Instead of each of its messages the agent may send error, which ends the
// conversation and means that the agent has undone its part. A gc that needs
// more than one packet says "more" in all but the last.
//
// Each side speaks only in its turn. While the agent works, a packet or the end
// of the connection means that the plugin is gone, and cancels the work: the
// handler's session is aborted. The agent answers each message within
// [AgentTimeout] and ends a conversation before [PluginTimeout], when the plugin
// would. A plugin that ends before it read done is told from one that did
// (closing a Unix socket with unread data resets it); the session is aborted.
//
// The agent serves [Version] and the one before it, and answers in the version
// it was asked in; version, kind and the error body never change. Fields may be
// added within a version, so unknown ones are ignored.
//
// Both ends check every value (see check.go). The agent talks to root only
// (SO_PEERCRED), to a bounded number of peers at a time, and closes every
// descriptor that it did not ask for.
//
// Kind: contract, of the standard library, x/sys and internal/netns only: the
// plugin is run for every pod. [Client] is the plugin's end, [Serve] with a
// [Handler] the agent's; [Fake] is an agent for tests. wire.go turns bytes into
// values and knows no sockets.
package event
