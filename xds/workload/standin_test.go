package workload

import (
	"errors"
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
		{"nothing could be read", "ns/p", nil, &Policy{Namespace: "ns", Name: "p", Scope: ScopeNamespace, Action: Deny, Rules: closed}},
		{"garbage", "ns/p", []byte{0xff}, &Policy{Namespace: "ns", Name: "p", Scope: ScopeNamespace, Action: Deny, Rules: closed}},
		{"cut short", "ns/p", []byte{0x18, 2, 0x20, 1, 0x2a, 9}, &Policy{Namespace: "ns", Name: "p", Scope: ScopeNamespace, Action: Deny, Rules: closed}},
		{"no namespace in the name", "/p", []byte{0xff}, &Policy{Name: "p", Scope: ScopeGlobal, Action: Deny, Rules: closed}},
		{"selected workloads name it", "ns/p", pack(&security.Authorization{Scope: security.Scope_WORKLOAD_SELECTOR, Action: security.Action_DENY}), nil},
		{"selected workloads name it, and would be open to identities", "ns/converted_peer_authentication_p",
			pack(&security.Authorization{Scope: security.Scope_WORKLOAD_SELECTOR, Action: security.Action_DENY}),
			&Policy{Namespace: "ns", Name: "converted_peer_authentication_p", Scope: ScopeSelector, Action: Deny, Rules: closed}},
		{"dry run", "ns/p", pack(&security.Authorization{Action: security.Action_DENY, DryRun: true}), nil},
		{"dry run of selected workloads", "ns/p", pack(&security.Authorization{Scope: security.Scope_WORKLOAD_SELECTOR, DryRun: true}),
			&Policy{Namespace: "ns", Name: "p", Scope: ScopeSelector, Action: Deny, DryRun: true}},
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
// permission wider, or a denial match nothing. That goes for every message inside the
// rules, those of a later version of the format included.
func TestConditionsOfANewerVersion(t *testing.T) {
	newer := protoreflect.RawFields{0xf8, 0x06, 1} // field 111
	full := func() *security.Authorization {
		a := fullPolicy()
		a.ProtoReflect().SetUnknown(newer) // beside the rules it is no condition
		return a
	}
	if _, err := PolicyFromProto(full()); err != nil {
		t.Fatalf("before: %v", err)
	}
	seen := map[protoreflect.Name]bool{}
	for i := 0; ; i++ {
		a := full()
		m := nested(a.ProtoReflect(), new(int), i)
		if m == nil {
			break
		}
		m.SetUnknown(newer)
		seen[m.Descriptor().Name()] = true
		if _, err := PolicyFromProto(a); err == nil || !errors.Is(err, errUnknownField) {
			t.Errorf("%s, message %d: taken, or %v", m.Descriptor().Name(), i, err)
		}
	}
	for _, name := range []protoreflect.Name{"Group", "Rules", "Match", "StringMatch", "Empty", "Address", "ServiceAccountMatch"} {
		if !seen[name] {
			t.Errorf("the full policy has no %s", name)
		}
	}
	a := full()
	a.Groups[0].Rules[0].Matches[0].Extensions = []*workloadapi.Extension{{}}
	if _, err := PolicyFromProto(a); err == nil {
		t.Error("extension: taken")
	}
}

// nested is the message number i inside m, nil if there are fewer.
func nested(m protoreflect.Message, n *int, i int) (found protoreflect.Message) {
	visit := func(inside protoreflect.Message) bool {
		if *n++; *n-1 == i {
			found = inside
		} else {
			found = nested(inside, n, i)
		}
		return found == nil
	}
	fields := m.Descriptor().Fields()
	for j := 0; j < fields.Len() && found == nil; j++ { // in the order of their definition
		f := fields.Get(j)
		switch {
		case f.Kind() != protoreflect.MessageKind || !m.Has(f):
		case !f.IsList():
			visit(m.Get(f).Message())
		default:
			list := m.Get(f).List()
			for k := 0; k < list.Len() && visit(list.Get(k).Message()); k++ {
			}
		}
	}
	return found
}
