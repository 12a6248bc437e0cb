package translate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/warren-mesh/warren/xds/workload"
)

// maxProblems is how many problems of one object are told.
const maxProblems = 32

// builder is one run of All.
type builder struct {
	opts     Options
	network  string
	problems []Problem
	bindings []Binding

	namespaces map[string]*corev1.Namespace
	nodes      map[string]*corev1.Node
	waypoints  *waypointIndex
	gateways   map[string]*workload.GatewayAddress     // by network
	fronts     map[string][]*front                     // by namespace
	byService  map[string]*front                       // by namespace/name of a Service
	slices     map[string][]*discoveryv1.EndpointSlice // by the pods that they name
	policies   *policyIndex
	peers      *peerIndex
	owners     map[netip.Addr]*workload.Workload // pods that are ready, by address
	given      map[netip.Addr]string             // addresses that hosts of ServiceEntries were given, by whose they are
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
	Bindings   []Binding // of Services and ServiceEntries that are bound to waypoints
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
	// Services next, for their endpoints list them, too.
	var entries []*entry
	out.Services, entries = b.allServices(o)
	out.Workloads = append(out.Workloads, b.networkGateways(o.Gateways)...)
	for _, pod := range sorted(o.Pods) {
		id, err := b.identity(pod)
		if err != nil {
			b.reporter("Pod", pod.Namespace, pod.Name)("spec.serviceAccountName", fmt.Sprintf("the pod is left out, it cannot have an identity: %v", err))
			continue
		}
		b.place(pod, id, out.Placements)
		if w := b.workload(pod); w != nil {
			out.Workloads = append(out.Workloads, w)
			b.ownAddresses(w)
		}
	}
	for _, slice := range sorted(o.EndpointSlices) {
		out.Workloads = append(out.Workloads, b.sliceWorkloads(slice)...)
	}
	for _, e := range entries {
		out.Workloads = append(out.Workloads, b.endpoints(e)...)
	}
	for _, we := range sorted(o.WorkloadEntries) {
		if w := b.workloadEntry(we); w != nil {
			out.Workloads = append(out.Workloads, w)
		}
	}
	slices.SortFunc(out.Workloads, func(a, b *workload.Workload) int { return cmp.Compare(a.UID, b.UID) })
	out.Problems, out.Bindings = bounded(b.problems), b.bindings
	return out, nil
}

// bounded leaves out what one object has beyond its share. It comes from anybody, in a list
// of thousands, and whoever logs or writes it goes through all of it with every change.
func bounded(problems []Problem) []Problem {
	of := func(p Problem) Problem { return Problem{Kind: p.Kind, Namespace: p.Namespace, Name: p.Name} }
	count := make(map[Problem]int)
	for _, p := range problems {
		count[of(p)]++
	}
	seen := make(map[Problem]int, len(count))
	kept := problems[:0]
	for _, p := range problems {
		key := of(p)
		seen[key]++
		switch n := seen[key]; {
		case n <= maxProblems:
			kept = append(kept, p)
		case n == maxProblems+1:
			key.Reason = fmt.Sprintf("and %d more", count[key]-maxProblems)
			kept = append(kept, key)
		}
	}
	return kept
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
	b.waypoints = newWaypointIndex(o.Gateways, o.GatewayClasses)
	b.owners = make(map[netip.Addr]*workload.Workload)
	b.slices = make(map[string][]*discoveryv1.EndpointSlice)
	for _, slice := range sorted(o.EndpointSlices) {
		for i := range slice.Endpoints {
			if pod := podOf(slice.Namespace, &slice.Endpoints[i]); pod != "" && !slices.Contains(b.slices[pod], slice) {
				b.slices[pod] = append(b.slices[pod], slice)
			}
		}
	}
}

// allServices translates Services, and the ServiceEntries that have a host of their own.
func (b *builder) allServices(o Objects) ([]*workload.Service, []*entry) {
	b.fronts = make(map[string][]*front)
	b.byService = make(map[string]*front)
	hosts := newHosts()
	var out []*workload.Service
	for _, svc := range sorted(o.Services) {
		s := b.service(svc)
		if s == nil {
			continue
		}
		out = append(out, s)
		f := b.frontOf(svc)
		b.fronts[svc.Namespace] = append(b.fronts[svc.Namespace], f)
		b.byService[objectName(svc.Namespace, svc.Name)] = f
		hosts.service(s.Key(), svc.Name)
	}
	entries := b.entries(o.ServiceEntries, hosts)
	for _, e := range entries {
		b.fronts[e.se.Namespace] = append(b.fronts[e.se.Namespace], &e.front)
		out = append(out, b.entryServicesOf(e)...)
	}
	slices.SortStableFunc(out, func(a, b *workload.Service) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out, entries
}

func byName[T named](list []T) map[string]T {
	m := make(map[string]T, len(list))
	for _, o := range list {
		m[o.GetName()] = o
	}
	return m
}
