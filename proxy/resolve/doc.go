// Package resolve finds the addresses of workloads that have a hostname instead:
// a cache in front of the resolvers that the proxy itself was given.
//
// Kind: adapter. An answer is kept as long as its TTL says, within bounds; one
// question at a time is asked about a name and type, however many wait; that a name
// does not exist is remembered, too. When the resolvers fail, an answer that has
// just ended serves on for a while.
package resolve
