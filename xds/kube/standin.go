package kube

import (
	"encoding/json"
	"maps"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	security "istio.io/api/security/v1beta1"
	apitype "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// What a policy is that cannot be read, such as one with a value of a newer API. A policy
// that is not there allows what it was to forbid: so one that was read once stays what it
// was then, and of one that never was, by a control plane that has just started, the safe
// side is taken, for what it selects as far as that can be read.

const asBefore = "it stays in force as it last could be read"

// standInAuthorization takes the place of an AuthorizationPolicy. An ALLOW policy that
// allows nothing leaves what others allow; where it may forbid, everything is forbidden.
func standInAuthorization(raw metav1.Object, before *securityv1.AuthorizationPolicy) (*securityv1.AuthorizationPolicy, string) {
	p := withoutSpec[securityv1.AuthorizationPolicy](raw)
	if before != nil {
		before.Spec.DeepCopyInto(&p.Spec)
		return p, asBefore
	}
	fields, ok := specFields(raw)
	ok = readField(fields, "action", &p.Spec) && ok
	readField(fields, "selector", &p.Spec)
	if fields["targetRef"] != nil || fields["targetRefs"] != nil {
		p.Spec.TargetRefs = []*apitype.PolicyTargetReference{{}} // whichever: it is for a waypoint
		return p, "it is for a waypoint"
	}
	switch {
	case !ok || p.Spec.GetAction() == security.AuthorizationPolicy_DENY:
		p.Spec.Action, p.Spec.Rules = security.AuthorizationPolicy_DENY, []*security.Rule{{}}
		return p, "it denies everything to what it selects until it can be read"
	case p.Spec.GetAction() == security.AuthorizationPolicy_ALLOW:
		return p, "it allows nothing until it can be read"
	}
	return p, "it has no effect"
}

// standInPeerAuthentication takes the place of a PeerAuthentication.
func standInPeerAuthentication(raw metav1.Object, before *securityv1.PeerAuthentication) (*securityv1.PeerAuthentication, string) {
	p := withoutSpec[securityv1.PeerAuthentication](raw)
	if before != nil {
		before.Spec.DeepCopyInto(&p.Spec)
		return p, asBefore
	}
	fields, _ := specFields(raw)
	readField(fields, "selector", &p.Spec)
	p.Spec.Mtls = &security.PeerAuthentication_MutualTLS{Mode: security.PeerAuthentication_MutualTLS_STRICT}
	return p, "what it selects takes mTLS only until it can be read"
}

// withoutSpec decodes everything else of an object.
func withoutSpec[T any, P object[T]](raw metav1.Object) P {
	if u, ok := raw.(*unstructured.Unstructured); ok {
		rest := &unstructured.Unstructured{Object: maps.Clone(u.Object)}
		delete(rest.Object, "spec")
		if p, err := decode[T, P](rest); err == nil {
			return p
		}
	}
	p := P(new(T))
	p.SetNamespace(raw.GetNamespace())
	p.SetName(raw.GetName())
	p.SetUID(raw.GetUID())
	p.SetGeneration(raw.GetGeneration())
	return p
}

// specFields are the fields of an object's spec; false for a spec that has none.
func specFields(raw metav1.Object) (map[string]any, bool) {
	u, ok := raw.(*unstructured.Unstructured)
	if !ok {
		return nil, false
	}
	fields, ok := u.Object["spec"].(map[string]any)
	return fields, ok
}

// readField puts one field where it belongs, and leaves it if it cannot be read.
func readField(fields map[string]any, name string, into proto.Message) (ok bool) {
	if fields[name] == nil {
		return true
	}
	text, err := json.Marshal(map[string]any{name: fields[name]})
	if err != nil {
		return false
	}
	part := into.ProtoReflect().New().Interface()
	// What is unknown in a selector selects less, or more; the name of an unknown action
	// would be taken for that of the first.
	if err := (protojson.UnmarshalOptions{DiscardUnknown: name != "action"}).Unmarshal(text, part); err != nil {
		return false
	}
	proto.Merge(into, part)
	return true
}
