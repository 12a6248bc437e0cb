package translate

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/warren-mesh/warren/xds/workload"
)

// builder is one run of All.
type builder struct {
	opts     Options
	network  string
	problems []Problem

	namespaces map[string]*corev1.Namespace
	nodes      map[string]*corev1.Node
	services   map[string][]*corev1.Service            // by namespace, sorted by name
	targets    map[string][]*discoveryv1.EndpointSlice // by the pods that they name
	policies   *policyIndex
	peers      *peerIndex
}

// reporter notes a problem with one object.
type reporter func(field, reason string)

func (b *builder) reporter(kind, namespace, name string) reporter {
	return func(field, reason string) {
		b.problems = append(b.problems, Problem{Kind: kind, Namespace: namespace, Name: name, Field: field, Reason: reason})
	}
}

// Result is the model, in an order that does not depend on that of the objects.
type Result struct {
	Workloads []*workload.Workload // sorted by UID
	Services  []*workload.Service  // sorted by namespace and name
	Policies  []*workload.Policy
	// Placements says which identities run on which node: those of the pods of the
	// mesh that are on it and have not finished, whether they have an address yet or
	// not. A node's proxy may have certificates for these and no others.
	Placements map[string]map[spiffeid.ID]bool
	Problems   []Problem
}

// All translates everything. It fails only for options that make no sense; an object
// that makes none is a Problem.
func All(o Objects, opts Options) (Result, error) {
	opts = opts.withDefaults()
	if _, err := spiffeid.TrustDomainFromString(opts.TrustDomain); err != nil {
		return Result{}, fmt.Errorf("translate: trust domain %q: %w", opts.TrustDomain, err)
	}
	b := &builder{opts: opts, network: opts.Network}
	b.index(o)
	out := Result{Placements: make(map[string]map[spiffeid.ID]bool)}
	// Policies come first: workloads list those that name them.
	out.Policies = append(b.authorizations(o.AuthorizationPolicies), b.peerAuthentications(o.PeerAuthentications)...)
	for _, svc := range sorted(o.Services) {
		if s := b.service(svc); s != nil {
			out.Services = append(out.Services, s)
		}
	}
	for _, pod := range sorted(o.Pods) {
		id, err := b.identity(pod)
		if err != nil {
			b.reporter("Pod", pod.Namespace, pod.Name)("spec.serviceAccountName", fmt.Sprintf("the pod is left out, it cannot have an identity: %v", err))
			continue
		}
		b.place(pod, id, out.Placements)
		if w := b.workload(pod); w != nil {
			out.Workloads = append(out.Workloads, w)
		}
	}
	for _, slice := range sorted(o.EndpointSlices) {
		out.Workloads = append(out.Workloads, b.sliceWorkloads(slice)...)
	}
	slices.SortFunc(out.Workloads, func(a, b *workload.Workload) int { return cmp.Compare(a.UID, b.UID) })
	out.Problems = b.problems
	return out, nil
}

func (b *builder) identity(pod *corev1.Pod) (spiffeid.ID, error) {
	return workload.NewIdentity(b.opts.TrustDomain, pod.Namespace, serviceAccountOf(pod))
}

// place notes that a pod's node speaks for its identity.
func (b *builder) place(pod *corev1.Pod, id spiffeid.ID, placements map[string]map[spiffeid.ID]bool) {
	node := pod.Spec.NodeName
	if node == "" || finished(pod) || !b.redirected(pod) && !Eligible(pod, b.namespaces[pod.Namespace], b.opts.Selectors).InMesh {
		return
	}
	if placements[node] == nil {
		placements[node] = make(map[spiffeid.ID]bool)
	}
	placements[node][id] = true
}

func (b *builder) index(o Objects) {
	b.namespaces = byName(o.Namespaces)
	b.nodes = byName(o.Nodes)
	if root := b.namespaces[b.opts.RootNamespace]; root != nil && root.Labels[labelNetwork] != "" {
		b.network = root.Labels[labelNetwork]
	}
	b.services = make(map[string][]*corev1.Service)
	for _, svc := range sorted(o.Services) {
		if svc.Spec.Type != corev1.ServiceTypeExternalName {
			b.services[svc.Namespace] = append(b.services[svc.Namespace], svc)
		}
	}
	b.targets = make(map[string][]*discoveryv1.EndpointSlice)
	for _, slice := range sorted(o.EndpointSlices) {
		for i := range slice.Endpoints {
			if pod := podOf(slice.Namespace, &slice.Endpoints[i]); pod != "" && !slices.Contains(b.targets[pod], slice) {
				b.targets[pod] = append(b.targets[pod], slice)
			}
		}
	}
}

func byName[T named](list []T) map[string]T {
	m := make(map[string]T, len(list))
	for _, o := range list {
		m[o.GetName()] = o
	}
	return m
}
