package workload

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// NetworkAddr is an address within a network; the same IP may exist in several
// networks. An empty network is the mesh's default one.
type NetworkAddr struct {
	Network string
	Addr    netip.Addr
}

// String is the name that xDS uses as an alias: "network/ip", "/ip" in the
// default network.
func (a NetworkAddr) String() string { return a.Network + "/" + a.Addr.String() }

// NetworkPrefix is a range of addresses within a network.
type NetworkPrefix struct {
	Network string
	Prefix  netip.Prefix // masked
}

// String is "network/ip/bits".
func (p NetworkPrefix) String() string { return p.Network + "/" + p.Prefix.String() }

// NamespacedHostname is a service's key. Hostnames are lower case.
type NamespacedHostname struct {
	Namespace string
	Hostname  string
}

// String is the xDS resource name "namespace/hostname".
func (n NamespacedHostname) String() string { return n.Namespace + "/" + n.Hostname }

// ParseNamespacedHostname reads "namespace/hostname". Neither part may be empty
// and the hostname holds no slash.
func ParseNamespacedHostname(s string) (NamespacedHostname, error) {
	h, ok := CutNamespacedHostname(s)
	if !ok {
		return NamespacedHostname{}, fmt.Errorf("workload: %q is not namespace/hostname", s)
	}
	return h, nil
}

// CutNamespacedHostname is ParseNamespacedHostname for who expects other names, too.
func CutNamespacedHostname(s string) (h NamespacedHostname, ok bool) {
	ns, host, ok := strings.Cut(s, "/")
	if !ok || ns == "" || host == "" || strings.Contains(host, "/") {
		return NamespacedHostname{}, false
	}
	return NamespacedHostname{Namespace: ns, Hostname: strings.ToLower(host)}, true
}

// ParseNetworkAddr reads "network/ip"; the network may be empty.
func ParseNetworkAddr(s string) (NetworkAddr, error) {
	network, ip, ok := strings.Cut(s, "/")
	if !ok {
		return NetworkAddr{}, fmt.Errorf("workload: %q is not network/ip", s)
	}
	a, err := netip.ParseAddr(ip)
	if err != nil || a.Zone() != "" {
		return NetworkAddr{}, fmt.Errorf("workload: %q is not network/ip", s)
	}
	return NetworkAddr{Network: network, Addr: a.Unmap()}, nil
}

// GatewayAddress is where a waypoint or a network's gateway is reached: by
// hostname or by address. Exactly one of the two is set.
type GatewayAddress struct {
	Hostname  NamespacedHostname
	Address   NetworkAddr
	HBONEPort uint16 // hbone_mtls_port
}

// String is the destination, "namespace/hostname" or "network/ip".
func (g *GatewayAddress) String() string {
	if g.Address.Addr.IsValid() {
		return g.Address.String()
	}
	return g.Hostname.String()
}

// parseGateway reads the destination of a dump or a static file: "network/ip",
// else "namespace/hostname".
func parseGateway(destination string, port uint16) (*GatewayAddress, error) {
	if a, err := ParseNetworkAddr(destination); err == nil {
		return &GatewayAddress{Address: a, HBONEPort: port}, nil
	}
	h, err := ParseNamespacedHostname(destination)
	if err != nil {
		return nil, fmt.Errorf("gateway %q is neither network/ip nor namespace/hostname", destination)
	}
	return &GatewayAddress{Hostname: h, HBONEPort: port}, nil
}

var errAddrLength = errors.New("an address has 4 or 16 bytes")

// addrFromBytes reads an address in network byte order.
func addrFromBytes(b []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.Addr{}, fmt.Errorf("%w, not %d", errAddrLength, len(b))
	}
	return a.Unmap(), nil
}
