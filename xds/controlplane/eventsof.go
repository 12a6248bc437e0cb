package controlplane

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/warren-mesh/warren/xds/kube"
	"github.com/warren-mesh/warren/xds/translate"
)

// involved is an object that something is wrong with.
type involved struct{ kind, namespace, name string }

// eventsOf are the Events that there should be, one for an object: with all that is wrong
// with it. An Event's name says what it says, so that the same is one Event whichever
// replica writes it.
func eventsOf(objects translate.Objects, problems []translate.Problem, unread []kube.Problem) map[string]*corev1.Event {
	reasons := make(map[involved][]string)
	whom := make(map[involved]corev1.ObjectReference)
	for _, p := range unread {
		if p.Name == "" {
			continue // of a whole kind nobody's object tells
		}
		key := involved{p.Kind, p.Namespace, p.Name}
		reasons[key] = append(reasons[key], p.Reason)
		whom[key] = corev1.ObjectReference{APIVersion: p.APIVersion, Kind: p.Kind, Namespace: p.Namespace, Name: p.Name, UID: p.UID}
	}
	for _, p := range problems {
		key := involved{p.Kind, p.Namespace, p.Name}
		reasons[key] = append(reasons[key], strings.TrimPrefix(p.Field+": "+p.Reason, ": "))
	}
	references(objects, reasons, whom)
	out := make(map[string]*corev1.Event, len(whom))
	for key, object := range whom {
		event := eventOn(object, joined(reasons[key]))
		out[event.Namespace+"/"+event.Name] = event
	}
	return out
}

// references finds the objects that there are reasons for.
func references(o translate.Objects, reasons map[involved][]string, into map[involved]corev1.ObjectReference) {
	kinds := make(map[string]bool)
	for key := range reasons {
		kinds[key.kind] = true
	}
	find(o.Pods, "Pod", corev1.SchemeGroupVersion.String(), kinds, reasons, into)
	find(o.Services, "Service", corev1.SchemeGroupVersion.String(), kinds, reasons, into)
	find(o.Namespaces, "Namespace", corev1.SchemeGroupVersion.String(), kinds, reasons, into)
	find(o.EndpointSlices, "EndpointSlice", discoveryv1.SchemeGroupVersion.String(), kinds, reasons, into)
	find(o.AuthorizationPolicies, policyKind, "", kinds, reasons, into)
	find(o.PeerAuthentications, "PeerAuthentication", "", kinds, reasons, into)
	find(o.ServiceEntries, "ServiceEntry", "", kinds, reasons, into)
	find(o.WorkloadEntries, "WorkloadEntry", "", kinds, reasons, into)
	find(o.Gateways, "Gateway", "", kinds, reasons, into)
	find(o.GatewayClasses, "GatewayClass", "", kinds, reasons, into)
}

// find looks for objects of one kind. Those of an API server's own kinds do not say which
// version they are of.
func find[T interface {
	metav1.Object
	runtime.Object
}](list []T, kind, version string, kinds map[string]bool, reasons map[involved][]string, into map[involved]corev1.ObjectReference) {
	if !kinds[kind] { // most are fine, as a rule
		return
	}
	for _, o := range list {
		key := involved{kind, o.GetNamespace(), o.GetName()}
		if _, ok := reasons[key]; ok {
			v := cmp.Or(version, o.GetObjectKind().GroupVersionKind().GroupVersion().String())
			into[key] = corev1.ObjectReference{APIVersion: v, Kind: kind, Namespace: key.namespace, Name: key.name, UID: o.GetUID()}
		}
	}
}

// eventOn is an Event on an object. That of one which is in no namespace is in default.
func eventOn(object corev1.ObjectReference, text string) *corev1.Event {
	sum := sha256.Sum256([]byte(object.Kind + "\x00" + string(object.UID) + "\x00" + text))
	return &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: cmp.Or(object.Namespace, metav1.NamespaceDefault),
			Name:      strings.TrimRight(object.Name[:min(len(object.Name), 200)], "-.") + "." + hex.EncodeToString(sum[:8]),
			Labels:    managed(),
		},
		InvolvedObject:      object,
		Type:                corev1.EventTypeWarning,
		Reason:              meshProblem,
		Message:             text,
		Source:              corev1.EventSource{Component: fieldManager},
		ReportingController: fieldManager,
	}
}
