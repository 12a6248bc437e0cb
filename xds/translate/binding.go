package translate

import (
	"fmt"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/warren-mesh/warren/xds/workload"
)

// Labels and annotations that bind something to a waypoint.
const (
	labelUseWaypoint      = "istio.io/use-waypoint"
	labelUseNamespace     = "istio.io/use-waypoint-namespace"
	labelCanary           = "istio.io/use-waypoint-canary"
	labelCanaryNamespace  = "istio.io/use-waypoint-canary-namespace"
	annotationCanary      = "istio.io/use-waypoint-canary-weight"
	labelIngressWaypoint  = "istio.io/ingress-use-waypoint"
	labelManaged          = "gateway.istio.io/managed"
	managedWaypoint       = "istio.io-mesh-controller"
	managedEastWest       = "istio.io-eastwest-controller"
	noWaypoint            = "none"
	maxCanaryWeight       = 100
	directly              = ": traffic goes without it"
	onlyPrimary           = ": all traffic goes through the other waypoint"
	ingressLabelIsNotBool = "%q is neither true nor false: taken for false"
)

// bound is a binding as labels express it: on the object, or for all in its namespace.
type bound struct {
	gateway string             // namespace/name
	by      *metav1.ObjectMeta // of the object or the namespace
	own     bool               // by is the object
	report  reporter
}

// use is the binding of an object, nil for one that is bound to nothing.
func (b *builder) use(kind string, o *metav1.ObjectMeta) *bound {
	if managed := o.Labels[labelManaged]; managed == managedWaypoint || managed == managedEastWest {
		return nil // a waypoint has none itself
	}
	by, own := o, true
	name, ok := o.Labels[labelUseWaypoint]
	if ns := b.namespaces[o.Namespace]; !ok && ns != nil {
		name, ok = ns.Labels[labelUseWaypoint]
		by, own = &ns.ObjectMeta, false
	}
	if !ok || name == noWaypoint {
		return nil
	}
	use := &bound{by: by, own: own, report: b.reporter(kind, o.Namespace, o.Name)}
	if !own {
		use.report = b.oncePer(by.Name)
	}
	use.gateway = objectName(orElse(use.by.Labels[labelUseNamespace], o.Namespace), name)
	return use
}

// oncePer reports a problem with a namespace's binding for the first object that has it.
func (b *builder) oncePer(namespace string) reporter {
	return func(field, reason string) {
		if key := namespace + " " + field + reason; !b.waypoints.told[key] {
			b.waypoints.told[key] = true
			b.reporter("Namespace", "", namespace)(field, reason)
		}
	}
}

// attach finds the waypoint of a binding, or says why traffic goes without it. What is
// bound only for its namespace's sake need not be what the waypoint is for.
func (b *builder) attach(use *bound, namespace, purpose, label, consequence string) *waypoint {
	w := b.waypoint(use.gateway)
	switch {
	case w == nil:
		use.report(labelField(label), fmt.Sprintf("there is no Gateway %s%s", use.gateway, consequence))
	case w.address == nil:
		use.report(labelField(label), fmt.Sprintf("Gateway %s has no address yet, see its status%s", use.gateway, consequence))
	case !w.admits(namespace):
		use.report(labelField(label), fmt.Sprintf("Gateway %s does not admit namespace %s, see allowedRoutes of its listener%s", use.gateway, namespace, consequence))
	case !w.serves(purpose) && use.own:
		use.report(labelField(label), fmt.Sprintf("Gateway %s is for %s, see its label %s%s", use.gateway, w.purpose, labelWaypointFor, consequence))
	case w.serves(purpose):
		return w
	}
	return nil
}

// bindService sets what waypoints do for a service.
func (b *builder) bindService(s *workload.Service, kind string, o *metav1.ObjectMeta) {
	use := b.use(kind, o)
	if use == nil {
		return
	}
	w := b.attach(use, o.Namespace, forService, labelUseWaypoint, directly)
	if w == nil {
		return
	}
	if s.Visibility == workload.NamespacePrivate && w.namespace != s.Namespace {
		use.report(labelField(labelUseWaypoint), fmt.Sprintf("Gateway %s is in another namespace, to which the service is not exported%s", use.gateway, directly))
		return
	}
	s.Waypoint = w.address
	s.WeightedWaypoints = b.weighted(use, w, o.Namespace)
	s.IngressUseWaypoint = b.ingressUses(kind, o)
}

// weighted shares a service's traffic between its waypoint and another one, as the object
// or namespace that binds it says. Nil leaves all to the waypoint.
func (b *builder) weighted(use *bound, primary *waypoint, namespace string) []workload.WeightedWaypoint {
	name := use.by.Labels[labelCanary]
	if name == "" || name == noWaypoint {
		return nil
	}
	canary := *use
	canary.own = true // it must serve, whoever names it
	canary.gateway = objectName(orElse(use.by.Labels[labelCanaryNamespace], namespace), name)
	if canary.gateway == primary.name {
		use.report(labelField(labelCanary), fmt.Sprintf("Gateway %s is the waypoint itself%s", primary.name, onlyPrimary))
		return nil
	}
	weight := 0
	if text, ok := use.by.Annotations[annotationCanary]; ok {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || n > maxCanaryWeight {
			use.report(annotationField(annotationCanary), fmt.Sprintf("%q is not a number from 0 to 100%s", text, onlyPrimary))
			return nil
		}
		weight = n
	}
	other := b.attach(&canary, namespace, forService, labelCanary, onlyPrimary)
	if other == nil {
		return nil
	}
	return []workload.WeightedWaypoint{
		{Destination: *primary.address, Weight: uint32(maxCanaryWeight - weight)},
		{Destination: *other.address, Weight: uint32(weight)},
	}
}

// ingressUses says whether gateways at the edge send a service's traffic through its
// waypoint, too.
func (b *builder) ingressUses(kind string, o *metav1.ObjectMeta) bool {
	report := b.reporter(kind, o.Namespace, o.Name)
	value, ok := o.Labels[labelIngressWaypoint]
	if ns := b.namespaces[o.Namespace]; !ok && ns != nil {
		value, ok = ns.Labels[labelIngressWaypoint]
		report = b.oncePer(ns.Name)
	}
	if !ok {
		return false
	}
	uses, err := strconv.ParseBool(value)
	if err != nil {
		report(labelField(labelIngressWaypoint), fmt.Sprintf(ingressLabelIsNotBool, value))
	}
	return uses
}

// workloadWaypoint is the waypoint of what is reached by its own address. A waypoint's own
// pods have none, and may be reached in their own way.
func (b *builder) workloadWaypoint(kind string, o *metav1.ObjectMeta) (*workload.GatewayAddress, *workload.ApplicationTunnel) {
	if name := o.Labels[labelGatewayName]; name != "" {
		if w := b.waypoint(objectName(o.Namespace, name)); w != nil {
			return nil, w.tunnel
		}
	}
	use := b.use(kind, o)
	if use == nil {
		return nil, nil
	}
	if w := b.attach(use, o.Namespace, forWorkload, labelUseWaypoint, directly); w != nil {
		return w.address, nil
	}
	return nil, nil
}
