package translate

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func meta(name string, labels, annotations map[string]string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Namespace: "app", Labels: labels, Annotations: annotations}
}

func TestEligible(t *testing.T) {
	label := func(v string) map[string]string { return map[string]string{LabelDataplaneMode: v} }
	ns := func(labels map[string]string) *corev1.Namespace {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "app", Labels: labels}}
	}
	pod := func(labels map[string]string) *corev1.Pod { return &corev1.Pod{ObjectMeta: meta("p", labels, nil)} }
	host := pod(label("ambient"))
	host.Spec.HostNetwork = true
	sidecar := pod(label("ambient"))
	sidecar.Annotations = map[string]string{AnnotationSidecar: ""}
	done := pod(label("ambient"))
	done.Status.Phase = corev1.PodSucceeded
	failed := pod(label("ambient"))
	failed.Status.Phase = corev1.PodFailed
	custom, err := NewSelectors([]Selector{
		{PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"mesh": "on"}}},
		{NamespaceSelector: metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "team", Operator: metav1.LabelSelectorOpIn, Values: []string{"a"}}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	excluding, err := NewSelectors(nil, "app")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		pod    *corev1.Pod
		ns     *corev1.Namespace
		s      Selectors
		in     bool
		reason string
	}{
		"own label":                {pod(label("ambient")), ns(nil), Selectors{}, true, "the pod has label istio.io/dataplane-mode=ambient"},
		"namespace's label":        {pod(nil), ns(label("ambient")), Selectors{}, true, "namespace app has label"},
		"opts out":                 {pod(label("none")), ns(label("ambient")), Selectors{}, false, "the pod opts out"},
		"other value of its own":   {pod(label("x")), ns(label("ambient")), Selectors{}, true, "namespace app has label"},
		"no label":                 {pod(nil), ns(nil), Selectors{}, false, "neither the pod nor namespace app"},
		"other value of namespace": {pod(nil), ns(label("x")), Selectors{}, false, "neither the pod nor"},
		"unknown namespace":        {pod(nil), nil, Selectors{}, false, "namespace app is not known"},
		"unknown, own label":       {pod(label("ambient")), nil, Selectors{}, true, "the pod has label"},
		"host network":             {host, ns(label("ambient")), Selectors{}, false, "spec.hostNetwork"},
		"sidecar":                  {sidecar, ns(label("ambient")), Selectors{}, false, "sidecar.istio.io/status"},
		"succeeded":                {done, ns(nil), Selectors{}, false, "finished (phase Succeeded)"},
		"failed":                   {failed, ns(nil), Selectors{}, false, "finished (phase Failed)"},
		"excluded namespace":       {pod(label("ambient")), ns(label("ambient")), excluding, false, "excluded"},
		"custom by pod":            {pod(map[string]string{"mesh": "on"}), ns(nil), custom, true, "configured selectors match"},
		"custom by namespace":      {pod(nil), ns(map[string]string{"team": "a"}), custom, true, "configured selectors match"},
		"custom, none":             {pod(label("ambient")), ns(nil), custom, false, "no configured selector"},
	} {
		t.Run(name, func(t *testing.T) {
			e := Eligible(c.pod, c.ns, c.s)
			if e.InMesh != c.in || !strings.Contains(e.Reason, c.reason) {
				t.Errorf("Eligible = %v, %q, want %v, %q", e.InMesh, e.Reason, c.in, c.reason)
			}
		})
	}
	_, err = NewSelectors([]Selector{{PodSelector: metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}}}},
		{NamespaceSelector: metav1.LabelSelector{MatchLabels: map[string]string{"/": "x"}}}})
	if err == nil || !strings.Contains(err.Error(), "selector 0: podSelector") || !strings.Contains(err.Error(), "selector 1: namespaceSelector") {
		t.Errorf("err = %v, want both mistakes", err)
	}
}

