package route

import (
	"errors"
	"net/netip"

	"github.com/warren-mesh/warren/xds/workload"
)

var errStub = errors.New("route: not built yet")

// Outbound decides about a connection that an application of self made.
func Outbound(v *workload.View, self *workload.Workload, opts Options, client, origDst netip.AddrPort) (Decision, error) {
	return Decision{}, errStub
}

// Inbound decides about a CONNECT that arrived at a pod: connDst is where its TLS
// connection arrived, authority what it asks for.
func Inbound(v *workload.View, self *workload.Workload, connDst netip.AddrPort, authority string) (InboundDecision, *Refusal) {
	return InboundDecision{}, &Refusal{Status: 503, Err: errStub}
}

// IllegalPort reports whether a port is one of the proxy's own in each pod.
func IllegalPort(port uint16) bool {
	switch port {
	case 15001, 15006, 15008:
		return true
	default:
		return false
	}
}

// Recursive reports whether an application's connection would come back to the
// proxy: a loopback address and one of its ports. Such a connection is dropped.
func Recursive(origDst netip.AddrPort) bool {
	return origDst.Addr().Unmap().IsLoopback() && IllegalPort(origDst.Port())
}

// Authority is the target of a CONNECT: an address or a hostname, and a port.
type Authority struct {
	Addr netip.Addr // unmapped; invalid when Host is set
	Host string     // lower case
	Port uint16
}

// ParseAuthority reads ip:port, [ip6]:port or hostname:port.
func ParseAuthority(s string) (Authority, error) { return Authority{}, errStub }

// Baggage is what a proxy tells the other side about a workload, for telemetry
// only. Empty fields are left out.
type Baggage struct {
	Cluster      string
	Namespace    string
	WorkloadType string // deployment, cronjob, pod or job
	WorkloadName string
	Service      string // canonical name
	Version      string // canonical revision
	Region       string
	Zone         string
}

// BaggageOf describes a workload.
func BaggageOf(w *workload.Workload) Baggage { return Baggage{} }

// String is the header's value; empty if all fields are.
func (b Baggage) String() string { return "" }

// ParseBaggage reads all lines of a baggage header; what it does not understand
// is left out.
func ParseBaggage(lines []string) Baggage { return Baggage{} }

// Forwarded is the value of the forwarded header: the client's address and, if
// not empty, the hostname of the service that it addressed.
func Forwarded(client netip.AddrPort, host string) string { return "" }

// ParseForwarded returns the host of a forwarded header, or an empty string.
func ParseForwarded(lines []string) (host string) { return "" }

// Traceparent is the W3C trace context of one connection.
type Traceparent struct {
	TraceID [16]byte
	SpanID  [8]byte
	Flags   byte
}

// String is the header's value.
func (t Traceparent) String() string { return "" }

// ParseTraceparent reads the header's value.
func ParseTraceparent(s string) (Traceparent, error) { return Traceparent{}, errStub }
