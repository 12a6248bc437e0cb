package event

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/warren-mesh/warren/internal/netns"
)

// Version is the protocol version that this package's Client speaks. The agent
// serves it and the one before.
const Version = 1

const (
	// SocketName is the name of the agent's socket in its run directory.
	SocketName = "cni.sock"

	// AgentTimeout bounds the agent's work before each of its messages.
	AgentTimeout = 4500 * time.Millisecond
	// PluginTimeout is when the plugin gives up a conversation.
	PluginTimeout = 10 * time.Second
)

// Key names an attachment: one interface of one sandbox.
type Key struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// Add is what the plugin knows about a new pod.
type Add struct {
	Version      int            `json:"-"` // of the plugin's protocol; set by Serve
	Key          Key            `json:"key"`
	Network      string         `json:"network"` // name of the conflist
	PodName      string         `json:"podName"`
	PodNamespace string         `json:"podNamespace"`
	PodUID       string         `json:"podUID,omitempty"` // empty: the runtime did not say
	IPs          []netip.Prefix `json:"ips,omitempty"`    // as in prevResult, unmapped
	Netns        string         `json:"netns"`            // path in the runtime's mount namespace; a hint, the descriptor counts
}

// The words of the conversation.
const (
	Leave      = "leave"    // Answer.Action: it is none of ours
	RedirectSo = "redirect" // Answer.Action: as Answer.Redirect says

	ByPlugin = "plugin" // how: the plugin has programmed it
	ByAgent  = "agent"  // how: the plugin cannot, the agent is to do it
)

// Answer is the agent's decision about a pod.
type Answer struct {
	Action   string    `json:"action"`             // Leave or RedirectSo
	Redirect *Redirect `json:"redirect,omitempty"` // with RedirectSo
	Reason   string    `json:"reason,omitempty"`   // for the log
}

// Redirect says what to program in the pod's namespace.
type Redirect struct {
	IPv6              bool       `json:"ipv6"` // IPv4 is always programmed
	DNS               bool       `json:"dns"`
	BypassInbound     bool       `json:"bypassInbound"`
	VirtualInterfaces []string   `json:"virtualInterfaces,omitempty"`
	ProbeIP4          netip.Addr `json:"probeIP4"`
	ProbeIP6          netip.Addr `json:"probeIP6"`
	// Backend is the redirect.Backend to use, by name. A plugin that does not
	// have it leaves the programming to the agent.
	Backend string `json:"backend"`
}

// Handler is the agent's side. Calls come concurrently. Their contexts end when
// the time for an answer is over, the plugin is gone or Serve's context ends;
// the cause says which. An error that is (or wraps) an [*Error] goes to the
// plugin as it is, a context's as retryable, any other as not retryable.
type Handler interface {
	// Decide says what to do with a new pod. It owns ns from then on, also when
	// it fails. With RedirectSo a session is returned, on which Serve calls
	// Programmed or Abort; with Leave it is nil. A second Add of the same key
	// is a retry or a repetition, not an error.
	Decide(ctx context.Context, add Add, ns *netns.NS) (Session, Answer, error)
	// Del ends an attachment. An unknown one is no error; podUID may be empty.
	Del(ctx context.Context, key Key, podUID string) error
	// Check says what the attachment must look like, or what is wrong with it.
	// The plugin verifies the rules against it. Unknown attachments of pods
	// that are none of ours are Leave.
	Check(ctx context.Context, key Key) (Answer, error)
	// GC ends all attachments of the network (Add.Network) but the valid ones.
	GC(ctx context.Context, network string, valid []Key) error
	// Status fails when the agent could not even decide about a pod.
	Status(ctx context.Context) error
}

// Session is an ADD between the answer and its end.
type Session interface {
	// Programmed says who has programmed the redirection (ByPlugin), or that the
	// agent is to do it (ByAgent). It returns when the pod is served. If it fails
	// it has undone the agent's part, and Abort is not called.
	Programmed(ctx context.Context, how string) error
	// Abort undoes the agent's part: the plugin failed or is gone. It comes at
	// most once, instead of Programmed or after one that succeeded, if the
	// plugin did not live to hear that.
	Abort(reason error)
}

// Error is a refusal that crosses the wire.
type Error struct {
	Retryable bool   `json:"retryable"`
	Msg       string `json:"msg"`               // what went wrong
	Details   string `json:"details,omitempty"` // what to do about it
}

// Error returns the message and the details.
func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + "; " + e.Details
}

var (
	// ErrAway means that no decision of the agent could be had: it is not
	// running, hangs, or went away before it answered. Nothing has been done.
	ErrAway = errors.New("the node agent is away")
	// ErrLost means that the agent went away, or the time was over, after its
	// decision. What the plugin did is for the plugin to undo.
	ErrLost = errors.New("the node agent went away before it was done")
)
