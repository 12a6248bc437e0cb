package translate

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// Labels and annotations shared with Istio.
const (
	LabelDataplaneMode     = "istio.io/dataplane-mode"
	AnnotationSidecar      = "sidecar.istio.io/status"
	AnnotationRedirection  = "ambient.istio.io/redirection"
	AnnotationBypass       = "ambient.istio.io/bypass-inbound-capture"
	AnnotationDNSCapture   = "ambient.istio.io/dns-capture"
	AnnotationVirtualIface = "istio.io/reroute-virtual-interfaces"

	modeAmbient = "ambient"
	modeNone    = "none"

	// maxVirtualInterfaces bounds the rules one pod's annotation can ask for.
	maxVirtualInterfaces = 16
)

// What NamespaceMode answers, and the plugin's decision file holds.
const (
	ModeOut   = "out"   // no pod of the namespace is in the mesh
	ModeIn    = "in"    // a pod is in unless it says otherwise
	ModeMixed = "mixed" // some pod is in by its own labels
)

// Selector enables the pods that both selectors match; an empty selector matches
// everything. The JSON form is that of Istio's enablement_selectors.
type Selector struct {
	PodSelector       metav1.LabelSelector `json:"podSelector"`
	NamespaceSelector metav1.LabelSelector `json:"namespaceSelector"`
}

// Selectors says which pods are in the mesh. The zero value is the usual pair:
// the label istio.io/dataplane-mode=ambient on the pod, or on its namespace with
// the pod's own label not "none".
type Selectors struct {
	pairs   []selectorPair
	exclude []string
}

type selectorPair struct{ pod, namespace labels.Selector }

// NewSelectors compiles a list of selectors, of which one must match; an empty
// list means the default pair. Pods of excluded namespaces are never in the mesh.
// All mistakes are reported at once.
func NewSelectors(list []Selector, excludeNamespaces ...string) (Selectors, error) {
	s := Selectors{exclude: slices.Clone(excludeNamespaces)}
	var errs []error
	for i := range list {
		pod, err := metav1.LabelSelectorAsSelector(&list[i].PodSelector)
		if err != nil {
			errs = append(errs, fmt.Errorf("translate: selector %d: podSelector: %w", i, err))
		}
		namespace, err := metav1.LabelSelectorAsSelector(&list[i].NamespaceSelector)
		if err != nil {
			errs = append(errs, fmt.Errorf("translate: selector %d: namespaceSelector: %w", i, err))
		}
		s.pairs = append(s.pairs, selectorPair{pod: pod, namespace: namespace})
	}
	return s, errors.Join(errs...)
}

// ParseSelectors is NewSelectors on a list in YAML or JSON, in the form in which Istio
// is given it: [{podSelector: …, namespaceSelector: …}, …]. Empty text is an empty list.
func ParseSelectors(text string, excludeNamespaces ...string) (Selectors, error) {
	var list []Selector
	if err := yaml.UnmarshalStrict([]byte(text), &list); err != nil {
		return Selectors{}, fmt.Errorf("translate: selectors: %w", err)
	}
	return NewSelectors(list, excludeNamespaces...)
}

// ByPod returns, as label selectors, those by which a pod may be in the mesh for labels
// of its own. What a pod without any matches as well says nothing of its own labels: with
// such a pair it is the namespace that decides.
func (s Selectors) ByPod() []string {
	if len(s.pairs) == 0 {
		return []string{LabelDataplaneMode + "=" + modeAmbient}
	}
	var all []string
	for _, p := range s.pairs {
		if text := p.pod.String(); !p.pod.Matches(labels.Set{}) && !slices.Contains(all, text) {
			all = append(all, text)
		}
	}
	return all
}

// matches reports whether the labels put a pod in the mesh.
func (s Selectors) matches(pod, namespace labels.Set) bool {
	if len(s.pairs) == 0 {
		mode, set := pod[LabelDataplaneMode]
		return mode == modeAmbient || (!set || mode != modeNone) && namespace[LabelDataplaneMode] == modeAmbient
	}
	return slices.ContainsFunc(s.pairs, func(p selectorPair) bool {
		return p.pod.Matches(pod) && p.namespace.Matches(namespace)
	})
}

// RedirectOptions is what a pod's annotations ask of its redirection.
type RedirectOptions struct {
	BypassInbound     bool     // inbound plaintext goes straight to the app
	DNS               *bool    // overrides the node's setting; nil leaves it
	VirtualInterfaces []string // interfaces whose forwarded traffic counts as outbound, as written: cni/redirect says of which names that can be
}

// Eligibility says whether a pod is to be in the mesh.
type Eligibility struct {
	InMesh bool
	// Reason is why, in words for a human, also when the answer is yes.
	Reason string
	// Redirect is set when InMesh is.
	Redirect RedirectOptions
	// Warnings name annotations that were not understood and are ignored.
	Warnings []string
}

