package translate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	apinetworking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/warren-mesh/warren/xds/workload"
)

const labelAutoAllocate = "networking.istio.io/enable-autoallocate-ip"

// Bounds on one ServiceEntry, those of its CRD; and on what it comes down to, since every
// endpoint is told the ports behind every host.
const (
	maxHosts     = 256
	maxPorts     = 256
	maxEndpoints = 4096
	maxExpanded  = 1 << 20
)

// entry is a ServiceEntry that was read, with the hosts that are its own.
type entry struct {
	front
	se         *networkingv1.ServiceEntry
	report     reporter
	hosts      []string
	canonical  map[string]bool // of the hosts
	appPorts   workload.PortMap
	visibility workload.Visibility
}

// entries reads the ServiceEntries, the oldest first, and returns those that have a host
// of their own, by namespace and name.
func (b *builder) entries(list []*networkingv1.ServiceEntry, h *hosts) []*entry {
	var out []*entry
	b.given = given(list)
	for _, se := range oldestFirst(list) {
		if e := b.entry(se, h); e != nil {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.se.Namespace, b.se.Namespace), cmp.Compare(a.se.Name, b.se.Name))
	})
	return out
}

// entry reads one ServiceEntry; nil is one that is nobody's.
func (b *builder) entry(se *networkingv1.ServiceEntry, h *hosts) *entry {
	e := &entry{se: se, report: b.reporter("ServiceEntry", se.Namespace, se.Name), canonical: make(map[string]bool)}
	hidden := false
	if e.visibility, hidden = e.exported(); hidden || e.tooLarge() {
		return nil
	}
	for i, text := range se.Spec.GetHosts() {
		host, err := hostPattern(text)
		if err == nil {
			err = h.claim(workload.NamespacedHostname{Namespace: se.Namespace, Hostname: host}, se.Name)
		}
		if err != nil {
			e.report(fmt.Sprintf("spec.hosts[%d]", i), err.Error())
			continue
		}
		e.hosts = append(e.hosts, host)
		e.keys = append(e.keys, workload.NamespacedHostname{Namespace: se.Namespace, Hostname: host})
		e.canonical[host] = h.first(host, e.visibility == workload.Public)
	}
	if len(se.Spec.GetHosts()) == 0 {
		e.report("spec.hosts", "there must be one")
	}
	if len(e.hosts) == 0 {
		return nil
	}
	e.selector = se.Spec.GetWorkloadSelector().GetLabels()
	if len(e.selector) > 0 && len(se.Spec.GetEndpoints()) > 0 {
		e.report("spec.workloadSelector", "has no effect beside spec.endpoints: use one of the two")
		e.selector = nil
	}
	e.readPorts()
	return e
}

func (e *entry) tooLarge() bool {
	hosts, ports, endpoints := len(e.se.Spec.GetHosts()), len(e.se.Spec.GetPorts()), len(e.se.Spec.GetEndpoints())
	switch {
	case hosts > maxHosts:
		e.report("spec.hosts", fmt.Sprintf("%d of them, at most %d are possible: left out, split it", hosts, maxHosts))
	case ports > maxPorts:
		e.report("spec.ports", fmt.Sprintf("%d of them, at most %d are possible: left out, split it", ports, maxPorts))
	case endpoints > maxEndpoints:
		e.report("spec.endpoints", fmt.Sprintf("%d of them, at most %d are possible: left out, split it", endpoints, maxEndpoints))
	case hosts*max(ports, 1)*max(endpoints, 1) > maxExpanded:
		e.report("spec", fmt.Sprintf("%d hosts, %d ports and %d endpoints are too many together: left out, split it", hosts, ports, endpoints))
	default:
		return false
	}
	return true
}

// exported reads whose clients may know of the hosts. Proxies can tell a service's own
// namespace from others, and no more.
func (e *entry) exported() (v workload.Visibility, hidden bool) {
	list := e.se.Spec.GetExportTo()
	if len(list) == 0 || slices.Contains(list, "*") {
		return workload.Public, false
	}
	if len(list) == 1 && list[0] == "~" {
		return workload.Public, true
	}
	for i, to := range list {
		if to != "." && to != e.se.Namespace {
			e.report(fmt.Sprintf("spec.exportTo[%d]", i), fmt.Sprintf("proxies cannot tell namespace %q from others: the hosts are known in all of them", to))
			return workload.Public, false
		}
	}
	return workload.NamespacePrivate, false
}

// readPorts fills in the ports, one a number. Where TCP and another protocol share one,
// TCP's counts.
func (e *entry) readPorts() {
	at := make(map[uint32]int)
	var app []workload.Port
	for i, p := range e.se.Spec.GetPorts() {
		//nolint:staticcheck // targetPort is deprecated for MESH_EXTERNAL only
		number, target := p.GetNumber(), p.GetTargetPort()
		if number == 0 || number > 65535 || target > 65535 {
			e.report(fmt.Sprintf("spec.ports[%d]", i), "not a port number: left out")
			continue
		}
		if target == 0 {
			target = number
		}
		f := frontPort{number: uint16(number), target: uint16(target), name: p.GetName(), protocol: corev1.ProtocolTCP}
		if strings.EqualFold(p.GetProtocol(), string(corev1.ProtocolUDP)) {
			f.protocol = corev1.ProtocolUDP
		}
		port := workload.Port{Service: f.number, Target: f.target}
		if isTCP(f.protocol) {
			port.AppProtocol = appProtocolNamed(p.GetProtocol())
		}
		j, twice := at[number]
		switch {
		case !twice:
			at[number] = len(e.ports)
			e.ports, app = append(e.ports, f), append(app, port)
		case isTCP(f.protocol) && !isTCP(e.ports[j].protocol):
			e.ports[j], app[j] = f, port
		case isTCP(f.protocol):
			e.report(fmt.Sprintf("spec.ports[%d].number", i), fmt.Sprintf("%d comes twice: left out", number))
		}
	}
	e.appPorts = workload.NewPortMap(app...)
}

