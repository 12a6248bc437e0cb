package translate

import (
	"fmt"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/warren-mesh/warren/xds/workload"
)

// Labels and annotations of Gateways that are waypoints.
const (
	labelWaypointFor       = "istio.io/waypoint-for"
	labelGatewayName       = "gateway.networking.k8s.io/gateway-name"
	annotationInboundBound = "ambient.istio.io/waypoint-inbound-binding"

	protocolHBONE = "HBONE"
	protocolPROXY = "istio.io/PROXY"
	portHBONE     = 15008
)

// What a waypoint is for.
const (
	forService  = "service"
	forWorkload = "workload"
	forAll      = "all"
	forNone     = "none"
)

// waypoint is what a Gateway is to those who are bound to it.
type waypoint struct {
	name      string // namespace/name
	namespace string
	address   *workload.GatewayAddress    // nil while it has none
	purpose   string                      // forService, …
	tunnel    *workload.ApplicationTunnel // how its own pods are reached; nil for the usual way
	admits    func(namespace string) bool
}

func (w *waypoint) serves(purpose string) bool { return w.purpose == purpose || w.purpose == forAll }

// waypointIndex reads a Gateway when somebody is bound to it, since most are none of the
// mesh's business.
type waypointIndex struct {
	gateways map[string]*gatewayv1.Gateway // by namespace/name
	classes  map[string]*gatewayv1.GatewayClass
	read     map[string]*waypoint
	told     map[string]bool // namespaces whose binding was reported
}

func newWaypointIndex(gateways []*gatewayv1.Gateway, classes []*gatewayv1.GatewayClass) *waypointIndex {
	x := &waypointIndex{
		gateways: make(map[string]*gatewayv1.Gateway, len(gateways)), classes: byName(classes),
		read: make(map[string]*waypoint), told: make(map[string]bool),
	}
	for _, g := range gateways {
		x.gateways[objectName(g.Namespace, g.Name)] = g
	}
	return x
}

// waypoint finds one by "namespace/name", nil when there is no such Gateway.
func (b *builder) waypoint(name string) *waypoint {
	x := b.waypoints
	if w, ok := x.read[name]; ok {
		return w
	}
	g := x.gateways[name]
	if g == nil {
		return nil
	}
	class := x.classes[string(g.Spec.GatewayClassName)]
	report := b.reporter("Gateway", g.Namespace, g.Name)
	w := &waypoint{name: name, namespace: g.Namespace, purpose: b.purpose(g, class), tunnel: b.inboundTunnel(g, class)}
	hbone := hboneListener(g)
	port := uint16(portHBONE)
	if hbone != nil && isPort(hbone.Port) {
		port = uint16(hbone.Port)
	}
	w.address = gatewayAddress(g, b.network, port, report)
	w.admits = b.admission(g, boundListener(g, w.tunnel, hbone), report)
	x.read[name] = w
	return w
}

// purpose is what a Gateway, or else its class, says that it is for.
func (b *builder) purpose(g *gatewayv1.Gateway, class *gatewayv1.GatewayClass) string {
	value, report := forService, b.reporter("Gateway", g.Namespace, g.Name)
	if v, ok := g.Labels[labelWaypointFor]; ok {
		value = v
	} else if class != nil && class.Labels[labelWaypointFor] != "" {
		value, report = class.Labels[labelWaypointFor], b.reporter("GatewayClass", "", class.Name)
	}
	switch value {
	case forService, forWorkload, forAll, forNone:
		return value
	}
	report(labelField(labelWaypointFor), fmt.Sprintf("%q is none of service, workload, all and none: nothing goes through it", value))
	return forNone
}

// inboundTunnel reads how a proxy hands connections on to the waypoint's own pods:
// "PROTOCOL" or "PROTOCOL/port".
func (b *builder) inboundTunnel(g *gatewayv1.Gateway, class *gatewayv1.GatewayClass) *workload.ApplicationTunnel {
	report := b.reporter("Gateway", g.Namespace, g.Name)
	value, ok := g.Annotations[annotationInboundBound]
	if !ok && class != nil {
		report = b.reporter("GatewayClass", "", class.Name)
		value, ok = class.Annotations[annotationInboundBound]
	}
	if !ok {
		return nil
	}
	t := &workload.ApplicationTunnel{}
	protocol, portText, hasPort := strings.Cut(value, "/")
	switch protocol {
	case "NONE":
	case "PROXY":
		t.Protocol = workload.TunnelProxy
	default:
		report(annotationField(annotationInboundBound), fmt.Sprintf("%q must be NONE or PROXY, with /port or without: ignored", value))
		return nil
	}
	if hasPort {
		n, err := strconv.ParseUint(portText, 10, 16)
		if err != nil || n == 0 {
			report(annotationField(annotationInboundBound), fmt.Sprintf("%q: %q is not a port: ignored", value, portText))
			return nil
		}
		t.Port = uint16(n)
	}
	return t
}

