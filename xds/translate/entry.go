package translate

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"

	apinetworking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/warren-mesh/warren/xds/workload"
)

const (
	annotationAutoGroup = "istio.io/autoRegistrationGroup"
	labelWorkloadName   = "service.istio.io/workload-name"
	conditionHealthy    = "Healthy"
)

// instance is something outside of the cluster: a WorkloadEntry, or an endpoint of a
// ServiceEntry.
type instance struct {
	spec   *apinetworking.WorkloadEntry
	meta   metav1.ObjectMeta // where it stands; the labels are its own
	kind   string
	field  string // where the spec is, with a dot at the end
	report reporter
}

// workloadEntry translates one; nil is one that cannot be reached.
func (b *builder) workloadEntry(we *networkingv1.WorkloadEntry) *workload.Workload {
	in := instance{spec: &we.Spec, meta: we.ObjectMeta, kind: "WorkloadEntry", field: "spec.", report: b.reporter("WorkloadEntry", we.Namespace, we.Name)}
	in.meta.Labels = maps.Clone(we.Spec.GetLabels())
	if in.meta.Labels == nil {
		in.meta.Labels = make(map[string]string)
	}
	maps.Copy(in.meta.Labels, we.Labels)
	w := b.instance(in)
	if w == nil {
		return nil
	}
	w.UID = fmt.Sprintf("%s/networking.istio.io/WorkloadEntry/%s/%s", b.opts.ClusterID, we.Namespace, we.Name)
	w.WorkloadName = orElse(we.Annotations[annotationAutoGroup], firstOf(in.meta.Labels, we.Name, labelWorkloadName))
	w.CanonicalName, w.CanonicalRevision = canonical(in.meta.Labels, w.WorkloadName)
	w.Services = b.entryServices(we.Namespace, in.meta.Labels, in.spec)
	b.setTunnel(w, in.meta.Labels, we.Annotations)
	for _, c := range we.Status.GetConditions() {
		if c.GetType() == conditionHealthy && c.GetStatus() == string(metav1.ConditionFalse) {
			w.Status = workload.Unhealthy
		}
	}
	return w
}

// endpoints translates what stands inside a ServiceEntry. Hosts that are resolved by DNS
// need no endpoints: each is one itself.
func (b *builder) endpoints(e *entry) []*workload.Workload {
	var out []*workload.Workload
	count := make(map[string]int) // of workloads, by where they are
	add := func(w *workload.Workload, at string, services workload.Memberships) {
		w.UID = fmt.Sprintf("%s/networking.istio.io/ServiceEntry/%s/%s/%s", b.opts.ClusterID, e.se.Namespace, e.se.Name, at)
		if count[at]++; count[at] > 1 { // one address, other ports
			w.UID += fmt.Sprintf("/%d", count[at])
		}
		w.WorkloadName, w.Services = e.se.Name, services
		w.CanonicalName, w.CanonicalRevision = canonical(e.se.Labels, e.se.Name)
		out = append(out, w)
	}
	if len(e.se.Spec.GetEndpoints()) == 0 {
		ports := e.entryPorts(nil)
		for _, key := range e.resolved() {
			add(b.implicit(e, key.Hostname), key.Hostname, workload.Memberships{{Service: key, Ports: ports}})
		}
		return out
	}
	for i, spec := range e.se.Spec.GetEndpoints() {
		in := instance{spec: spec, kind: "ServiceEntry", field: fmt.Sprintf("spec.endpoints[%d].", i), report: e.report}
		in.meta = metav1.ObjectMeta{Name: e.se.Name, Namespace: e.se.Namespace, Labels: spec.GetLabels()}
		w := b.instance(in)
		if w == nil {
			continue
		}
		b.setTunnel(w, spec.GetLabels(), nil)
		b.setTunnel(w, e.se.Labels, e.se.Annotations)
		services := make(map[workload.NamespacedHostname]workload.PortMap, len(e.keys))
		e.behind(services, e.entryPorts(spec.GetPorts()))
		add(w, orElse(spec.GetAddress(), "network:"+w.Network), workload.NewMemberships(services))
	}
	return out
}

