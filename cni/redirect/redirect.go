package redirect

import (
	"errors"
	"net/netip"

	"github.com/warren-mesh/warren/internal/netns"
)

// ErrNoIPTables says that no usable iptables is on the PATH.
var ErrNoIPTables = errors.New("no iptables found")

var errNotBuilt = errors.New("redirect: not built yet")

// Config says what to redirect in one pod.
type Config struct {
	IPv4, IPv6         bool       // program this family
	DNS                bool       // capture DNS (port 53)
	BypassInbound      bool       // leave plaintext inbound alone
	VirtualInterfaces  []string   // interfaces whose forwarded TCP counts as outbound
	ProbeIP4, ProbeIP6 netip.Addr // source of kubelet's probes, left alone
}

// Defaults returns the configuration of an ordinary pod: both families,
// everything captured but DNS.
func Defaults() Config {
	return Config{IPv4: true, IPv6: true, ProbeIP4: ProbeIP4(), ProbeIP6: ProbeIP6()}
}

// Backend makes the rules of a pod's namespace match a Config. The namespace
// stays the caller's.
type Backend interface {
	Name() string // "iptables-nft", "iptables-legacy"
	// Apply makes the rules those of c, whatever of ours was there. Each table
	// changes atomically.
	Apply(ns *netns.NS, c Config) error
	// Verify returns what differs, in words; empty when nothing does.
	Verify(ns *netns.NS, c Config) (diffs []string, err error)
	// Remove takes everything of ours away; nothing there is success.
	Remove(ns *netns.NS) error
	// StopCapture removes the nat rules only, so that new connections are not
	// captured any more and those that are keep working.
	StopCapture(ns *netns.NS) error
	// Foreign names what another mesh has programmed there.
	Foreign(ns *netns.NS) ([]string, error)
}

// Detect picks the iptables variant that the host's own rules are in.
func Detect() (Backend, error) { return nil, errNotBuilt }

// Named returns the backend of that name, as chosen elsewhere.
func Named(name string) (Backend, error) { return nil, errNotBuilt }
