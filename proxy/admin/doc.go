// Package admin answers over HTTP what the proxy is and does: readiness, the
// dump of its configuration, its certificates, pods and connections, log levels
// and profiles.
//
// The same handler serves loopback (port 15000) and the Unix socket beside the
// node agent's ([ListenUnix]), which the agent's status reads. It has no
// authentication: whoever reaches either is on the node.
//
// Kind: adapter. Used by the proxy root, which gives it a [Source].
package admin