// resolved are the hosts that are endpoints themselves.
func (e *entry) resolved() []workload.NamespacedHostname {
	switch e.se.Spec.GetResolution() {
	case apinetworking.ServiceEntry_DNS, apinetworking.ServiceEntry_DNS_ROUND_ROBIN, apinetworking.ServiceEntry_DYNAMIC_DNS:
	default:
		return nil
	}
	if e.se.Spec.GetWorkloadSelector() != nil {
		return nil
	}
	var out []workload.NamespacedHostname
	for _, key := range e.keys {
		if wildcard(key.Hostname) && !dynamic(e.se) {
			e.report("spec.resolution", fmt.Sprintf("%s cannot be resolved and has no endpoint: set DYNAMIC_DNS with a waypoint, or NONE, or list endpoints", key.Hostname))
			continue
		}
		out = append(out, key)
	}
	return out
}

func (b *builder) implicit(e *entry, host string) *workload.Workload {
	w := b.outside(e.se.Namespace, e.se.Name)
	w.Hostname = host
	w.Policies = b.policiesFor(e.se.Namespace, nil)
	w.NetworkGateway = b.gateways[w.Network]
	b.setTunnel(w, e.se.Labels, e.se.Annotations)
	return w
}

// outside is what all have in common that are not pods.
func (b *builder) outside(namespace, name string) *workload.Workload {
	return &workload.Workload{
		Name: name, Namespace: namespace, Network: b.network, TrustDomain: b.opts.TrustDomain, ClusterID: b.opts.ClusterID,
		Type: workload.Pod, // there is no type for it; the proxies' metrics know this one
	}
}

// instance translates what WorkloadEntries and endpoints have in common; nil is one that
// cannot be reached, or could not have an identity.
func (b *builder) instance(in instance) *workload.Workload {
	w := b.outside(in.meta.Namespace, in.meta.Name)
	w.Network = orElse(in.spec.GetNetwork(), w.Network)
	w.NetworkGateway = b.gateways[w.Network]
	if err := b.locate(w, in.spec.GetAddress()); err != nil {
		in.report(in.field+"address", err.Error())
		return nil
	}
	w.ServiceAccount = in.spec.GetServiceAccount()
	if _, err := workload.NewIdentity(b.opts.TrustDomain, w.Namespace, w.ServiceAccount); err != nil {
		in.report(in.field+"serviceAccount", fmt.Sprintf("left out, it cannot have an identity: %v", err))
		return nil
	}
	part := strings.Split(in.spec.GetLocality(), "/")
	if len(part) > 3 {
		in.report(in.field+"locality", "more than region/zone/subzone: the rest is ignored")
	}
	part = append(part, "", "", "")
	w.Locality = workload.Locality{Region: part[0], Zone: part[1], Subzone: part[2]}
	if weight := in.spec.GetWeight(); weight > 0 {
		w.Capacity = &weight
	}
	for _, name := range slices.Sorted(maps.Keys(in.spec.GetPorts())) {
		if n := in.spec.GetPorts()[name]; n == 0 || n > math.MaxUint16 {
			in.report(fmt.Sprintf("%sports[%.100q]", in.field, name), fmt.Sprintf("%d is not a port number: ports of services that go by that name are left out", n))
		}
	}
	w.Policies = b.policiesFor(w.Namespace, in.meta.Labels)
	w.Waypoint, w.ApplicationTunnel = b.workloadWaypoint(in.kind, &in.meta)
	return w
}

// locate says how a workload is reached: at an IP, at what a name resolves to, or, where
// its network has a gateway, through that.
func (b *builder) locate(w *workload.Workload, text string) error {
	switch {
	case text == "" && w.Network != b.network && w.NetworkGateway != nil:
		return nil
	case text == "" && w.Network != b.network:
		return fmt.Errorf("there is none, and no gateway to network %q: left out", w.Network)
	case text == "":
		return errors.New("there is none: left out")
	case strings.HasPrefix(text, "unix:"):
		return fmt.Errorf("%.300q: Unix sockets are out of the proxies' reach: left out", text)
	}
	if a, err := address(text); err == nil {
		w.Addresses = []netip.Addr{a}
		return nil
	}
	if !strings.ContainsFunc(text, func(r rune) bool { return r != '.' && (r < '0' || r > '9') }) || strings.Contains(text, ":") {
		return fmt.Errorf("%.300q is neither an IP address nor a DNS name: left out", text)
	}
	host, err := hostname(text)
	w.Hostname = host
	return err
}

// setTunnel notes that something takes HBONE, by itself or by a proxy's help.
func (b *builder) setTunnel(w *workload.Workload, labels, annotations map[string]string) {
	if annotations[AnnotationRedirection] == redirectionEnabled {
		w.Protocol = workload.HBONE
	}
	if tunnels(labels) {
		w.Protocol, w.NativeTunnel = workload.HBONE, true
	}
}
