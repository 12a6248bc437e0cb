package enroll

import (
	"errors"
	"strings"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/nodeagent/zds"
)

// notTheHosts refuses the namespace of the host or the agent: the rules would
// capture every process in it.
func (e *Enroller) notTheHosts(ns *netns.NS) error {
	for _, path := range []string{"/proc/self/ns/net", e.hostPath("/proc/1/ns/net")} {
		other, err := netns.Open(path)
		if err != nil {
			continue // not to be seen from here
		}
		id := other.ID()
		other.Close()
		if id == ns.ID() {
			return &event.Error{Msg: "the pod's network namespace is the host's", Details: "a pod must have a network namespace of its own; those on the host's network are never in the mesh"}
		}
	}
	return nil
}

// foreign refuses a namespace that another mesh has programmed.
func foreign(b redirect.Backend, ns *netns.NS) error {
	chains, err := b.Foreign(ns)
	if err != nil {
		return internal(err)
	}
	if len(chains) > 0 {
		return foreignError(chains)
	}
	return nil
}

func foreignError(chains []string) error {
	return &event.Error{
		Msg:     "another mesh has redirected this pod: " + strings.Join(chains[:min(len(chains), 8)], ", "),
		Details: "let only one mesh's CNI plugin handle it",
	}
}

func rivalReason(rival string) string {
	return "Istio's node agent is on this node (" + rival + "), and two meshes must not redirect one pod: remove one of them from this node"
}

// explain makes a refusal of what went wrong in an ADD.
func explain(err error) error {
	var already *event.Error
	var ack *zds.AckError
	switch {
	case errors.As(err, &already):
		return already
	case errors.Is(err, zds.ErrNoProxy):
		return &event.Error{Retryable: true, Msg: err.Error(), Details: "see whether the proxy runs on this node; the pod starts once it does"}
	case errors.As(err, &ack):
		return &event.Error{Retryable: true, Msg: err.Error(), Details: "see the proxy's log"}
	default:
		return &event.Error{Retryable: true, Msg: err.Error(), Details: "see the node agent's log; this is retried"}
	}
}

// internal is for what should not happen, such as a full disk.
func internal(err error) error {
	if err == nil {
		return nil
	}
	return &event.Error{Retryable: true, Msg: err.Error(), Details: "see the node agent's log"}
}
