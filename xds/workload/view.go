package workload

import (
	"cmp"
	"iter"
	"slices"
	"strings"
)

// View is one immutable state of the mesh. Its methods do not block and, unless
// they say otherwise, do not allocate. What they return is shared: it must not be
// changed.
type View struct {
	byUID  index[string]
	byAddr claims[NetworkAddr, nothing]
	local  claims[localKey, where]
	byName claims[NamespacedHostname, nothing] // by hostname

	node string      // of who asks; empty: any
	here []*Workload // of that node, by UID

	services cowMap[NamespacedHostname, *Service]
	byHost   cowMap[string, serviceSet]
	byVIP    cowMap[NetworkAddr, serviceSet]
	byCIDR   cidrIndex

	// endpoints of every service that a workload names, known or not: a
	// workload may arrive before its service.
	endpoints cowMap[NamespacedHostname, *EndpointSet]

	policies    cowMap[string, *Policy]
	byNamespace cowMap[string, []*Policy] // namespace scope, by name
	global      []*Policy                 // by namespace, then name

	superseded chan struct{}
}

type localKey struct{ namespace, name, serviceAccount string }

func newView(node string) *View { return &View{node: node, superseded: make(chan struct{})} }

// Superseded is closed once a newer view has taken this one's place.
func (v *View) Superseded() <-chan struct{} { return v.superseded }

// WorkloadByUID finds a workload by its xDS name.
func (v *View) WorkloadByUID(uid string) *Workload { return withUID(&v.byUID, uid) }

func withUID(x *index[string], uid string) *Workload {
	for w := range x.under(uid) {
		if w.UID == uid {
			return w
		}
	}
	return nil
}

// WorkloadByAddr finds the workload that owns an address, never one in host
// network mode. Of several, as while a pod's address passes on to the next, the
// likeliest live one is returned: see rank. Of equal ones it is the latest, whose
// address was given out last.
func (v *View) WorkloadByAddr(a NetworkAddr) *Workload {
	if c := v.byAddr.crowd(a); c != nil {
		w, _ := c.meant.get(nothing{})
		return w
	}
	var best *Workload
	for w := range v.byAddr.few.under(a) {
		if w.ownsAddr(a) && (best == nil || succeeds(w, best)) {
			best = w
		}
	}
	return best
}

// WorkloadByHostname finds the workload that has a hostname of its own in a
// namespace; of several as WorkloadByAddr does.
func (v *View) WorkloadByHostname(n NamespacedHostname) *Workload {
	if c := v.byName.crowd(n); c != nil {
		w, _ := c.meant.get(nothing{})
		return w
	}
	var best *Workload
	for w := range v.byName.few.under(n) {
		if w.hostKey() == n && (best == nil || succeeds(w, best)) {
			best = w
		}
	}
	return best
}

// Local finds the workload of a pod by what its node knows of it, among those of the
// store's node. Of several one of the cluster is returned, for nodes and pods of others
// may have the same names, then the healthy one, then the first by UID.
func (v *View) Local(name, namespace, serviceAccount, cluster string) *Workload {
	key := localKey{namespace: namespace, name: name, serviceAccount: serviceAccount}
	if c := v.local.crowd(key); c != nil {
		return local(c, cluster)
	}
	var best *Workload
	for w := range v.local.few.under(key) {
		if w.localKey() == key && (best == nil || w.before(best, cluster)) {
			best = w
		}
	}
	return best
}

// Here are the workloads of the store's node, by UID; none if it is not known.
func (v *View) Here() []*Workload { return v.here }

// Service finds a service by its key.
func (v *View) Service(key NamespacedHostname) *Service {
	s, _ := v.services.get(key)
	return s
}

// ServiceByVIP finds the service that clients of a namespace reach at an address:
// among those visible to them the one of their own namespace, else the canonical
// one, else the first. An exact address goes before any range.
func (v *View) ServiceByVIP(a NetworkAddr, clientNamespace string) *Service {
	if s := v.ServiceByExactVIP(a, clientNamespace); s != nil {
		return s
	}
	return v.ServiceByRange(a, clientNamespace)
}

// ServiceByExactVIP is ServiceByVIP without ranges.
func (v *View) ServiceByExactVIP(a NetworkAddr, clientNamespace string) *Service {
	set, _ := v.byVIP.get(a)
	return set.forClient(clientNamespace)
}

