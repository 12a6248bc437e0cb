package translate

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// builder is one run of All.
type builder struct {
	opts     Options
	td       spiffeid.TrustDomain
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

// protos is the result in the types of the wire.
type protos struct {
	workloads []*workloadapi.Workload // sorted by UID
	services  []*workloadapi.Service  // sorted by namespace and name
	policies  []*security.Authorization
	problems  []Problem
}

// build translates everything. Its order is: what others are looked up in, policies,
// services, workloads.
func build(o Objects, opts Options) (protos, error) {
	opts = opts.withDefaults()
	td, err := spiffeid.TrustDomainFromString(opts.TrustDomain)
	if err != nil {
		return protos{}, fmt.Errorf("translate: trust domain %q: %w", opts.TrustDomain, err)
	}
	b := &builder{opts: opts, td: td, network: opts.Network}
	b.index(o)
	var out protos
	out.policies = append(b.authorizations(o.AuthorizationPolicies), b.peerAuthentications(o.PeerAuthentications)...)
	for _, svc := range sorted(o.Services) {
		if s := b.service(svc); s != nil {
			out.services = append(out.services, s)
		}
	}
	for _, pod := range sorted(o.Pods) {
		if w := b.workload(pod); w != nil {
			out.workloads = append(out.workloads, w)
		}
	}
	for _, slice := range sorted(o.EndpointSlices) {
		out.workloads = append(out.workloads, b.sliceWorkloads(slice)...)
	}
	slices.SortFunc(out.workloads, func(a, b *workloadapi.Workload) int { return cmp.Compare(a.Uid, b.Uid) })
	out.problems = b.problems
	return out, nil
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
