package nstest

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/warren-mesh/warren/internal/netns"
)

var errTODO = errors.New("nstest: not built yet")

// Main is a TestMain's whole body.
func Main(m *testing.M) {}

// Require skips or fails.
func Require(t testing.TB) {}

// LeakCheck checks fds, goroutines and threads when the test ends.
func LeakCheck(t testing.TB) {}

// Net is a bridge in a namespace of its own, with nodes on it.
type Net struct{ NS *netns.NS }

// New makes a Net.
func New(t testing.TB) *Net { return nil }

// Node adds a node.
func (n *Net) Node(name string) *Node { return nil }

// Node is a namespace on the bridge that routes to its pods.
type Node struct {
	Name     string
	NS       *netns.NS
	Path     string // a file that the namespace is bound to
	IP4, IP6 netip.Addr
}

// Pod adds a pod.
func (n *Node) Pod(name string, opts ...PodOption) *Pod { return nil }

// PodOption changes how a pod is made.
type PodOption func(*podConfig)

type podConfig struct{ no4, no6 bool }

// NoIPv4 makes a pod without IPv4 addresses.
func NoIPv4() PodOption { return func(c *podConfig) { c.no4 = true } }

// NoIPv6 makes a pod with IPv6 disabled.
func NoIPv6() PodOption { return func(c *podConfig) { c.no6 = true } }

// Pod is a namespace with eth0 routed to its node.
type Pod struct {
	Name     string
	NS       *netns.NS
	Path     string // a file that the namespace is bound to
	IP4, IP6 netip.Addr
}

// NewNS makes an empty namespace with loopback up.
func NewNS(t testing.TB, name string) (ns *netns.NS, path string) { return nil, "" }
