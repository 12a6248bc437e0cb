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

	refused, why string // what came of it; refused is empty for a binding that holds, and for one that does not count
}

// refuse notes why a binding does not hold.
func (u *bound) refuse(label, reason, why, consequence string) {
	u.refused, u.why = reason, why+consequence
	u.report(labelField(label), u.why)
}

// Binding is what became of the binding of a Service or ServiceEntry to a waypoint.
type Binding struct {
	Kind, Namespace, Name string
	Bound                 bool
	Reason                string // a word, as in the conditions that istiod writes
	Message               string
}

const (
	reasonBound        = "WaypointAccepted"
	reasonNotReady     = "WaypointIsNotReady"
	reasonDenied       = "AttachmentDenied"
	reasonOtherTraffic = "UnsupportedTrafficType"
	reasonForbidden    = "CrossNamespaceWaypointForbidden"
)

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
		use.refuse(label, reasonNotReady, fmt.Sprintf("there is no Gateway %s", use.gateway), consequence)
	case w.address == nil:
		use.refuse(label, reasonNotReady, fmt.Sprintf("Gateway %s has no address yet, see its status", use.gateway), consequence)
	case !w.admits(namespace):
		use.refuse(label, reasonDenied, fmt.Sprintf("Gateway %s does not admit namespace %s, see allowedRoutes of its listener", use.gateway, namespace), consequence)
	case !w.serves(purpose) && use.own:
		use.refuse(label, reasonOtherTraffic, fmt.Sprintf("Gateway %s is for %s, see its label %s", use.gateway, w.purpose, labelWaypointFor), consequence)
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
	binding := Binding{Kind: kind, Namespace: o.Namespace, Name: o.Name}
	w := b.attach(use, o.Namespace, forService, labelUseWaypoint, directly)
	if w != nil && s.Visibility == workload.NamespacePrivate && w.namespace != s.Namespace {
		use.refuse(labelUseWaypoint, reasonForbidden, fmt.Sprintf("Gateway %s is in another namespace, to which the service is not exported", use.gateway), directly)
		w = nil
	}
	if w != nil {
		s.Waypoint = w.address
		canary := ""
		s.WeightedWaypoints, canary = b.weighted(use, w, kind, o)
		s.IngressUseWaypoint = b.ingressUses(kind, o)
		binding.Bound, binding.Reason, binding.Message = true, reasonBound, "traffic goes through Gateway "+w.name+canary
		if !s.IngressUseWaypoint {
			binding.Message += "; that of gateways at the edge does not, see label " + labelIngressWaypoint
		}
	} else {
		binding.Reason, binding.Message = use.refused, use.why
	}
	if binding.Reason != "" {
		b.bindings = append(b.bindings, binding)
	}
}

// weighted shares a service's traffic between its waypoint and another one. Nil leaves all
// to the waypoint. What it says of it is empty without a canary, or something to put behind
// the waypoint's name.
func (b *builder) weighted(use *bound, primary *waypoint, kind string, o *metav1.ObjectMeta) (_ []workload.WeightedWaypoint, said string) {
	by := b.says(use, kind, o, has(o.Labels, labelCanary))
	name := by.by.Labels[labelCanary]
	if name == "" || name == noWaypoint {
		return nil, ""
	}
	canary := *by
	canary.own = true // it must serve, whoever names it
	canary.gateway = objectName(orElse(by.by.Labels[labelCanaryNamespace], o.Namespace), name)
	if canary.gateway == primary.name {
		canary.refuse(labelCanary, "", fmt.Sprintf("Gateway %s is the waypoint itself", primary.name), onlyPrimary)
		return nil, "; canary: " + canary.why
	}
	weight := 0
	by = b.says(use, kind, o, has(o.Annotations, annotationCanary))
	if text, ok := by.by.Annotations[annotationCanary]; ok {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || n > maxCanaryWeight {
			why := fmt.Sprintf("%q is not a number from 0 to 100%s", text, onlyPrimary)
			by.report(annotationField(annotationCanary), why)
			return nil, "; canary: " + why
		}
		weight = n
	}
	other := b.attach(&canary, o.Namespace, forService, labelCanary, onlyPrimary)
	if other == nil {
		return nil, "; canary: " + canary.why
	}
	return []workload.WeightedWaypoint{
		{Destination: *primary.address, Weight: uint32(maxCanaryWeight - weight)},
		{Destination: *other.address, Weight: uint32(weight)},
	}, fmt.Sprintf(", %d %% of it through Gateway %s", weight, other.name)
}

// says is who says something of a canary: the object, if it does, which may so overrule a
// canary of its namespace or take part in none; else who binds the object to its waypoint.
func (b *builder) says(use *bound, kind string, o *metav1.ObjectMeta, itself bool) *bound {
	if use.own || !itself {
		return use
	}
	return &bound{by: o, own: true, report: b.reporter(kind, o.Namespace, o.Name)}
}

func has(m map[string]string, key string) bool {
	_, ok := m[key]
	return ok
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