func TestRedirectOptions(t *testing.T) {
	yes, no := true, false
	for name, c := range map[string]struct {
		annotations map[string]string
		want        RedirectOptions
		warnings    []string
	}{
		"none":       {nil, RedirectOptions{}, nil},
		"everything": {map[string]string{AnnotationBypass: "true", AnnotationDNSCapture: "1", AnnotationVirtualIface: "eth1, br-0,tap+,eth1,"}, RedirectOptions{BypassInbound: true, DNS: &yes, VirtualInterfaces: []string{"eth1", "br-0", "tap+"}}, nil},
		"off":        {map[string]string{AnnotationBypass: "false", AnnotationDNSCapture: "false"}, RedirectOptions{DNS: &no}, nil},
		"garbage":    {map[string]string{AnnotationBypass: "yes please", AnnotationDNSCapture: ""}, RedirectOptions{}, []string{AnnotationBypass, AnnotationDNSCapture}},
		"as written": {map[string]string{AnnotationVirtualIface: "a b,-j,x/y\n,sixteen-letters-, lo"}, RedirectOptions{VirtualInterfaces: []string{"a b", "-j", "x/y", "sixteen-letters-", "lo"}}, nil},
		"many": {map[string]string{AnnotationVirtualIface: "a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q,r"},
			RedirectOptions{VirtualInterfaces: strings.Split("a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p", ",")}, []string{`more than 16 interfaces: "q"`}},
	} {
		t.Run(name, func(t *testing.T) {
			e := Eligible(&corev1.Pod{ObjectMeta: meta("p", map[string]string{LabelDataplaneMode: "ambient"}, c.annotations)}, nil, Selectors{})
			if d := cmp.Diff(c.want, e.Redirect); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if len(e.Warnings) != len(c.warnings) {
				t.Fatalf("warnings = %q, want %q", e.Warnings, c.warnings)
			}
			for i := range e.Warnings {
				if !strings.Contains(e.Warnings[i], c.warnings[i]) {
					t.Errorf("warning %q, want %q in it", e.Warnings[i], c.warnings[i])
				}
			}
		})
	}
}

func TestNamespaceMode(t *testing.T) {
	ambient := map[string]string{LabelDataplaneMode: "ambient"}
	pod := func(ns string, labels map[string]string, change func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: ns, Labels: labels}}
		if change != nil {
			change(p)
		}
		return p
	}
	excluding, err := NewSelectors(nil, "app")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		labels map[string]string
		pods   []*corev1.Pod
		s      Selectors
		want   string
	}{
		"empty":                {nil, nil, Selectors{}, ModeOut},
		"labelled":             {ambient, nil, Selectors{}, ModeIn},
		"pods opt out":         {ambient, []*corev1.Pod{pod("app", map[string]string{LabelDataplaneMode: "none"}, nil)}, Selectors{}, ModeIn},
		"a pod's own label":    {nil, []*corev1.Pod{pod("app", nil, nil), pod("app", ambient, nil)}, Selectors{}, ModeMixed},
		"elsewhere":            {nil, []*corev1.Pod{pod("other", ambient, nil)}, Selectors{}, ModeOut},
		"a finished pod":       {nil, []*corev1.Pod{pod("app", ambient, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })}, Selectors{}, ModeMixed},
		"only on host network": {nil, []*corev1.Pod{pod("app", ambient, func(p *corev1.Pod) { p.Spec.HostNetwork = true })}, Selectors{}, ModeOut},
		"excluded":             {ambient, []*corev1.Pod{pod("app", ambient, nil)}, excluding, ModeOut},
	} {
		t.Run(name, func(t *testing.T) {
			ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "app", Labels: c.labels}}
			if got := NamespaceMode(ns, c.pods, c.s); got != c.want {
				t.Errorf("NamespaceMode = %s, want %s", got, c.want)
			}
		})
	}
}

func TestParseSelectors(t *testing.T) {
	s, err := ParseSelectors(`[{podSelector: {matchLabels: {mesh: "on"}}}, {"namespaceSelector": {"matchLabels": {"team": "a"}}, "podSelector": {}}]`, "out")
	if err != nil {
		t.Fatal(err)
	}
	pod := func(ns string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: ns, Labels: map[string]string{"mesh": "on"}}}
	}
	if !Eligible(pod("app"), nil, s).InMesh || Eligible(pod("out"), nil, s).InMesh {
		t.Error("the selectors do not say what was written")
	}
	if s, err := ParseSelectors(""); err != nil || len(s.pairs) != 0 {
		t.Errorf("empty = %v, %v, want the default", s, err)
	}
	for _, text := range []string{"podSelector: {}", "[{podSelektor: {}}]", "[{podSelector: {matchExpressions: [{key: a, operator: Like}]}}]"} {
		if _, err := ParseSelectors(text); err == nil {
			t.Errorf("%s is accepted", text)
		}
	}
}

// TestByPod: a selector that a pod without labels matches is left out, and so is not every
// pod of the cluster asked for.
func TestByPod(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"none":     {"", "istio.io/dataplane-mode=ambient"},
		"Istio's":  {"[{podSelector: {matchLabels: {istio.io/dataplane-mode: ambient}}}, {podSelector: {matchExpressions: [{key: istio.io/dataplane-mode, operator: NotIn, values: [none]}]}, namespaceSelector: {matchLabels: {istio.io/dataplane-mode: ambient}}}]", "istio.io/dataplane-mode=ambient"},
		"no label": {"[{namespaceSelector: {matchLabels: {mesh: 'on'}}}]", ""},
		"two":      {"[{podSelector: {matchLabels: {a: b}}}, {podSelector: {matchLabels: {a: b}}, namespaceSelector: {matchLabels: {c: d}}}, {podSelector: {matchExpressions: [{key: e, operator: Exists}]}}]", "a=b;e"},
	} {
		s, err := ParseSelectors(c.text)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(s.ByPod(), ";"); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
