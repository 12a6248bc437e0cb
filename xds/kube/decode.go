package kube

import (
	"encoding/json"
	"fmt"
	"maps"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	security "istio.io/api/security/v1beta1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/warren-mesh/warren/xds/translate"
)

// addCustom adds the kinds of Istio and of the Gateway API. Their objects are decoded
// one by one, so that one that cannot be does not take a whole list with it.
func (f *Feeder) addCustom() {
	add(f, "security.istio.io", "authorizationpolicies", "AuthorizationPolicy", keepAuthorization, standInAuthorization,
		func(a, b *securityv1.AuthorizationPolicy) bool {
			return sameVersion(a, b) && proto.Equal(&a.Status, &b.Status)
		},
		func(to *translate.Objects, l []*securityv1.AuthorizationPolicy) { to.AuthorizationPolicies = l })
	add(f, "security.istio.io", "peerauthentications", "PeerAuthentication", keepPeerAuthentication, standInPeerAuthentication,
		func(a, b *securityv1.PeerAuthentication) bool { return sameVersion(a, b) },
		func(to *translate.Objects, l []*securityv1.PeerAuthentication) { to.PeerAuthentications = l })
	add(f, "networking.istio.io", "serviceentries", "ServiceEntry", decode[networkingv1.ServiceEntry], nil,
		func(a, b *networkingv1.ServiceEntry) bool {
			return sameVersion(a, b) && proto.Equal(&a.Status, &b.Status)
		},
		func(to *translate.Objects, l []*networkingv1.ServiceEntry) { to.ServiceEntries = l })
	add(f, "networking.istio.io", "workloadentries", "WorkloadEntry", decode[networkingv1.WorkloadEntry], nil,
		func(a, b *networkingv1.WorkloadEntry) bool { return sameVersion(a, b) },
		func(to *translate.Objects, l []*networkingv1.WorkloadEntry) { to.WorkloadEntries = l })
	add(f, "gateway.networking.k8s.io", "gateways", "Gateway", decode[gatewayv1.Gateway], nil,
		func(a, b *gatewayv1.Gateway) bool {
			return sameVersion(a, b) && equality.Semantic.DeepEqual(&a.Status, &b.Status)
		},
		func(to *translate.Objects, l []*gatewayv1.Gateway) { to.Gateways = l })
	add(f, "gateway.networking.k8s.io", "gatewayclasses", "GatewayClass", decode[gatewayv1.GatewayClass], nil,
		func(a, b *gatewayv1.GatewayClass) bool { return sameVersion(a, b) },
		func(to *translate.Objects, l []*gatewayv1.GatewayClass) { to.GatewayClasses = l })
}

func add[T metav1.Object](f *Feeder, group, resource, name string, keep func(metav1.Object) (T, error), standIn func(metav1.Object, T) (T, string),
	same func(a, b T) bool, put func(*translate.Objects, []T),
) {
	t := newTable(keep, same, f.touch)
	t.standIn = standIn
	f.kinds = append(f.kinds, &custom[T]{
		table: t, contact: f.contact(name), put: put,
		group: group, resource: resource, name: name, versions: []string{"v1", "v1beta1"},
		served: f.served, client: f.dynamic, poll: f.poll,
	})
}

// sameVersion compares all but the status. A generation counts the versions of the rest.
func sameVersion(a, b metav1.Object) bool {
	return a.GetUID() == b.GetUID() && a.GetGeneration() != 0 && a.GetGeneration() == b.GetGeneration() &&
		a.GetDeletionTimestamp().Equal(b.GetDeletionTimestamp()) &&
		maps.Equal(a.GetLabels(), b.GetLabels()) && maps.Equal(a.GetAnnotations(), b.GetAnnotations())
}

// object is a pointer to a T that is a Kubernetes object.
type object[T any] interface {
	*T
	metav1.Object
}

// decode makes a T of an object as it came. Its status is what somebody else wrote, and
// does without when it makes no sense.
func decode[T any, P object[T]](raw metav1.Object) (P, error) {
	fields, err := trimmed(raw)
	if err != nil {
		return nil, err
	}
	out := P(new(T))
	if err = into(out, fields); err != nil && fields["status"] != nil {
		delete(fields, "status")
		out = P(new(T))
		err = into(out, fields)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	return out, nil
}

func into(out any, fields map[string]any) error {
	data, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, out)
}

