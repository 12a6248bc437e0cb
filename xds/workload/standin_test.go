package workload

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"
)

func TestStandIn(t *testing.T) {
	pack := func(a *security.Authorization) []byte {
		b, err := proto.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	closed := []Rule{{}}
	for _, tc := range []struct {
		name, xds string
		packed    []byte
		want      *Policy
	}{
		{"denial for a namespace", "ns/p", pack(&security.Authorization{Scope: security.Scope_NAMESPACE, Action: security.Action_DENY}),
			&Policy{Namespace: "ns", Name: "p", Scope: ScopeNamespace, Action: Deny, Rules: closed}},
		{"denial for all", "root/p", pack(&security.Authorization{Action: security.Action_DENY}),
			&Policy{Namespace: "root", Name: "p", Scope: ScopeGlobal, Action: Deny, Rules: closed}},
		{"permission permits nothing", "ns/p", pack(&security.Authorization{Scope: security.Scope_NAMESPACE}),
			&Policy{Namespace: "ns", Name: "p", Scope: ScopeNamespace, Action: Allow}},
		{"unknown action", "ns/p", pack(&security.Authorization{Scope: security.Scope_NAMESPACE, Action: 9}),
			&Policy{Namespace: "ns", Name: "p", Scope: ScopeNamespace, Action: Deny, Rules: closed}},
		{"unknown scope", "ns/p", pack(&security.Authorization{Scope: 9}),
			&Policy{Namespace: "ns", Name: "p", Scope: ScopeNamespace, Action: Allow}},
		{"a text that is none", "ns/p", []byte{0x0a, 1, 0xff, 0x18, 0, 0x20, 1},
			&Policy{Namespace: "ns", Name: "p", Scope: ScopeGlobal, Action: Deny, Rules: closed}},
		{"garbage", "ns/p", []byte{0xff}, &Policy{Namespace: "ns", Name: "p", Scope: ScopeNamespace, Action: Deny, Rules: closed}},
		{"cut short", "ns/p", []byte{0x18, 2, 0x20, 1, 0x2a, 9}, &Policy{Namespace: "ns", Name: "p", Scope: ScopeNamespace, Action: Deny, Rules: closed}},
		{"no namespace in the name", "/p", []byte{0xff}, &Policy{Name: "p", Scope: ScopeGlobal, Action: Deny, Rules: closed}},
		{"selected workloads name it", "ns/p", pack(&security.Authorization{Scope: security.Scope_WORKLOAD_SELECTOR, Action: security.Action_DENY}), nil},
		{"dry run", "ns/p", pack(&security.Authorization{Action: security.Action_DENY, DryRun: true}), nil},
		{"not a name", "p", pack(&security.Authorization{Action: security.Action_DENY}), nil},
	} {
		got := StandIn(tc.xds, tc.packed)
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, d)
		}
		if got != nil && got.ResourceName() != tc.xds {
			t.Errorf("%s: stands under %q", tc.name, got.ResourceName())
		}
	}
}

// TestConditionsOfANewerVersion: a condition that is not understood would make a
// permission wider, or a denial match nothing.
func TestConditionsOfANewerVersion(t *testing.T) {
	newer := protoreflect.RawFields{0xf8, 0x06, 1} // field 111
	for name, spoil := range map[string]func(*security.Authorization){
		"group": func(a *security.Authorization) { a.Groups[0].ProtoReflect().SetUnknown(newer) },
		"rules": func(a *security.Authorization) { a.Groups[0].Rules[0].ProtoReflect().SetUnknown(newer) },
		"match": func(a *security.Authorization) { a.Groups[0].Rules[0].Matches[0].ProtoReflect().SetUnknown(newer) },
		"extension": func(a *security.Authorization) {
			a.Groups[0].Rules[0].Matches[0].Extensions = []*workloadapi.Extension{{}}
		},
	} {
		a := &security.Authorization{Name: "p", Namespace: "ns", Groups: []*security.Group{{Rules: []*security.Rules{{
			Matches: []*security.Match{{DestinationPorts: []uint32{80}}},
		}}}}}
		a.ProtoReflect().SetUnknown(newer) // beside the rules it is no condition
		if _, err := PolicyFromProto(a); err != nil {
			t.Errorf("%s: before: %v", name, err)
		}
		spoil(a)
		if _, err := PolicyFromProto(a); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
