package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/warren-mesh/warren/internal/netns"
)

// ErrNoIPTables is returned (wrapped) where no usable iptables is on the PATH.
var ErrNoIPTables = errors.New("no iptables found on the PATH")

// ErrNoIP6Tables is returned (wrapped) for a pod that has an IPv6 address on a
// host without ip6tables: its IPv6 traffic would go out uncaptured.
var ErrNoIP6Tables = errors.New("the pod has an IPv6 address, but no ip6tables is on the PATH; install it, or turn IPv6 off")

// Config says what to redirect in one pod.
type Config struct {
	IPv4, IPv6        bool     // program this family
	DNS               bool     // capture DNS to other hosts, UDP and TCP
	BypassInbound     bool     // let plaintext inbound reach the application directly
	VirtualInterfaces []string // interfaces of virtual machines or containers inside the pod, whose TCP is outbound

	// ProbeIP4 and ProbeIP6 are the source of kubelet's probes, which go
	// straight to the application. The zero address is no exemption.
	ProbeIP4, ProbeIP6 netip.Addr
}

// Defaults returns the configuration of an ordinary pod: both families,
// all TCP captured, probes let through.
func Defaults() Config {
	return Config{IPv4: true, IPv6: true, ProbeIP4: ProbeIP4(), ProbeIP6: ProbeIP6()}
}

// Validate returns everything that is wrong with c. Interface names come from
// the pod's annotations and end up in a rule, so they must be plain names.
func (c Config) Validate() error {
	var err error
	if !c.IPv4 && !c.IPv6 {
		err = errors.Join(err, errors.New("redirect: neither IPv4 nor IPv6 is to be redirected"))
	}
	if c.ProbeIP4.IsValid() && !c.ProbeIP4.Is4() {
		err = errors.Join(err, fmt.Errorf("redirect: probe address %s is not IPv4", c.ProbeIP4))
	}
	if c.ProbeIP6.IsValid() && (!c.ProbeIP6.Is6() || c.ProbeIP6.Zone() != "") {
		err = errors.Join(err, fmt.Errorf("redirect: probe address %s is not a plain IPv6 address", c.ProbeIP6))
	}
	for _, name := range c.VirtualInterfaces {
		if !validInterface(name) {
			err = errors.Join(err, fmt.Errorf("redirect: virtual interface %q: want 1 to 15 letters, digits, '.', '_' or '-', not beginning with '-'", name))
		}
	}
	return err
}

// validInterface accepts less than the kernel does: no name that iptables or
// its input format would read as something else.
func validInterface(name string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
	return name != "" && len(name) <= 15 && name[0] != '-' && strings.Trim(name, letters) == ""
}

// Backend makes the state of a pod's namespace match a Config. It is safe for
// use by several goroutines, also on one namespace. The namespace stays the
// caller's. Every call gives up after OpTimeout, and returns at most a second
// later (programs are killed then).
type Backend interface {
	// Name says which backend it is, for logs and for Named.
	Name() string
	// Apply makes the rules those of c, whatever of ours was there before. Each
	// table changes at once or not at all. After an error some may have
	// changed: Remove undoes them.
	Apply(ns *netns.NS, c Config) error
	// Verify says in words what differs from c, in our chains, the jumps to
	// them and the routes, order included; nothing when nothing does.
	Verify(ns *netns.NS, c Config) (diffs []string, err error)
	// Remove leaves the namespace as it was before Apply, conntrack's memory of
	// what was captured included: connections that still are break. What is not
	// there is not an error. Beside what Foreign names only the rules go.
	Remove(ns *netns.NS) error
	// StopCapture removes what captures and no more: new connections are no
	// longer captured, those that are go on working.
	StopCapture(ns *netns.NS) error
	// Foreign names the chains and nftables tables that another mesh's agent has
	// put there, such as "ip nat ISTIO_OUTPUT", whatever it made them with. A pod
	// that has any must not be given ours too, unless by TakeOver.
	Foreign(ns *netns.NS) ([]string, error)
}
