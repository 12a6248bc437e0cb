package zds

import (
	"context"
	"time"

	"github.com/warren-mesh/warren/internal/netns"
)

// DefaultPath is where agent and proxy meet on a node.
const DefaultPath = "/var/run/ztunnel/ztunnel.sock"

const (
	// maxPacket is what both ends receive into; a longer packet is an error.
	maxPacket = 1024
	// maxAckText keeps an ack well below maxPacket.
	maxAckText = 768
	// ackTimeout bounds the wait for the hello and for each ack, and each write.
	ackTimeout = 5 * time.Second
	// handleTimeout is what a Handler has for one message, so that its ack
	// leaves in time.
	handleTimeout = 4500 * time.Millisecond
)

// Info is what the proxy knows of a pod before the control plane tells it more.
type Info struct{ Name, Namespace, ServiceAccount string }

// Workload is a pod of this node. UID is the Kubernetes pod UID.
type Workload struct {
	UID  string
	Info Info
	NS   *netns.NS
}

// Handler is the proxy's side of a conversation. Calls come one at a time, in
// the order of the messages. An error becomes the text of the ack and does not
// end the connection. ctx ends shortly before the agent gives up on the ack.
//
// After a new connection (OnState(true, false)) the names of pods come anew, by
// Add and Keep, until Snapshot.
type Handler interface {
	// Add serves a pod. It owns w.NS from then on, also when it fails. A pod
	// already served in the same namespace is left as it is; in another, it
	// takes its place.
	Add(ctx context.Context, w Workload) error
	// Keep says that a pod, if it is served, stays. It comes only before
	// Snapshot.
	Keep(uid string)
	// Del stops serving a pod. An unknown one is no error.
	Del(ctx context.Context, uid string) error
	// Snapshot says that every pod has been named: others are to be stopped.
	Snapshot(ctx context.Context) error
}