// entryServicesOf makes a service of every host.
func (b *builder) entryServicesOf(e *entry) []*workload.Service {
	common := workload.Service{
		Name:            e.se.Name,
		Namespace:       e.se.Namespace,
		Ports:           e.appPorts,
		SubjectAltNames: e.se.Spec.GetSubjectAltNames(),
		LoadBalancing:   b.entryBalancing(e),
		Visibility:      e.visibility,
	}
	common.VIPs, common.CIDRs = b.entryAddresses(e)
	b.bindService(&common, "ServiceEntry", &e.se.ObjectMeta)
	if dynamic(e.se) && common.Waypoint == nil {
		e.report("spec.resolution", "DYNAMIC_DNS is for a waypoint to do, and there is none: use the label "+labelUseWaypoint)
	}
	auto := b.allocated(e)
	out := make([]*workload.Service, 0, len(e.hosts))
	for _, host := range e.hosts {
		s := common
		s.Hostname, s.Canonical = host, e.canonical[host]
		if auto != nil {
			s.VIPs = auto[host]
		}
		out = append(out, &s)
	}
	return out
}

func (b *builder) entryBalancing(e *entry) *workload.LoadBalancing {
	if e.se.Spec.GetResolution() == apinetworking.ServiceEntry_NONE {
		// To the address that the client chose: nobody says how that one is.
		return &workload.LoadBalancing{Mode: workload.LBPassthrough, HealthPolicy: workload.AllowAll}
	}
	if scopes := b.distribution(nil, &e.se.ObjectMeta, e.report); len(scopes) > 0 {
		return &workload.LoadBalancing{Mode: workload.LBFailover, Preferences: scopes}
	}
	return nil
}

// entryAddresses reads the addresses that were written down.
func (b *builder) entryAddresses(e *entry) (vips []workload.NetworkAddr, blocks []workload.NetworkPrefix) {
	list := e.se.Spec.GetAddresses()
	for i, text := range list {
		if i == maxEndpoints {
			e.report("spec.addresses", fmt.Sprintf("%d of them, only the first %d are taken: split it", len(list), maxEndpoints))
			break
		}
		p, err := block(text)
		switch {
		case err != nil:
			e.report(fmt.Sprintf("spec.addresses[%d]", i), err.Error()+": left out")
		case p.IsSingleIP() && p.Addr().IsUnspecified():
			e.report(fmt.Sprintf("spec.addresses[%d]", i), fmt.Sprintf("%q is not an address to reach something at: left out", text))
		case p.IsSingleIP() && b.given[p.Addr()] != "" && b.given[p.Addr()] != objectName(e.se.Namespace, e.se.Name):
			e.report(fmt.Sprintf("spec.addresses[%d]", i), fmt.Sprintf("%s was given to a host of ServiceEntry %s, which has none of its own, and stays its: left out, take one that is in neither %s nor %s",
				text, b.given[p.Addr()], autoV4, autoV6))
		case p.IsSingleIP():
			vips = append(vips, workload.NetworkAddr{Network: b.network, Addr: p.Addr()})
		default:
			blocks = append(blocks, workload.NetworkPrefix{Network: b.network, Prefix: p})
		}
	}
	return vips, blocks
}

// allocated are the addresses that a control plane has given to hosts that have none, by
// host; nil where none are given.
func (b *builder) allocated(e *entry) map[string][]workload.NetworkAddr {
	if !allocates(e.se) {
		return nil
	}
	out := make(map[string][]workload.NetworkAddr)
	for i, a := range e.se.Status.GetAddresses() {
		host, err := hostPattern(a.GetHost())
		if err != nil || !slices.Contains(e.hosts, host) || wildcard(host) && !dynamic(e.se) {
			continue // of a host that was taken out since
		}
		ip, err := address(a.GetValue())
		if err != nil {
			e.report(fmt.Sprintf("status.addresses[%d].value", i), err.Error())
			continue
		}
		out[host] = append(out[host], workload.NetworkAddr{Network: b.network, Addr: ip})
	}
	return out
}

// allocates reports whether the hosts of a ServiceEntry are to be given addresses. Without
// resolution traffic goes to the address that the client has, which must be a real one.
func allocates(se *networkingv1.ServiceEntry) bool {
	return len(se.Spec.GetAddresses()) == 0 && se.Spec.GetResolution() != apinetworking.ServiceEntry_NONE &&
		!strings.EqualFold(se.Labels[labelAutoAllocate], "false")
}

// dynamic reports whether a waypoint resolves the hosts, each connection's own.
func dynamic(se *networkingv1.ServiceEntry) bool {
	return se.Spec.GetResolution() == apinetworking.ServiceEntry_DYNAMIC_DNS
}
