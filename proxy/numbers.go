package proxy

import "time"

// Ports inside every pod. They are those of ztunnel, which redirection rules
// and peers rely on.
const (
	OutboundPort  = 15001
	PlaintextPort = 15006
	HBONEPort     = 15008
	DNSPort       = 15053 // on loopback
	SOCKS5Port    = 15080 // on loopback, when asked for
)

// Ports in the proxy's own namespace.
const (
	AdminPort = 15000
	StatsPort = 15020
	ReadyPort = 15021
)

// Bounds. A guard and what belongs to it costs a few KiB, so the node's bound
// is about memory, and the pod's keeps one pod from using up the node's.
const (
	maxConnections    = 1 << 19
	maxPodConnections = 1 << 17
	maxPods           = 4096
	// maxTunnels bounds what has been accepted on 15008 in one pod.
	maxTunnels = 1 << 14
)

const (
	// localWait is how long a connection to a pod waits for the control plane to
	// know it, and who may call it.
	localWait = 5 * time.Second
	// refreshWait is how long a connection waits to be told of endpoints that may have
	// come to a service that has none left.
	refreshWait = time.Second
	// maxPeerAsks names of peers' choice are asked of the control plane for a pod within
	// this time.
	maxPeerAsks    = 512
	peerAsksWithin = time.Minute
	// retryPods is how often pods whose listeners could not be opened are tried
	// again.
	retryPods = 5 * time.Second
	// socksPatience is for each part of what a client of SOCKS says, is told, and
	// for the name that it says.
	socksPatience = 10 * time.Second
	// otherFamilyWait is for the addresses of the second family, where those of the first
	// are known.
	otherFamilyWait = time.Second
	// retryUnix is the same for the administration socket.
	retryUnix = time.Second
)