// Eligible says whether a pod is to be in the mesh. A nil namespace is one that
// is not known (yet): only the pod's own labels count then.
func Eligible(pod *corev1.Pod, ns *corev1.Namespace, s Selectors) Eligibility {
	if reason := barred(pod, s); reason != "" {
		return Eligibility{Reason: reason}
	}
	if finished(pod) {
		return Eligibility{Reason: fmt.Sprintf("the pod has finished (phase %s)", pod.Status.Phase)}
	}
	var nsLabels labels.Set
	if ns != nil {
		nsLabels = ns.Labels
	}
	if !s.matches(pod.Labels, nsLabels) {
		return Eligibility{Reason: s.whyNot(pod, ns)}
	}
	e := Eligibility{InMesh: true, Reason: s.why(pod)}
	e.Redirect, e.Warnings = redirectOptions(pod.Annotations)
	return e
}

// barred names what keeps a pod out whatever its labels say.
func barred(pod *corev1.Pod, s Selectors) string {
	if slices.Contains(s.exclude, pod.Namespace) {
		return fmt.Sprintf("namespace %s is excluded from the mesh by configuration", pod.Namespace)
	}
	if pod.Spec.HostNetwork {
		return "the pod uses the host network (spec.hostNetwork), which is not the pod's own to redirect"
	}
	if _, ok := pod.Annotations[AnnotationSidecar]; ok {
		return fmt.Sprintf("the pod has an Istio sidecar (annotation %s)", AnnotationSidecar)
	}
	return ""
}

func (s Selectors) why(pod *corev1.Pod) string {
	switch {
	case len(s.pairs) > 0:
		return "the configured selectors match the labels of the pod and its namespace"
	case pod.Labels[LabelDataplaneMode] == modeAmbient:
		return fmt.Sprintf("the pod has label %s=%s", LabelDataplaneMode, modeAmbient)
	default:
		return fmt.Sprintf("namespace %s has label %s=%s", pod.Namespace, LabelDataplaneMode, modeAmbient)
	}
}

func (s Selectors) whyNot(pod *corev1.Pod, ns *corev1.Namespace) string {
	mode, set := pod.Labels[LabelDataplaneMode]
	switch {
	case ns == nil:
		return fmt.Sprintf("namespace %s is not known and the pod's own labels do not put it in the mesh", pod.Namespace)
	case len(s.pairs) > 0:
		return "no configured selector matches the labels of the pod and its namespace"
	case set && mode == modeNone:
		return fmt.Sprintf("the pod opts out (label %s=%s)", LabelDataplaneMode, modeNone)
	default:
		return fmt.Sprintf("neither the pod nor namespace %s has label %s=%s", pod.Namespace, LabelDataplaneMode, modeAmbient)
	}
}

// NamespaceMode says whether the pods of a namespace are in the mesh: ModeIn when
// a pod without labels would be, ModeMixed when only some of the given pods are,
// ModeOut when none is. Finished pods count, since their like may start again.
// Pods of other namespaces are skipped.
func NamespaceMode(ns *corev1.Namespace, pods []*corev1.Pod, s Selectors) string {
	if slices.Contains(s.exclude, ns.Name) {
		return ModeOut
	}
	if s.matches(nil, ns.Labels) {
		return ModeIn
	}
	for _, pod := range pods {
		if pod.Namespace == ns.Name && barred(pod, s) == "" && s.matches(pod.Labels, ns.Labels) {
			return ModeMixed
		}
	}
	return ModeOut
}

// redirectOptions reads the annotations. What cannot be understood is ignored and
// named: the pod keeps the safe default, which is to capture.
func redirectOptions(annotations map[string]string) (RedirectOptions, []string) {
	var o RedirectOptions
	var warnings []string
	if b, err := boolAnnotation(annotations, AnnotationBypass); err != nil {
		warnings = append(warnings, err.Error())
	} else if b != nil {
		o.BypassInbound = *b
	}
	b, err := boolAnnotation(annotations, AnnotationDNSCapture)
	if err != nil {
		warnings = append(warnings, err.Error())
	}
	o.DNS = b
	for name := range strings.SplitSeq(annotations[AnnotationVirtualIface], ",") {
		name = strings.TrimSpace(name)
		switch {
		case name == "" || slices.Contains(o.VirtualInterfaces, name):
		case len(o.VirtualInterfaces) == maxVirtualInterfaces:
			warnings = append(warnings, fmt.Sprintf("annotation %s: more than %d interfaces: %q and later ones ignored",
				AnnotationVirtualIface, maxVirtualInterfaces, name))
			return o, warnings
		default:
			o.VirtualInterfaces = append(o.VirtualInterfaces, name)
		}
	}
	return o, warnings
}

func boolAnnotation(annotations map[string]string, key string) (*bool, error) {
	v, ok := annotations[key]
	if !ok {
		return nil, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return nil, fmt.Errorf("annotation %s: %q is neither true nor false: ignored", key, v)
	}
	return &b, nil
}