// hboneListener is where a Gateway takes HBONE: the listener at the usual port before any
// other, nil when there is none.
func hboneListener(g *gatewayv1.Gateway) *gatewayv1.Listener {
	var found *gatewayv1.Listener
	for i := range g.Spec.Listeners {
		l := &g.Spec.Listeners[i]
		if l.Protocol == protocolHBONE && (found == nil || l.Port == portHBONE && found.Port != portHBONE) {
			found = l
		}
	}
	return found
}

// boundListener is the listener whose rules hold for those who are bound to a waypoint.
func boundListener(g *gatewayv1.Gateway, t *workload.ApplicationTunnel, otherwise *gatewayv1.Listener) *gatewayv1.Listener {
	for i := range g.Spec.Listeners {
		l := &g.Spec.Listeners[i]
		if t != nil && (t.Port != 0 && l.Port == gatewayv1.PortNumber(t.Port) || t.Port == 0 && t.Protocol == workload.TunnelProxy && l.Protocol == protocolPROXY) {
			return l
		}
	}
	return otherwise
}

// admission says from which namespaces one may be bound to a Gateway: its own, unless the
// listener says otherwise.
func (b *builder) admission(g *gatewayv1.Gateway, l *gatewayv1.Listener, report reporter) func(string) bool {
	own := func(namespace string) bool { return namespace == g.Namespace }
	if l == nil || l.AllowedRoutes == nil || l.AllowedRoutes.Namespaces == nil || l.AllowedRoutes.Namespaces.From == nil {
		return own
	}
	switch from := *l.AllowedRoutes.Namespaces.From; from {
	case gatewayv1.NamespacesFromAll:
		return func(string) bool { return true }
	case gatewayv1.NamespacesFromSelector:
		s, err := metav1.LabelSelectorAsSelector(l.AllowedRoutes.Namespaces.Selector)
		if err != nil {
			report("spec.listeners["+string(l.Name)+"].allowedRoutes.namespaces.selector", fmt.Sprintf("not understood: %v: only its own namespace may use it", err))
			return own
		}
		return func(namespace string) bool {
			ns := b.namespaces[namespace]
			return ns != nil && s.Matches(labels.Set(ns.Labels))
		}
	case gatewayv1.NamespacesFromNone:
		return func(string) bool { return false }
	}
	return own
}

// gatewayAddress is where a Gateway is reached, nil while its status says nothing of use. A
// hostname goes before an IP: it stays, and stands for all addresses.
func gatewayAddress(g *gatewayv1.Gateway, network string, port uint16, report reporter) *workload.GatewayAddress {
	for _, kind := range []gatewayv1.AddressType{gatewayv1.HostnameAddressType, gatewayv1.IPAddressType} {
		for i, a := range g.Status.Addresses {
			if addressType(a.Type) != kind {
				continue
			}
			out, err := reachedAt(g.Namespace, a.Value, network, kind)
			if err != nil {
				report(fmt.Sprintf("status.addresses[%d]", i), err.Error())
				continue
			}
			out.HBONEPort = port
			return out
		}
	}
	return nil
}

func addressType(t *gatewayv1.AddressType) gatewayv1.AddressType {
	if t == nil {
		return gatewayv1.IPAddressType
	}
	return *t
}

func reachedAt(namespace, value, network string, kind gatewayv1.AddressType) (*workload.GatewayAddress, error) {
	if kind == gatewayv1.HostnameAddressType {
		host, err := hostname(value)
		return &workload.GatewayAddress{Hostname: workload.NamespacedHostname{Namespace: namespace, Hostname: host}}, err
	}
	a, err := address(value)
	return &workload.GatewayAddress{Address: workload.NetworkAddr{Network: network, Addr: a}}, err
}

func labelField(label string) string     { return "metadata.labels[" + label + "]" }
func annotationField(name string) string { return "metadata.annotations[" + name + "]" }