// ServiceByRange is ServiceByVIP with ranges only: of those of one's own namespace,
// else of all, the narrowest.
func (v *View) ServiceByRange(a NetworkAddr, clientNamespace string) *Service {
	return v.byCIDR.find(a, clientNamespace)
}

// ServicesAt goes through the services of an address, whoever may see them: those
// of exactly this address, then those of a range around it.
func (v *View) ServicesAt(a NetworkAddr) iter.Seq[*Service] {
	return func(yield func(*Service) bool) {
		set, _ := v.byVIP.get(a)
		for _, s := range set.list {
			if !yield(s) {
				return
			}
		}
		v.byCIDR.around(a)(yield)
	}
}

// ServiceByHost finds the service that clients of a namespace mean by a hostname
// in lower case, chosen as in ServiceByVIP.
func (v *View) ServiceByHost(host, clientNamespace string) *Service {
	set, _ := v.byHost.get(host)
	return set.forClient(clientNamespace)
}

// ServicesByHost are the services of a hostname in lower case, whoever may see
// them, by namespace. It is for who has a rule of choice of its own.
func (v *View) ServicesByHost(host string) []*Service {
	set, _ := v.byHost.get(host)
	return set.list
}

// Endpoints are the workloads behind a service, healthy or not; nil when there
// are none.
func (v *View) Endpoints(s *Service) *EndpointSet {
	set, _ := v.endpoints.get(s.Key())
	return set
}

// Policy finds a policy by "namespace/name".
func (v *View) Policy(name string) *Policy {
	p, _ := v.policies.get(name)
	return p
}

// GlobalPolicies guard every workload.
func (v *View) GlobalPolicies() []*Policy { return v.global }

// NamespacePolicies guard every workload of a namespace.
func (v *View) NamespacePolicies(namespace string) []*Policy {
	list, _ := v.byNamespace.get(namespace)
	return list
}

// PolicySet is what guards one workload.
type PolicySet struct {
	Global, Namespace []*Policy
	Selected          []*Policy // those the workload names, in its order
	Missing           []string  // named by the workload but unknown: nothing may pass
}

// PoliciesFor gathers the policies of a workload. It allocates if the workload
// names any.
func (v *View) PoliciesFor(w *Workload) PolicySet {
	set := PolicySet{Global: v.GlobalPolicies(), Namespace: v.NamespacePolicies(w.Namespace)}
	for _, n := range w.Policies {
		if p := v.Policy(n); p != nil {
			set.Selected = append(set.Selected, p)
		} else {
			set.Missing = append(set.Missing, n)
		}
	}
	return set
}

// MayBeHere says whether a workload is of the store's node, as far as that is known.
func (v *View) MayBeHere(w *Workload) bool { return v.node == "" || w.Node == v.node }

// PoliciesHere are the names of the policies that workloads of the store's node name, or
// any workloads where that is not known. It allocates.
func (v *View) PoliciesHere() map[string]struct{} {
	list := slices.Values(v.here)
	if v.node == "" {
		list = v.byUID.all()
	}
	names := make(map[string]struct{})
	for w := range list {
		for _, name := range w.Policies {
			names[name] = struct{}{}
		}
	}
	return names
}

// Len is the number of workloads, services and policies.
func (v *View) Len() (workloads, services, policies int) {
	return v.byUID.size, v.services.size, v.policies.size
}

// Workloads are all workloads by UID. It allocates and sorts: for dumps.
func (v *View) Workloads() []*Workload {
	list := make([]*Workload, 0, v.byUID.size)
	for w := range v.byUID.all() {
		list = append(list, w)
	}
	slices.SortFunc(list, compareWorkloads)
	return list
}

// Services are all services by hostname, then namespace. It allocates and sorts.
func (v *View) Services() []*Service {
	return sorted(&v.services, func(a, b *Service) int {
		return cmp.Or(strings.Compare(a.Hostname, b.Hostname), strings.Compare(a.Namespace, b.Namespace))
	})
}

// Policies are all policies by namespace, then name. It allocates and sorts.
func (v *View) Policies() []*Policy { return sorted(&v.policies, comparePolicies) }

func comparePolicies(a, b *Policy) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

func sorted[K comparable, V any](m *cowMap[K, V], compare func(a, b V) int) []V {
	list := make([]V, 0, m.size)
	for _, x := range m.all() {
		list = append(list, x)
	}
	slices.SortFunc(list, compare)
	return list
}
