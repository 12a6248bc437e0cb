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
// to reach another host in this one's name. A waypoint is asked for what it guards,
// and the decision is its own.
func Inbound(v *workload.View, self *workload.Workload, connDst netip.AddrPort, authority string) (InboundDecision, *Refusal) {
	a, err := ParseAuthority(authority)
	if err != nil {
		return InboundDecision{}, badRequest("no valid authority pseudo header: %w", err)
	}
	if self == nil {
		return InboundDecision{}, unavailable("%w: the destination's own workload is not known", ErrNoRoute)
	}
	pod := connDst.Addr().Unmap()
	d := InboundDecision{Authority: a}
	port := a.Port
	switch {
	case a.Host != "":
		if d.Service = serviceNamed(v, self, a.Host); d.Service == nil {
			return InboundDecision{}, unavailable("no service or workload for hostname: %s", a.Host)
		}
		port = servicePort(self, d.Service, a.Port)
		if port == 0 && (self.ApplicationTunnel == nil || self.ApplicationTunnel.Port == 0) {
			return InboundDecision{}, unavailable("requested service %s:%d found, but cannot resolve port", a.Host, a.Port)
		}
	case a.Addr != pod && self.ApplicationTunnel == nil && !guards(v, self, a.Addr):
		return InboundDecision{}, badRequest("ip mismatch: %s != %s", pod, a.Addr)
	}
	if IllegalPort(port) {
		return InboundDecision{}, unavailable("%w", ErrRecursive)
	}
	d.Target = netip.AddrPortFrom(pod, port)
	if self.ApplicationTunnel != nil {
		if refusal := d.enterTunnel(self); refusal != nil {
			return InboundDecision{}, refusal
		}
	}
	return d, nil
}

// serviceNamed is the service that a hostname means to a pod: one that it serves,
// else the one that it would reach by that name.
func serviceNamed(v *workload.View, self *workload.Workload, host string) *workload.Service {
	for _, s := range v.ServicesByHost(host) {
		if self.Services.Has(s.Key()) {
			return s
		}
	}
	return v.ServiceByHost(host, self.Namespace)
}

// guards says whether self is a waypoint for what has an address: for a service,
// of whatever weight and whoever may see it, or for a workload.
func guards(v *workload.View, self *workload.Workload, addr netip.Addr) bool {
	q := query{v: v, self: self}
	a := workload.NetworkAddr{Network: self.Network, Addr: addr}
	for s := range v.ServicesAt(a) {
		if q.servesWaypoint(s) {
			return true
		}
	}
	w := v.WorkloadByAddr(a)
	return w != nil && q.isGateway(w.Waypoint)
}

// enterTunnel has the decision go where the application takes tunnelled traffic.
func (d *InboundDecision) enterTunnel(self *workload.Workload) *Refusal {
	t := self.ApplicationTunnel
	if t.Port != 0 {
		d.Target = netip.AddrPortFrom(d.Target.Addr(), t.Port)
	}
	if IllegalPort(d.Target.Port()) {
		return unavailable("%w", ErrRecursive)
	}
	if t.Protocol != workload.TunnelProxy {
		return nil
	}
	d.Proxied = true
	d.Told = netip.AddrPortFrom(d.Authority.Addr, d.Authority.Port)
	if d.Service != nil {
		vip, ok := vipOf(d.Service, self.Network)
		if !ok {
			return unavailable("service %s has no address that the application could be told by PROXY protocol", d.Service.ResourceName())
		}
		d.Told = netip.AddrPortFrom(vip, d.Authority.Port)
	}
	return nil
}

// vipOf is an address of a service, rather of the network and of IPv4.
func vipOf(s *workload.Service, network string) (best netip.Addr, ok bool) {
	rank := -1
	for _, a := range s.VIPs {
		r := 0
		if a.Network == network {
			r += 2
		}
		if a.Addr.Is4() {
			r++
		}
		if r > rank {
			best, rank = a.Addr, r
		}
	}
	return best, rank >= 0
}

// servicePort maps a service's port to the one that a workload listens on, 0 when
// there is none.
func servicePort(w *workload.Workload, s *workload.Service, port uint16) uint16 {
	if t, ok := w.Services.Ports(s.Key()).Target(port); ok && t != 0 {
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

// String is the form that ParseAuthority reads, empty for the zero Authority.
func (a Authority) String() string {
	switch {
	case a.Port == 0:
		return ""
	case a.Host != "":
		return a.Host + ":" + strconv.Itoa(int(a.Port))
	}
	return netip.AddrPortFrom(a.Addr, a.Port).String()
}
