package enroll

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/xds/translate"
)

func ambient() map[string]string {
	return map[string]string{translate.LabelDataplaneMode: "ambient"}
}

func TestView(t *testing.T) {
	namespace := func(name string, labels map[string]string) *corev1.Namespace {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	}
	pod := func(namespace, name, uid, node string, labels map[string]string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid), Labels: labels},
			Spec:       corev1.PodSpec{NodeName: node},
			Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "junk"}, {IP: "::ffff:10.0.0.2"}}},
		}
	}
	v := NewView(translate.Objects{
		Namespaces: []*corev1.Namespace{
			namespace("in", ambient()), namespace("out", nil), namespace("mixed", nil), namespace("mesh", ambient()), namespace("not", ambient()),
		},
		Pods: []*corev1.Pod{
			pod("in", "a", "u1", "n1", nil), pod("in", "elsewhere", "u2", "n2", nil), pod("in", "unscheduled", "", "", nil),
			pod("mixed", "a", "u3", "n2", ambient()), pod("mesh", "agent", "u4", "n1", nil), pod("not", "a", "u5", "n1", ambient()),
		},
	}, ViewOptions{Node: "n1", OwnNamespace: "mesh", ExcludeNamespaces: []string{"not", "unseen"}})

	var got []string
	for _, p := range v.Pods() {
		got = append(got, fmt.Sprintf("%s %t %s %v", p.PodName, p.Eligible.InMesh, p.ServiceAccount, p.IPs))
	}
	want := []string{
		"in/a true default [10.0.0.1 10.0.0.2]", "in/unscheduled true default [10.0.0.1 10.0.0.2]",
		"mesh/agent false default [10.0.0.1 10.0.0.2]", "not/a false default [10.0.0.1 10.0.0.2]",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pods (-want +got):\n%s", diff)
	}
	modes := map[string]string{
		"in": event.NSIn, "out": event.NSOut, "mixed": event.NSMixed, "mesh": event.NSOut, "not": event.NSOut, "unseen": event.NSOut,
	}
	if diff := cmp.Diff(modes, v.Away().Namespaces); diff != "" {
		t.Errorf("away (-want +got):\n%s", diff)
	}
	for _, c := range []struct {
		name PodName
		uid  string
		ok   bool
	}{
		{PodName{"in", "a"}, "u1", true},
		{PodName{"in", "a"}, "", true},
		{PodName{"in", "a"}, "other", false},
		{PodName{"in", "elsewhere"}, "u2", false},
		{PodName{"in", "unscheduled"}, "whatever the runtime says", true},
	} {
		if _, ok := v.Pod(c.name, c.uid); ok != c.ok {
			t.Errorf("%s with UID %q: %t", c.name, c.uid, ok)
		}
	}
}

func TestUndecided(t *testing.T) {
	broken := []string{"ns.yaml: line 1: bad"}
	in := Pod{PodName: PodName{"app", "a"}, Eligible: translate.Eligibility{InMesh: true}}
	out := Pod{PodName: PodName{"app", "b"}}
	known := &View{modes: map[string]string{"app": "out"}}
	unknown := &View{modes: map[string]string{}, exempt: "own"}
	for _, tc := range []struct {
		name string
		view *View
		pod  Pod
		want bool
	}{
		{"everything was read", unknown.Without(nil), out, false},
		{"its namespace may be in the broken file", unknown.Without(broken), out, true},
		{"its namespace is known", known.Without(broken), out, false},
		{"its own label says in", unknown.Without(broken), in, false},
		{"exempt", unknown.Without(broken), Pod{PodName: PodName{"own", "agent"}}, false},
	} {
		if err := tc.view.Undecided(tc.pod); (err != nil) != tc.want {
			t.Errorf("%s: %v, want undecided %t", tc.name, err, tc.want)
		}
	}
	if next(PhaseEnrolled, wantUnknown, true) != actNone {
		t.Error("a pod of which nothing is known is taken out of the mesh")
	}
}