// trimmed is an object without what nobody reads.
func trimmed(raw metav1.Object) (map[string]any, error) {
	u, ok := raw.(*unstructured.Unstructured)
	if !ok {
		return nil, fmt.Errorf("an object of type %T", raw)
	}
	meta := maps.Clone(nested(u.Object, "metadata"))
	delete(meta, "managedFields")
	delete(meta, "annotations")
	if a := annotations(u.GetAnnotations()); len(a) > 0 {
		meta["annotations"] = a
	}
	fields := map[string]any{"apiVersion": u.GetAPIVersion(), "kind": u.GetKind(), "metadata": meta}
	for _, part := range []string{"spec", "status"} {
		if v := u.Object[part]; v != nil {
			fields[part] = v
		}
	}
	return fields, nil
}

func nested(m map[string]any, field string) map[string]any {
	out, _ := m[field].(map[string]any)
	return out
}

// keepAuthorization reads a policy. A field that we do not know, of an API that is newer
// than we are, must not make the policy allow more than was meant: a rule of an ALLOW
// policy that has one is left out, all of them if it is elsewhere, as in the selector, for
// then they would be for more than was selected; of a DENY policy only the field is.
func keepAuthorization(raw metav1.Object) (*securityv1.AuthorizationPolicy, error) {
	p, err := decode[securityv1.AuthorizationPolicy](raw)
	if err != nil {
		return nil, err
	}
	spec, rules, err := specOf(raw)
	if err != nil {
		return nil, err
	}
	unknown := strict(spec, &security.AuthorizationPolicy{})
	if unknown == nil || p.Spec.GetAction() != security.AuthorizationPolicy_ALLOW {
		return p, unknown
	}
	if elsewhere := strictField(raw, &security.AuthorizationPolicy{}, func(name string) bool { return name != "rules" }); elsewhere != nil {
		p.Spec.Rules = nil
		return p, fmt.Errorf("%w: all rules are left out, so that they cannot allow more than was meant", elsewhere)
	}
	var kept []*security.Rule
	for i, rule := range p.Spec.GetRules() {
		if i < len(rules) && strict(rules[i], &security.Rule{}) == nil {
			kept = append(kept, rule)
		}
	}
	p.Spec.Rules = kept
	return p, fmt.Errorf("%w: rules that have this are left out, so that they cannot allow more than was meant", unknown)
}

// keepPeerAuthentication reads one. A field that we do not know may narrow it, whatever it is
// called, unless it is of the modes.
func keepPeerAuthentication(raw metav1.Object) (*securityv1.PeerAuthentication, error) {
	p, err := decode[securityv1.PeerAuthentication](raw)
	if err != nil {
		return nil, err
	}
	spec, _, err := specOf(raw)
	if err != nil {
		return nil, err
	}
	unknown := strict(spec, &security.PeerAuthentication{})
	if unknown == nil {
		return p, nil
	}
	elsewhere := strictField(raw, &security.PeerAuthentication{}, func(name string) bool { return name != "mtls" && name != "portLevelMtls" })
	if elsewhere == nil {
		return p, unknown
	}
	p.Spec.Mtls, p.Spec.PortLevelMtls = &security.PeerAuthentication_MutualTLS{Mode: security.PeerAuthentication_MutualTLS_STRICT}, nil
	return p, fmt.Errorf("%w: it takes mTLS only, so that it cannot allow plaintext to more than was selected", elsewhere)
}

// strictField is strict about some fields of an object's spec.
func strictField(raw metav1.Object, into proto.Message, which func(name string) bool) error {
	fields, _ := specFields(raw)
	some := maps.Clone(fields)
	maps.DeleteFunc(some, func(name string, _ any) bool { return !which(name) })
	text, err := json.Marshal(some)
	if err != nil {
		return err
	}
	return strict(text, into)
}

// specOf returns an object's spec, and the rules in it, as they came.
func specOf(raw metav1.Object) (spec json.RawMessage, rules []json.RawMessage, err error) {
	u, ok := raw.(*unstructured.Unstructured)
	if !ok || u.Object["spec"] == nil {
		return nil, nil, nil
	}
	if spec, err = json.Marshal(u.Object["spec"]); err != nil {
		return nil, nil, err
	}
	var fields struct {
		Rules []json.RawMessage `json:"rules"`
	}
	err = json.Unmarshal(spec, &fields)
	return spec, fields.Rules, err
}

// strict says what in a message the message's type does not have.
func strict(text json.RawMessage, into proto.Message) error {
	if len(text) == 0 {
		return nil
	}
	if err := protojson.Unmarshal(text, into); err != nil {
		return fmt.Errorf("spec: %w", err)
	}
	return nil
}
