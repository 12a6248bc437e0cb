package enroll

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/xds/translate"
)

// PodName is a pod's namespace and name.
type PodName struct{ Namespace, Name string }

// String returns namespace/name.
func (n PodName) String() string { return n.Namespace + "/" + n.Name }

func (n PodName) compare(o PodName) int {
	if c := strings.Compare(n.Namespace, o.Namespace); c != 0 {
		return c
	}
	return strings.Compare(n.Name, o.Name)
}

// Pod is what the objects say about a pod of this node.
type Pod struct {
	PodName
	UID            string // as the kubelet has it, and so the runtime
	ObjectUID      string // of the object: another one for a static pod's mirror
	ServiceAccount string
	IPs            []netip.Addr // as in its status, unmapped
	Containers     []string     // IDs of its containers, without the runtime's name
	Eligible       translate.Eligibility
	Finished       bool   // it will not run any more
	Going          bool   // it is being deleted
	HostNetwork    bool   // it has no namespace of its own
	Marked         string // its annotation ambient.istio.io/redirection; empty: none
}

// running says whether a pod is expected to have a sandbox that is through its
// ADD: the kubelet publishes addresses after that.
func (p Pod) running() bool { return !p.Finished && !p.HostNetwork && len(p.IPs) > 0 }

// View is the objects at one moment, as far as this node is concerned. It does
// not change.
type View struct {
	pods    map[PodName]Pod
	modes   map[string]string // of every namespace: event.NSOut, NSIn or NSMixed
	missing []string          // what could not be read yet, for people
	exempt  string
	exclude []string
	whole   bool
	// The pods of another mesh's agent on this node, at work or about to be; empty: none.
	rival, rivalDue string
}

// ViewOptions say whose view it is.
type ViewOptions struct {
	Node string // only pods of this node, or of no node yet, are in the view
	// OwnNamespace is the mesh's own: its pods are left alone without asking.
	OwnNamespace string
	// ExcludeNamespaces are left alone too.
	ExcludeNamespaces []string
	Selectors         translate.Selectors
	// Whole: the objects come from where every pod's namespace exists. One that is
	// missing has not been heard of yet, and nothing is known about its pods.
	Whole bool
}

// NewView makes a view of the objects.
func NewView(o translate.Objects, opts ViewOptions) *View {
	v := &View{
		pods: make(map[PodName]Pod), modes: make(map[string]string),
		exempt: opts.OwnNamespace, exclude: opts.ExcludeNamespaces, whole: opts.Whole,
	}
	namespaces := make(map[string]*corev1.Namespace, len(o.Namespaces))
	for _, ns := range o.Namespaces {
		namespaces[ns.Name] = ns
	}
	byNamespace := make(map[string][]*corev1.Pod)
	for _, p := range o.Pods {
		byNamespace[p.Namespace] = append(byNamespace[p.Namespace], p)
		if p.Spec.NodeName != "" && p.Spec.NodeName != opts.Node {
			continue
		}
		pod := newPod(p, translate.Eligible(p, namespaces[p.Namespace], opts.Selectors))
		if v.Exempt(p.Namespace) {
			pod.Eligible = translate.Eligibility{Reason: "its namespace is exempt from the mesh"}
		}
		v.pods[pod.PodName] = pod
		v.noteRival(p)
	}
	for name, ns := range namespaces {
		v.modes[name] = translate.NamespaceMode(ns, byNamespace[name], opts.Selectors)
		if v.Exempt(name) {
			v.modes[name] = event.NSOut
		}
	}
	return v
}

func newPod(p *corev1.Pod, el translate.Eligibility) Pod {
	pod := Pod{
		PodName: PodName{p.Namespace, p.Name}, UID: string(p.UID), ObjectUID: string(p.UID), ServiceAccount: serviceAccount(p),
		IPs: podIPs(p), Containers: containers(p), Eligible: el, HostNetwork: p.Spec.HostNetwork,
		Finished: p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
		Going:    p.DeletionTimestamp != nil,
		Marked:   p.Annotations[translate.AnnotationRedirection],
	}
	// The object of a static pod is made after it, and has a UID of its own.
	if uid := p.Annotations[corev1.MirrorPodAnnotationKey]; uid != "" {
		pod.UID = uid
	}
	return pod
}

// Without returns the view knowing that the objects in missing are not in it: what
// they say is unknown, not gone.
func (v *View) Without(missing []string) *View {
	w := *v
	w.missing = missing
	return &w
}

// WithLabelled returns the view knowing that pods of these namespaces, on whatever node,
// are in the mesh by their own labels.
func (v *View) WithLabelled(namespaces []string) *View {
	if len(namespaces) == 0 {
		return v
	}
	w := *v
	w.modes = maps.Clone(v.modes)
	for _, name := range namespaces {
		if w.modes[name] == event.NSOut && !v.Exempt(name) {
			w.modes[name] = event.NSMixed
		}
	}
	return &w
}

// Undecided says why it cannot be told yet that a pod is outside the mesh; nil
// when it can.
func (v *View) Undecided(p Pod) error {
	if _, known := v.modes[p.Namespace]; known || !v.whole && len(v.missing) == 0 || p.Eligible.InMesh || v.Exempt(p.Namespace) {
		return nil
	}
	if v.whole {
		return fmt.Errorf("namespace %s is not known yet", p.Namespace)
	}
	return fmt.Errorf("namespace %s is not known, and %s could not be read since the agent's start", p.Namespace, strings.Join(v.missing, ", "))
}

// Exempt says whether the pods of a namespace are left alone whatever their
// labels say.
func (v *View) Exempt(namespace string) bool {
	return namespace == v.exempt && namespace != "" || slices.Contains(v.exclude, namespace)
}

// Pod returns the pod of that name. With a UID it must be that one: the object
// of a predecessor is no pod yet. An object without UID (a file that somebody
// wrote by hand) stands for whatever pod has its name.
func (v *View) Pod(name PodName, uid string) (Pod, bool) {
	p, ok := v.pods[name]
	return p, ok && (uid == "" || p.UID == "" || p.UID == uid)
}

// Pods returns all pods of the node, by name.
func (v *View) Pods() []Pod {
	return slices.SortedFunc(maps.Values(v.pods), func(a, b Pod) int { return a.PodName.compare(b.PodName) })
}

// Away is what the plugin goes by when the agent is not there.
func (v *View) Away() event.Away {
	a := event.Away{Namespaces: maps.Clone(v.modes)}
	for _, name := range append(slices.Clone(v.exclude), v.exempt) {
		if name != "" {
			a.Namespaces[name] = event.NSOut
		}
	}
	return a
}

func serviceAccount(p *corev1.Pod) string {
	if p.Spec.ServiceAccountName == "" {
		return "default" // as the API server would have filled in
	}
	return p.Spec.ServiceAccountName
}

// maxIPs bounds what is taken of a pod's status: one address a family is usual.
const maxIPs = 16

func podIPs(p *corev1.Pod) (ips []netip.Addr) {
	for _, ip := range p.Status.PodIPs[:min(len(p.Status.PodIPs), maxIPs)] {
		if a, err := netip.ParseAddr(ip.IP); err == nil && a.Zone() == "" {
			ips = append(ips, a.Unmap())
		}
	}
	return ips
}

// containers are the IDs of its containers, "containerd://ID" without the scheme.
func containers(p *corev1.Pod) (ids []string) {
	for _, list := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses} {
		for _, c := range list {
			if _, id, ok := strings.Cut(c.ContainerID, "://"); ok && id != "" {
				ids = append(ids, id)
			}
		}
	}
	return ids
}
