package route

import (
	"errors"
	"net/netip"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/xds/workload"
)

// HBONEPort is where workloads take tunnels.
const HBONEPort = 15008

// Protocol is how a connection is carried.
type Protocol uint8

// Protocols.
const (
	TCP         Protocol = iota // bytes as they are
	HBONE                       // a CONNECT stream within mutual TLS
	DoubleHBONE                 // a tunnel through a network's gateway within a tunnel to it
)

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case HBONE:
		return "HBONE"
	case DoubleHBONE:
		return "DOUBLEHBONE"
	default:
		return "unknown"
	}
}

// Options of a decision.
type Options struct {
	// Network is the node's network (NETWORK): what tunnels through a network's
	// gateway say of where they come from. Destinations are looked up in the
	// client workload's own network.
	Network string
	// Rand returns a number in [0, n); n is above 0. Nil means math/rand/v2.
	Rand func(n uint64) uint64
	// Tried are endpoints of services, and gateways, that this connection has been to
	// already: none of them is chosen again, and nothing that is behind one of them.
	Tried []Endpoint
	// Resting reports endpoints that failed a moment ago: one is chosen when
	// nothing else is left. Nil: there are none.
	Resting func(Endpoint) bool
}

// Decision says what to do with an outbound connection.
type Decision struct {
	Protocol Protocol
	// Dial is where the proxy connects to.
	Dial netip.AddrPort
	// Authority is the target of the CONNECT; zero for TCP.
	Authority Authority
	// Expected are the identities of which the peer must present one. For TCP it
	// is empty. Shared: it must not be changed.
	Expected Identities

	// InnerAuthority and InnerExpected are those of the inner tunnel of
	// DoubleHBONE.
	InnerAuthority Authority
	InnerExpected  []spiffeid.ID

	// Destination is the workload that the connection goes to, which is the waypoint
	// where there is one; nil when unknown.
	Destination *workload.Workload
	// Service is what the client addressed, or nil.
	Service *workload.Service
	// Endpoint is which endpoint of Service was chosen. Where there was no choice it
	// is zero.
	Endpoint Endpoint
	// Gateway is the network's gateway on the way to it; zero where there is none.
	Gateway Endpoint
	// ServiceAddressed: the client used an address of Service. Its hostname then
	// goes into the forwarded header.
	ServiceAddressed bool
	// Waypoint: Dial is a waypoint, which decides about the rest.
	Waypoint bool
	// Hostname is to be resolved for the address to dial, if not empty; Dial, and
	// Authority if it is an address, then lack it. See Resolved.
	Hostname string

	// Reason is why, in words for logs.
	Reason string
}

// Resolved is the decision with the address that Hostname has.
func (d Decision) Resolved(a netip.Addr) Decision {
	d.Dial = netip.AddrPortFrom(a, d.Dial.Port())
	if d.Authority.Port != 0 && d.Authority.Host == "" && !d.Authority.Addr.IsValid() {
		d.Authority.Addr = a
	}
	switch {
	case d.Gateway != (Endpoint{}):
		d.Gateway.Addr = a
	case d.Endpoint != (Endpoint{}):
		d.Endpoint.Addr = a
	}
	d.Hostname = ""
	return d
}

// Attempt is who is asked to take the connection, for Options.Tried: the gateway on
// the way, which may lead to other endpoints as well, else the endpoint. Zero: there
// was no choice, so that there is nobody else to ask.
func (d Decision) Attempt() Endpoint {
	if d.Gateway != (Endpoint{}) {
		return d.Gateway
	}
	return d.Endpoint
}

// Errors of Outbound, wrapped with their particulars.
var (
	ErrNoHealthyUpstream = errors.New("no healthy upstream")
	ErrRecursive         = errors.New("attempted recursive call to ourselves")
	ErrNoRoute           = errors.New("no valid routing destination for workload")
	ErrUnknownWaypoint   = errors.New("unknown waypoint")
	ErrUnknownGateway    = errors.New("unknown network gateway")
)

// InboundDecision is where a tunnelled connection goes.
type InboundDecision struct {
	// Target is the address and final port of the application; it is what
	// policies see as the destination.
	Target netip.AddrPort
	// Service is set when the tunnel asked for a service by hostname.
	Service *workload.Service
	// Authority is what was asked for.
	Authority Authority
	// Proxied: the application expects a PROXY protocol header before the bytes.
	// Told is the destination that it is to name.
	Proxied bool
	Told    netip.AddrPort
}

// Refusal is an answer other than 200 to a CONNECT.
type Refusal struct {
	Status int // 400 or 503
	Err    error
}

func (r *Refusal) Error() string { return r.Err.Error() }

// Unwrap returns the cause.
func (r *Refusal) Unwrap() error { return r.Err }
