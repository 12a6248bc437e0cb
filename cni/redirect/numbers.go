package redirect

import "net/netip"

// What the rules, the proxy and the routing policy agree on. They are Istio's
// numbers, so that either side may be replaced by its counterpart.
const (
	ChainPrerouting = "WARREN_PRERT"
	ChainOutput     = "WARREN_OUTPUT"

	PortOutbound = 15001 // captured outbound TCP
	PortInbound  = 15006 // captured plaintext inbound TCP
	PortHBONE    = 15008 // HBONE; never redirected
	PortDNS      = 15053 // captured DNS, UDP and TCP
	portDNS      = 53

	// MarkProxy is on every socket that the proxy makes in a pod; its traffic
	// is not captured again. MarkConn is put on the connections that such a
	// socket opens towards the application, so that the answers, addressed to
	// the client whose address the proxy borrowed, find their way back to the
	// proxy. Only the bits of MarkMask are used of either; the others are left
	// to others (Kubernetes uses 0x4000 and 0x8000).
	MarkProxy = 0x539
	MarkConn  = 0x111
	MarkMask  = 0xfff

	// RouteTable holds one route, which delivers everything locally;
	// RulePriority sends packets with MarkConn there, before the main table.
	RouteTable   = 100
	RulePriority = 32764

	dnsZone = 1 // conntrack zone that keeps the proxy's DNS flows apart from the application's
)

// ProbeIP4 is the address that kubelet's probes come from once the node agent
// has translated their source. Link-local, so that no network routes it.
func ProbeIP4() netip.Addr { return netip.AddrFrom4([4]byte{169, 254, 7, 127}) }

// ProbeIP6 is ProbeIP4's counterpart.
func ProbeIP6() netip.Addr { return netip.MustParseAddr("fd16:9254:7127:1337:ffff:ffff:ffff:ffff") }
