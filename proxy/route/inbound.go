package route

import (
	"fmt"
	"net/http"
	"net/netip"
	"strconv"

	"github.com/warren-mesh/warren/xds/workload"
)

// Inbound decides about a CONNECT that arrived at the pod of self: connDst is where
// its TLS connection arrived, authority what it asks for. The connection goes to
// the pod's own address, whatever was asked; a peer chooses the port alone.
//
// An address must be the one that the connection arrived at: a tunnel is no way
// to reach another host in this one's name.
func Inbound(v *workload.View, self *workload.Workload, connDst netip.AddrPort, authority string) (InboundDecision, *Refusal) {
	a, err := ParseAuthority(authority)
	if err != nil {
		return InboundDecision{}, badRequest("no valid authority pseudo header: %w", err)
	}
	if self == nil {
		return InboundDecision{}, unavailable("%w: the destination's own workload is not known", ErrNoRoute)
	}
	if self.ApplicationTunnel != nil {
		return InboundDecision{}, unavailable("%w: workload %s has an application tunnel", ErrUnsupported, self.UID)
	}
	pod := connDst.Addr().Unmap()
	d := InboundDecision{Authority: a}
	port := a.Port
	switch {
	case a.Host != "":
		s := v.ServiceByHost(a.Host, self.Namespace)
		if s == nil {
			return InboundDecision{}, unavailable("no service or workload for hostname: %s", a.Host)
		}
		if port = servicePort(self, s, a.Port); port == 0 {
			return InboundDecision{}, unavailable("requested service %s:%d found, but cannot resolve port", a.Host, a.Port)
		}
		d.Service = s
	case a.Addr != pod:
		return InboundDecision{}, badRequest("ip mismatch: %s != %s", pod, a.Addr)
	}
	if IllegalPort(port) {
		return InboundDecision{}, unavailable("%w", ErrRecursive)
	}
	d.Target = netip.AddrPortFrom(pod, port)
	return d, nil
}

// servicePort maps a service's port to the one that a workload listens on, 0 when
// there is none.
func servicePort(w *workload.Workload, s *workload.Service, port uint16) uint16 {
	if t, ok := w.Services[s.Key()].Target(port); ok && t != 0 {
		return t
	}
	t, _ := s.Ports.Target(port)
	return t
}

func badRequest(format string, args ...any) *Refusal {
	return &Refusal{Status: http.StatusBadRequest, Err: fmt.Errorf(format, args...)}
}

func unavailable(format string, args ...any) *Refusal {
	return &Refusal{Status: http.StatusServiceUnavailable, Err: fmt.Errorf(format, args...)}
}

// IllegalPort reports whether a port is one of the proxy's own in each pod.
func IllegalPort(port uint16) bool {
	switch port {
	case 15001, 15006, HBONEPort:
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
	Port uint16     // never 0
}

// String is the form that ParseAuthority reads.
func (a Authority) String() string {
	if a.Host != "" {
		return a.Host + ":" + strconv.Itoa(int(a.Port))
	}
	return netip.AddrPortFrom(a.Addr, a.Port).String()
}
